"""One engine with one file in a process of its own.

    python -m gwq_export.bench.worker ENGINE FILE THREADS CTX VOCAB [DEVICE [LAYERS]]

Commands come as lines of JSON on stdin, {"prompt": n, "gen": n, "depth": n}: with `depth` tokens
(0 if that is missing) in the context, a prompt of n tokens, then n tokens decoded greedily, one by
one. Answers go to stdout: {"prompt_ns", "gen_ns", "peak_bytes"}, times as the engine measures them
itself. The first line is {"load_ns", "first_token_ns", "ready_at", "first_token_at", "peak_bytes",
"backend", "version", "cache_type", "batch", "gpu_layers"} or {"error"}; "..._at" are moments of
the system's monotonic clock, in nanoseconds. stderr is the engine's own log.
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

    def run(self, prompt: list[int], gen: int, depth: int = 0) -> tuple[int, int]:
        """Nanoseconds of a prompt, and of `gen` steps after it.

        The first `depth` of the prompt's token ids lie in the context before.
        """
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

        model = Model(path, device, threads, ctx, gpu_layers=gpu_layers)
        self.session = model.session(ctx)
        placement = model.weights.placement
        self.gpu_layers = placement.layers if placement else 0
        self.depth = 0  # so many tokens of the context are kept between runs
        self.backend = f"gwq-{isa() if device == 'cpu' else 'cuda'}"
        self.batch = (self.session.batch, self.session.batch)
        self.cache_type = self.session.weights.cache_type.name

    def run(self, prompt: list[int], gen: int, depth: int = 0) -> tuple[int, int]:
        """See `Engine.run`."""
        from gwq_export.runtime.logits import best

        if self.depth != depth:
            self.session.rewind()
            if depth:
                self.session.forward(prompt[:depth])
            self.depth = depth
        self.session.rewind(depth)
        start = time.perf_counter_ns()
        (logits,) = self.session.scores(prompt[depth:], best=1)
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

    def run(self, prompt: list[int], gen: int, depth: int = 0) -> tuple[int, int]:
        """See `Engine.run`. Raises GwqError when llama.cpp computed something else."""
        if depth:
            # a token that does not come next in the prompt: so the cache holds `depth` of it
            other = prompt[depth] - 1 if prompt[depth] else 1
            self._ask([*prompt[:depth], other], 0, True)
        answer = self._ask(prompt, gen, depth > 0)
        timings = answer.get("timings")
        if (
            timings is None
            or timings["predicted_n"] != gen + 1
            or timings["prompt_n"] != len(prompt) - depth
        ):
            raise GwqError(
                f"llama.cpp did not compute what it was asked to: {json.dumps(answer)[:300]}"
            )
        return int(timings["prompt_ms"] * 1e6), int(timings["predicted_ms"] * 1e6)

    def _ask(self, prompt: list[int], gen: int, keep: bool) -> dict[str, Any]:
        """The server's answer. keep: what its cache holds of the prompt is not computed again."""
        request = {
            "prompt": prompt,
            "n_predict": gen + 1,  # the first token is the prompt's
            "temperature": 0,
            "samplers": [],
            "ignore_eos": True,
            "cache_prompt": keep,
        }
        return self.server.handle_completions(request)


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
    ready_at = time.monotonic_ns()
    opened.run(ids[:1], 0)
    first = time.perf_counter_ns() - start
    first_token_at = time.monotonic_ns()
    opened.run(ids[:1], min(FIRST_TOKENS, ctx - 1))
    send(
        {
            "load_ns": load,
            "first_token_ns": first,
            "ready_at": ready_at,
            "first_token_at": first_token_at,
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
        depth = command.get("depth", 0)
        prompt = ids[: depth + command["prompt"]]
        prompt_ns, gen_ns = opened.run(prompt, command["gen"], depth)
        send({"prompt_ns": prompt_ns, "gen_ns": gen_ns, "peak_bytes": peak_rss()})


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
