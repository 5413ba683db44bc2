"""Processes that are timed in turn, each stopped while others are: engines with their files.

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
import time
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


class Stopped:
    """A process of this Python that answers lines of JSON, and runs only while it is asked.

    arguments: of python. checkout: folder of another checkout of the repository, whose package it
    imports; None: this one. name: what it is called when it ends by itself. started: when, by
    `time.monotonic_ns`. facts: what it sent when it was ready. Raises GwqError.
    """

    def __init__(self, arguments: Sequence[str], name: str, checkout: Path | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        self.started = time.monotonic_ns()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
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

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command. Raises GwqError if that is {"error"} or there is none."""
        # a process that has ended takes no command: then there is no answer either
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            os.kill(self._process.pid, signal.SIGCONT)
            self._commands.write(json.dumps(command) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise GwqError(f"{self.name} ended ({self.log()[-300:]})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GwqError(answer["error"])
        os.kill(self._process.pid, signal.SIGSTOP)
        return answer

    def log(self) -> str:
        """What the process has printed to stderr."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Contender(Stopped):
    """An engine and an open file.

    facts: what it sent when it was ready (see `worker`), with "ready_ns" and "start_ns": from the
    start of its process until the model was ready and until the first token. checkout: folder of
    another checkout of the repository, whose worker is to run; None: this package's. device,
    gpu_layers: of our own engine, as for `gwq_export.load`. Raises GwqError.
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
        vocab = reader.tensors["token_embd.weight"].shape[0]
        path = os.path.abspath(reader.path)
        arguments = [engine, path, str(threads), str(ctx), str(vocab)]
        if device != "cpu" or gpu_layers is not None:
            arguments += [device, "" if gpu_layers is None else str(gpu_layers)]
        super().__init__(
            ["-m", "gwq_export.bench.worker", *arguments], f"{reader.path}: {engine}", checkout
        )
        for name, moment in (("ready_ns", "ready_at"), ("start_ns", "first_token_at")):
            if moment in self.facts:  # another checkout may not send it
                self.facts[name] = self.facts[moment] - self.started

    def run(self, prompt: int, gen: int, depth: int = 0) -> tuple[float, float]:
        """Seconds of a prompt of `prompt` tokens and of `gen` decoded ones.

        depth: tokens in the context before them.
        """
        command = {"prompt": max(1, prompt), "gen": gen} | ({"depth": depth} if depth else {})
        answer = self.ask(command)
        self.facts["peak_bytes"] = answer.get("peak_bytes", self.facts["peak_bytes"])
        return answer["prompt_ns"] / 1e9, answer["gen_ns"] / 1e9

    @property
    def repacks(self) -> bool:
        """llama.cpp only: whether it keeps weights rearranged for this CPU."""
        return "CPU_REPACK" in self.log()


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
