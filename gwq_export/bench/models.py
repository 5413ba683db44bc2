"""Rows of whole files: tokens per second of prompt and decoding, load time, memory, share of the
memory roof.

Every file runs in a process of its own (`contender`). Several files, and the memory roof, are timed
in alternation: roof, first file, roof, second file, ..., roof, first file, ... so that ratios come
from neighbours in time.
"""

import statistics
from contextlib import ExitStack
from datetime import datetime, timezone

import numpy as np

from gwq_export.bench import contender
from gwq_export.bench.roof import Beside, Roofs
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.machine import cpu_name, default_threads


def decode_bytes(reader):
    """Bytes of weights read for one token: every matrix and side-table, of the embedding only a row
    (unless it is the head too), and of the experts as many as a token uses.
    """
    arch = reader.metadata.get("general.architecture")
    used, experts = (
        reader.metadata.get(f"{arch}.{key}", 1) for key in ("expert_used_count", "expert_count")
    )
    read = lambda t: t.nbytes * used // experts if "_exps." in t.name else t.nbytes  # noqa: E731
    untied = "output.weight" in reader.tensors
    looked_up = ["position_embd.weight"] + [
        name for name in reader.tensors if untied and name.startswith("token_embd.")
    ]
    return sum(
        read(t)
        for t in reader.tensors.values()
        if (len(t.shape) > 1 or t.companion) and t.name not in looked_up
    )


def model_type(reader):
    """ "llama gwq4" or the like: architecture and the type that holds most of the weights."""
    size = {}
    for t in reader.tensors.values():
        size[t.type.name] = size.get(t.type.name, 0) + (0 if t.companion else int(np.prod(t.shape)))
    return f"{reader.metadata.get('general.architecture')} {max(size, key=size.get)}"


def _readers(path, against, ctx):
    """[(reader, engines)] of the file and of those to compare with. Raises GwqError."""
    files = [(Reader(path), ["gwq"])]
    for reader in map(contender.open_file, against):
        files.append((reader, contender.engines(reader)))
    for reader, _ in files:
        limit = reader.metadata.get(
            f"{reader.metadata.get('general.architecture')}.context_length", ctx
        )
        if ctx > limit:
            raise GwqError(
                f"{reader.path}: -p and -n need a context of {ctx} and the model's is {limit}; use smaller numbers"
            )
    return files


def _quartiles(values):
    return [float(q) for q in np.quantile(values, [0.5, 0.25, 0.75])]


class _Test:
    """The runs of one contender in one test: `tokens` in a prompt (gen False) or decoded."""

    def __init__(self, c, tokens, gen):
        self.c, self.tokens, self.gen = c, tokens, gen
        self.beside = Beside(decode_bytes(c.reader) * (tokens if gen else 1))

    def run(self, tokens=None):
        """Seconds."""
        tokens = tokens or self.tokens
        return self.c.run(0, tokens)[1] if self.gen else self.c.run(tokens, 0)[0]

    def row(self, first, threads):
        """first: the _Test of the file that others are compared with."""
        reader, facts, samples = self.c.reader, self.c.facts, self.beside.seconds
        speed = [self.tokens / s for s in samples]
        ratio = [None] * 3
        if first is not self:
            ratio = _quartiles(
                [other / own for other, own in zip(samples, first.beside.seconds, strict=True)]
            )
        read = self.beside.row()
        return {
            "build_commit": facts["version"],
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": "",
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
            "n_gpu_layers": 0,
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
    path,
    prompt=512,
    gen=128,
    threads=(None,),
    repeats=5,
    against=(),
    progress=lambda phase, done, total: None,
):
    """Rows, and those of the roof (`Roofs.rows`). Raises GwqError.

    Rows for `pp<prompt>` and `tg<gen>` (0 leaves a test out) at each thread count, of `path` and of
    every file in `against` on every engine that runs it: llama-bench's names, and medians of bytes,
    memory and time. "times_as_fast": how many times as fast as the row's the first file is, run by
    neighbouring run: median and quartiles; None for itself.
    """
    tests = [(tokens, g) for tokens, g in ((prompt, False), (gen, True)) if tokens]
    if not tests or repeats < 1 or min(prompt, gen) < 0:
        raise GwqError("nothing to measure: give -p or -n a positive number, and -r at least 1")
    ctx = max(prompt, gen + 1)
    files, roofs, rows = _readers(path, against, ctx), Roofs(), []
    done, total = 0, len(tests) * len(threads) * repeats
    for t in (t or default_threads() for t in threads):
        roof = roofs[t]
        with ExitStack() as stack:
            contenders = []
            for reader, names in files:
                with open(reader.path, "rb") as f:  # into the page cache
                    while f.read(1 << 24):
                        pass
                for c in contender.start(reader, names, t, ctx):
                    stack.callback(c.close)
                    contenders.append(c)
            for tokens, g in tests:
                runs = [_Test(c, tokens, g) for c in contenders]
                for run in runs:
                    run.run()
                before = roof.now()
                for _ in range(repeats):
                    for run in runs:
                        seconds, after = run.run(), roof.now()
                        run.beside.add(seconds, before, after)
                        before = after
                    done += 1
                    progress("bench", done, total)
                rows += [run.row(runs[0], t) for run in runs]
    return rows, roofs.rows()
