"""Engines with their files, each in a process of its own that is stopped while others are timed.

This is the side that drives `worker`.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from gwq_export.errors import GwqError
from gwq_export.format.header import GGML_TYPES
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES, TensorType

PEER = "llama.cpp"
MISSING = 'this takes llama.cpp, which is not installed: pip install "gwq-export[interop]"'


def have_peer() -> bool:
    """Whether llama.cpp is installed, as PyPI's xllamacpp."""
    return importlib.util.find_spec("xllamacpp") is not None


class Contender:
    """An engine and an open file, in a process of its own that runs only while it is asked.

    facts: what it sent when it was ready (see `worker`). checkout: folder of another checkout of
    the repository, whose worker is to run; None: this package's. device, gpu_layers: of our own
    engine, as for `gwq_export.load`. Raises GwqError.
    """

    def __init__(
        self,
        engine: str,
        reader: Reader,
        threads: int,
        ctx: int,
        checkout: Path | None = None,
        device: str = "cpu",
        gpu_layers: int | None = None,
    ) -> None:
        self.engine = engine
        self.reader = reader
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        vocab = reader.tensors["token_embd.weight"].shape[0]
        path = os.path.abspath(reader.path)
        arguments = [engine, path, str(threads), str(ctx), str(vocab)]
        if device != "cpu" or gpu_layers is not None:
            arguments += [device, "" if gpu_layers is None else str(gpu_layers)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gwq_export.bench.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)} if checkout else None,
        )
        assert self._process.stdin and self._process.stdout
        self._commands = self._process.stdin
        self._answers = self._process.stdout
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, prompt: int, gen: int) -> tuple[float, float]:
        """Seconds of a prompt of `prompt` tokens and of `gen` decoded ones."""
        # a process that has ended takes no command: then there is no answer either
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            os.kill(self._process.pid, signal.SIGCONT)
            self._commands.write(json.dumps({"prompt": max(1, prompt), "gen": gen}) + "\n")
        answer = self._answer()
        return answer["prompt_ns"] / 1e9, answer["gen_ns"] / 1e9

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise GwqError(f"{self.reader.path}: {self.engine} ended ({self.log()[-300:]})")
        answer = json.loads(line)
        if "error" in answer:
            raise GwqError(answer["error"])
        os.kill(self._process.pid, signal.SIGSTOP)
        return answer

    def log(self) -> str:
        """What the engine has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def repacks(self) -> bool:
        """llama.cpp only: whether it keeps weights rearranged for this CPU."""
        return "CPU_REPACK" in self.log()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


def _other_type(id: int) -> TensorType | None:
    if id in GGML_TYPES and not have_peer():
        raise GwqError(MISSING)
    return GGML_TYPES.get(id)


def open_file(path: str | PathLike[str]) -> Reader:
    """A Reader of any GGUF file that some engine here runs, for its header. Raises GwqError."""
    reader = Reader(path, _other_type)
    if "token_embd.weight" not in reader.tensors:
        raise GwqError(f"{path}: no matrix token_embd.weight; this is not a language model file")
    return reader


def engines(reader: Reader) -> list[str]:
    """Names of the engines that run an open file. Raises GwqError when there is none.

    Ours runs it if it has our types only, and none of the ggml types that ours computes in plain C;
    llama.cpp, if it is installed and the file has none of our tiles.
    """
    types = [t.type for t in reader.tensors.values()]
    names = []
    if all(t.name in TYPES and not t.levels for t in types):
        names.append("gwq")
    if have_peer() and not any(t.bits for t in types):
        names.append(PEER)
    if not names:
        raise GwqError(f"{reader.path}: {MISSING}")
    return names


def start(
    reader: Reader,
    names: Sequence[str],
    threads: int,
    ctx: int,
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> list[Contender]:
    """A Contender for each engine; llama.cpp also without repacking where it repacks.

    Raises GwqError if one fails, after closing the others.
    """
    made: list[Contender] = []
    try:
        for name in names:
            made.append(Contender(name, reader, threads, ctx, None, device, gpu_layers))
            if name == PEER and made[-1].repacks:
                made.append(Contender(f"{PEER}, no repack", reader, threads, ctx))
    except BaseException:
        for contender in made:
            contender.close()
        raise
    return made
