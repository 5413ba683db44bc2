"""One engine with one file in a process of its own: python -m gwq_export.bench.worker ENGINE FILE
THREADS CTX

Commands come as lines of JSON on stdin, {"prompt": n, "gen": n}: a prompt of n tokens in an empty
context, then n tokens decoded greedily, one by one. Answers go to stdout: {"prompt_ns", "gen_ns"},
what the engine measured itself. The first line is {"load_ns", "first_token_ns", "peak_bytes",
"backend", "version", "cache_type", "batch"} or {"error"}. stderr is the engine's own log.
"""

import ctypes
import importlib
import json
import os
import random
import sys
import time

from gwq_export.errors import GwqError
from gwq_export.machine import peak_rss
from gwq_export.version import __version__

FIRST_TOKENS = 8  # decoded before memory is looked at


class Gwq:
    """The runtime of this package."""

    module, version = "gwq_export.runtime.model", __version__

    def __init__(self, path, threads, ctx):
        from gwq_export.native.library import isa
        from gwq_export.runtime.model import Model
        from gwq_export.runtime.session import BATCH

        self.session = Model(path, threads=threads).session(ctx)
        self.backend, self.batch, self.cache_type = (
            f"gwq-{isa()}",
            (BATCH, BATCH),
            self.session.cache_type.name,
        )

    def run(self, prompt, gen):
        """Nanoseconds of the prompt (token ids) and of `gen` steps."""
        self.session.rewind()
        start = time.perf_counter_ns()
        logits = self.session.forward(prompt)
        middle = time.perf_counter_ns()
        for _ in range(gen):
            logits = self.session.forward([int(logits.argmax())])
        return middle - start, time.perf_counter_ns() - middle


class LlamaCpp:
    """llama.cpp as PyPI's xllamacpp has it: its server, in this process. repack: may it
    rearrange weights in memory.
    """

    module, backend, cache_type, repack = "xllamacpp", "llama.cpp", "f16", True

    def __init__(self, path, threads, ctx):
        import xllamacpp

        self.version = f"xllamacpp {xllamacpp.__version__}"
        p = xllamacpp.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers = (
            path,
            ctx + 1,
            1,
            0,
        )  # its server wants room for a token after the prompt
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        p.warmup = p.fit_params = False
        p.cache_ram_mib, p.no_extra_bufts = 0, not self.repack
        p.verbosity = 4  # tells whether it repacks
        self.batch = p.n_batch, p.n_ubatch
        try:
            self.server = xllamacpp.Server(p)
        except RuntimeError as e:
            raise GwqError(f"{path}: llama.cpp cannot load it ({e})") from None

    def run(self, prompt, gen):
        request = {
            "prompt": prompt,
            "n_predict": gen + 1,
            "temperature": 0,
            "samplers": [],
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = self.server.handle_completions(request)
        if (
            "timings" not in answer
            or answer["timings"]["predicted_n"] != gen + 1
            or answer["timings"]["prompt_n"] != len(prompt)
        ):
            raise GwqError(
                f"llama.cpp did not compute what it was asked to: {json.dumps(answer)[:300]}"
            )
        return int(answer["timings"]["prompt_ms"] * 1e6), int(
            answer["timings"]["predicted_ms"] * 1e6
        )  # the first token is the prompt's


class LlamaCppAsStored(LlamaCpp):
    backend, repack = "llama.cpp, no repack", False


ENGINES = {"gwq": Gwq, "llama.cpp": LlamaCpp, "llama.cpp, no repack": LlamaCppAsStored}


def serve(engine, path, threads, ctx, vocab, commands, send):
    """Open the file, send what it took, and answer every line of `commands`."""
    ids = random.Random(0).choices(range(vocab), k=ctx)
    importlib.import_module(ENGINES[engine].module)
    start = time.perf_counter_ns()
    opened = ENGINES[engine](path, threads, ctx)
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
        }
    )
    for line in commands:
        command = json.loads(line)
        prompt_ns, gen_ns = opened.run(ids[: command["prompt"]], command["gen"])
        send({"prompt_ns": prompt_ns, "gen_ns": gen_ns})


def main():
    engine, path, threads, ctx, vocab = sys.argv[1:]
    ctypes.CDLL(None).prctl(
        1, 9
    )  # PR_SET_PDEATHSIG, SIGKILL: a stopped process must not outlive its parent
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print

    def send(answer):
        print(json.dumps(answer), file=out)

    try:
        serve(engine, path, int(threads), int(ctx), int(vocab), sys.stdin, send)
    except GwqError as e:
        send({"error": str(e)})
    sys.stdout.flush()


if __name__ == "__main__":
    main()
