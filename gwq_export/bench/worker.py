"""One engine with one file in a process of its own.

    python -m gwq_export.bench.worker ENGINE FILE THREADS CTX VOCAB [DEVICE [LAYERS]]

Commands come as lines of JSON on stdin, {"prompt": n, "gen": n}: a prompt of n tokens in an empty
context, then n tokens decoded greedily, one by one. Answers go to stdout: {"prompt_ns", "gen_ns"},
as the engine measures them itself. The first line is {"load_ns", "first_token_ns", "peak_bytes",
"backend", "version", "cache_type", "batch", "gpu_layers"} or {"error"}. stderr is the engine's own
log.
"""

import ctypes
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from gwq_export.errors import GwqError
from gwq_export.machine import peak_rss
from gwq_export.version import __version__

FIRST_TOKENS = 8  # decoded before memory is looked at
PR_SET_PDEATHSIG = 1  # of prctl(2)


class Engine(Protocol):
    """What every engine has once it has opened a file."""

    module: str  # imported before the time of loading begins
    backend: str
    version: str
    cache_type: str  # of the KV cache
    batch: tuple[int, int]  # n_batch and n_ubatch, as llama.cpp calls them
    gpu_layers: int

    def __init__(self, path: str, threads: int, ctx: int) -> None: ...

    def run(self, prompt: list[int], gen: int) -> tuple[int, int]:
        """Nanoseconds of a prompt (token ids) in an empty context, and of `gen` steps after it."""
        ...


class Gwq:
    """The runtime of this package."""

    module = "gwq_export.runtime.model"
    version = __version__

    def __init__(
        self,
        path: str,
        threads: int,
        ctx: int,
        device: str = "cpu",
        gpu_layers: int | None = None,
    ) -> None:
        from gwq_export.native.library import isa
        from gwq_export.runtime.model import Model
        from gwq_export.runtime.session import BATCH

        model = Model(path, device, threads, ctx, gpu_layers=gpu_layers)
        self.session = model.session(ctx)
        placement = model.weights.placement
        self.gpu_layers = placement.layers if placement else 0
        self.backend = f"gwq-{isa() if device == 'cpu' else 'cuda'}"
        self.batch = (BATCH, BATCH)
        self.cache_type = self.session.cache_type.name

    def run(self, prompt: list[int], gen: int) -> tuple[int, int]:
        """See `Engine.run`."""
        from gwq_export.runtime.logits import best

        self.session.rewind()
        start = time.perf_counter_ns()
        (logits,) = self.session.scores(prompt, best=1)
        middle = time.perf_counter_ns()
        for _ in range(gen):
            (logits,) = self.session.scores(best(logits, 1).ids, best=1)
        return middle - start, time.perf_counter_ns() - middle


class LlamaCpp:
    """llama.cpp's server as PyPI's xllamacpp has it, in this process."""

    module = "xllamacpp"
    backend = "llama.cpp"
    cache_type = "f16"
    gpu_layers = 0
    repack = True  # whether it may rearrange weights in memory

    def __init__(self, path: str, threads: int, ctx: int) -> None:
        import xllamacpp

        self.version = f"xllamacpp {xllamacpp.__version__}"
        p = xllamacpp.CommonParams()
        p.model.path = path
        p.n_ctx = ctx + 1  # the server wants room for a token after the prompt
        p.n_parallel = 1
        p.n_gpu_layers = 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        p.warmup = p.fit_params = False
        p.cache_ram_mib = 0
        p.no_extra_bufts = not self.repack
        p.verbosity = 4  # says whether it repacks
        self.batch = (p.n_batch, p.n_ubatch)
        try:
            self.server = xllamacpp.Server(p)
        except RuntimeError as e:
            raise GwqError(f"{path}: llama.cpp cannot load it ({e})") from None

    def run(self, prompt: list[int], gen: int) -> tuple[int, int]:
        """See `Engine.run`. Raises GwqError when llama.cpp computed something else."""
        request = {
            "prompt": prompt,
            "n_predict": gen + 1,  # the first token is the prompt's
            "temperature": 0,
            "samplers": [],
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = self.server.handle_completions(request)
        timings = answer.get("timings")
        if (
            timings is None
            or timings["predicted_n"] != gen + 1
            or timings["prompt_n"] != len(prompt)
        ):
            raise GwqError(
                f"llama.cpp did not compute what it was asked to: {json.dumps(answer)[:300]}"
            )
        return int(timings["prompt_ms"] * 1e6), int(timings["predicted_ms"] * 1e6)


class LlamaCppAsStored(LlamaCpp):
    """llama.cpp that computes with the weights as they lie in the file."""

    backend = "llama.cpp, no repack"
    repack = False


ENGINES: dict[str, type[Engine]] = {
    "gwq": Gwq,
    "llama.cpp": LlamaCpp,
    "llama.cpp, no repack": LlamaCppAsStored,
}


def serve(
    engine: str,
    path: str,
    threads: int,
    ctx: int,
    vocab: int,
    commands: Iterable[str],
    send: Callable[[dict[str, Any]], None],
    device: str = "cpu",
    gpu_layers: str = "",
) -> None:
    """Open the file, send what that took, and answer every line of `commands`."""
    ids = random.Random(0).choices(range(vocab), k=ctx)
    importlib.import_module(ENGINES[engine].module)
    start = time.perf_counter_ns()
    if device == "cpu" and not gpu_layers:
        opened = ENGINES[engine](path, threads, ctx)
    else:
        opened = Gwq(path, threads, ctx, device, int(gpu_layers) if gpu_layers else None)
    load = time.perf_counter_ns() - start
    opened.run(ids[:1], 0)
    first = time.perf_counter_ns() - start
    opened.run(ids[:1], min(FIRST_TOKENS, ctx - 1))
    send(
        {
            "load_ns": load,
            "first_token_ns": first,
            "peak_bytes": peak_rss(),
            "backend": opened.backend,
            "version": opened.version,
            "cache_type": opened.cache_type,
            "batch": opened.batch,
            "gpu_layers": opened.gpu_layers,
        }
    )
    for line in commands:
        command = json.loads(line)
        prompt_ns, gen_ns = opened.run(ids[: command["prompt"]], command["gen"])
        send({"prompt_ns": prompt_ns, "gen_ns": gen_ns})


def main() -> None:
    """Serve one engine, as the command line says."""
    engine, path, threads, ctx, vocab, *device = sys.argv[1:]
    # a stopped process must not outlive its parent
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what engines print goes to the log

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=out)

    try:
        serve(engine, path, int(threads), int(ctx), int(vocab), sys.stdin, send, *device)
    except GwqError as e:
        send({"error": str(e)})
    sys.stdout.flush()


if __name__ == "__main__":
    main()
