"""Rows of whole files: tokens per second of prompt and decoding, load time, memory, memory roof.

Every file runs in a process of its own (`contender`). Several files, and the memory roof, are timed
in alternation: roof, first file, roof, second file, ..., roof, first file, ... so that ratios come
from neighbours in time.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from os import PathLike
from typing import Any

import numpy as np

from gwq_export.bench import contender
from gwq_export.bench.roof import Beside, DeviceRoofs, Roofs
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader, Tensor
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.cuda import pool_of
from gwq_export.runtime.page_cache import read_anew
from gwq_export.runtime.placement import check_layers

FLOATS = ("F32", "F16", "BF16")
PROMPT, GEN = 512, 128  # tokens, unless asked for
# general.file_type -> llama.cpp's name of the mixture
FILE_TYPES = {
    **dict(enumerate(["F32", "F16", "Q4_0", "Q4_1"])),
    **dict(enumerate(["Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"], 7)),
    **dict(enumerate(["Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS"], 14)),
    **dict(enumerate(["Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M"], 21)),
    **dict(enumerate(["IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"], 28)),
    **dict(enumerate(["TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0"], 36)),
}


def decode_bytes(reader: Reader) -> int:
    """Bytes of weights read for one token.

    Every matrix and side-table counts; of the embedding only a row is read, next to nothing, unless
    it is the head too; of the experts as many as a token uses.
    """
    arch = reader.metadata.get("general.architecture")
    used = reader.metadata.get(f"{arch}.expert_used_count", 1)
    experts = reader.metadata.get(f"{arch}.expert_count", 1)
    untied = "output.weight" in reader.tensors

    def read(t: Tensor) -> int:
        if t.name == "position_embd.weight" or (untied and t.name.startswith("token_embd.")):
            return 0  # one row
        if len(t.shape) == 1 and not t.companion:
            return 0  # norms and biases
        return t.nbytes * used // experts if "_exps." in t.name else t.nbytes

    return sum(map(read, reader.tensors.values()))


def model_type(reader: Reader) -> str:
    """Architecture and mixture of types, such as "llama Q4_K_M" or "llama gwq4".

    A file whose mixture llama.cpp has a name for says so itself; a name of plain floats is believed
    only where they are. Of any other file, the types of the blocks' matrices are named that take
    nine tenths of their bytes, the largest first.
    """
    arch = reader.metadata.get("general.architecture")
    mixture = FILE_TYPES.get(reader.metadata.get("general.file_type", -1), "")
    nbytes: dict[str, int] = {}
    for t in reader.tensors.values():
        if t.name.startswith("blk.") and len(t.shape) > 1 and not t.companion:
            nbytes[t.type.name] = nbytes.get(t.type.name, 0) + t.nbytes
    names = sorted(nbytes, key=lambda name: -nbytes[name])
    if mixture and (mixture not in FLOATS or mixture.lower() in names[:1]):
        return f"{arch} {mixture}"
    rest = total = sum(nbytes.values())
    named = []
    for name in names:
        if rest > total / 10:
            named.append(name)
            rest -= nbytes[name]
    return f"{arch} {'+'.join(named)}"


def _readers(
    path: str | PathLike[str], against: Sequence[str | PathLike[str]]
) -> list[tuple[Reader, list[str]]]:
    """[(reader, engines)] of the file and of those to compare it with. Raises GwqError."""
    files = [(Reader(path), ["gwq"])]
    for reader in map(contender.open_file, against):
        files.append((reader, contender.engines(reader)))
    return files


def _lengths(prompt: int | None, gen: int | None, readers: Iterable[Reader]) -> tuple[int, int]:
    """Tokens of the prompt and tokens to decode; None: PROMPT and GEN, or what fits the contexts.

    Raises GwqError when what was asked for does not fit.
    """
    limits = {}
    for reader in readers:
        arch = reader.metadata.get("general.architecture")
        limits[str(reader.path)] = reader.metadata.get(f"{arch}.context_length", 1 << 31)
    path = min(limits, key=lambda path: limits[path])
    limit = limits[path]
    prompt = min(PROMPT, limit) if prompt is None else prompt
    gen = max(0, min(GEN, limit - 1)) if gen is None else gen
    if min(prompt, gen) < 0 or not prompt + gen:
        raise GwqError("nothing to measure: give -p or -n a positive number, and -r at least 1")
    if max(prompt, gen + 1) > limit:
        raise GwqError(
            f"{path}: -p and -n need a context of {max(prompt, gen + 1)} and the model's is"
            f" {limit}; use smaller numbers"
        )
    return prompt, gen


def _quartiles(values: list[float]) -> list[float]:
    """[median, lower quartile, upper quartile]"""
    return [float(q) for q in np.quantile(values, [0.5, 0.25, 0.75])]


class _Test:
    """The runs of one contender in one test: `tokens` in a prompt (gen False) or decoded."""

    def __init__(self, c: contender.Contender, tokens: int, gen: bool) -> None:
        self.c = c
        self.tokens = tokens
        self.gen = gen
        self.beside = Beside(decode_bytes(c.reader) * (tokens if gen else 1))

    def run(self) -> float:
        """Run the test once; returns seconds."""
        if self.gen:
            return self.c.run(0, self.tokens)[1]
        return self.c.run(self.tokens, 0)[0]

    def row(self, first: "_Test", threads: int, gpu: str) -> dict[str, Any]:
        """The row of the runs so far.

        first: the _Test of the file that others are compared with. gpu: name of the device, "" for
        none.
        """
        reader = self.c.reader
        facts = self.c.facts
        samples = self.beside.seconds
        speed = [self.tokens / s for s in samples]
        ratio: list[float | None] = [None] * 3
        if first is not self:
            pairs = zip(samples, first.beside.seconds, strict=True)
            ratio = [*_quartiles([here / there for here, there in pairs])]
        read = self.beside.row()
        return {
            "build_commit": facts["version"],
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": gpu,
            "backends": facts["backend"],
            "model_filename": reader.path,
            "model_type": model_type(reader),
            "model_size": reader.nbytes,
            "model_n_params": sum(
                int(np.prod(t.shape)) for t in reader.tensors.values() if not t.companion
            ),
            "n_batch": facts["batch"][0],
            "n_ubatch": facts["batch"][1],
            "n_threads": threads,
            "type_k": facts["cache_type"],
            "type_v": facts["cache_type"],
            "n_gpu_layers": facts["gpu_layers"],
            "n_prompt": 0 if self.gen else self.tokens,
            "n_gen": self.tokens if self.gen else 0,
            "n_depth": 0,
            "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "avg_ns": int(statistics.mean(samples) * 1e9),
            "stddev_ns": int(statistics.pstdev(samples) * 1e9),
            "avg_ts": statistics.mean(speed),
            "stddev_ts": statistics.pstdev(speed),
            "median_ts": statistics.median(speed),
            "samples_ns": [int(s * 1e9) for s in samples],
            "samples_ts": speed,
            "bytes_per_token": decode_bytes(reader) if self.gen else None,
            "gbps": read["gbps"] if self.gen else None,
            "roof_gbps": read["roof_gbps"],
            "of_roof": read["of_roof"] if self.gen else None,
            "load_ns": facts["load_ns"],
            "first_token_ns": facts["first_token_ns"],
            "peak_bytes": facts["peak_bytes"],
            "times_as_fast": ratio[0],
            "times_as_fast_q1": ratio[1],
            "times_as_fast_q3": ratio[2],
        }


def model_rows(
    path: str | PathLike[str],
    prompt: int | None = None,
    gen: int | None = None,
    threads: Sequence[int | None] = (None,),
    repeats: int = 5,
    against: Sequence[str | PathLike[str]] = (),
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    emit: Callable[[dict[str, Any]], None] = lambda row: None,
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time a file; returns rows, and those of the roof (`Roofs.rows`). Raises GwqError.

    emit: is given every row as soon as it is measured. device, gpu_layers: as for
    `gwq_export.load`; another device than the CPU is measured against its own memory roof, without
    `against`.

    Rows for `pp<prompt>` and `tg<gen>` (0 leaves a test out; None: PROMPT and GEN, or what fits the
    context) at each thread count (None: all CPUs),
    of `path` and of every file in `against` on every engine that runs it: llama-bench's names, and
    medians of bytes, memory and time. "times_as_fast": how many times as fast as the row's file the
    first file is, run by neighbouring run: median and quartiles; None for itself.
    """
    if repeats < 1:
        raise GwqError("nothing to measure: give -p or -n a positive number, and -r at least 1")
    if device != "cpu" and against:
        raise GwqError("--against runs on the CPU: leave it out, or use --device cpu")
    check_layers(gpu_layers, device != "cpu")
    files = _readers(path, against)
    prompt, gen = _lengths(prompt, gen, (reader for reader, _ in files))
    tests = [(tokens, decoded) for tokens, decoded in ((prompt, False), (gen, True)) if tokens]
    ctx = max(prompt, gen + 1)
    pool = None if device == "cpu" else pool_of(device)
    roofs = Roofs() if pool is None else DeviceRoofs(pool)
    gpu = "" if pool is None else getattr(pool, "name", "")
    rows = []
    done = 0
    counts = [t or default_threads() for t in threads]
    total = len(tests) * len(counts) * repeats
    for t in counts:
        roof = roofs.made(t, progress)
        with ExitStack() as stack:
            contenders = []
            for i, (reader, names) in enumerate(files):
                progress("load", i, len(files))
                for part in reader.parts:
                    read_anew(part.path)
                for c in contender.start(reader, names, t, ctx, device, gpu_layers):
                    stack.callback(c.close)
                    contenders.append(c)
            progress("load", len(files), len(files))
            for tokens, decoded in tests:
                timed = [_Test(c, tokens, decoded) for c in contenders]
                for test in timed:
                    test.run()  # the first run warms caches
                before = roof.now()
                for _ in range(repeats):
                    for test in timed:
                        seconds = test.run()
                        after = roof.now()
                        test.beside.add(seconds, before, after)
                        before = after
                    done += 1
                    progress("bench", done, total)
                for test in timed:
                    rows.append(test.row(timed[0], t, gpu))
                    emit(rows[-1])
    return rows, roofs.rows()
