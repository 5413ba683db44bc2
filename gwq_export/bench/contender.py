"""The side that drives `worker`: every engine with its file is a process, stopped while another one
is timed.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile

from gwq_export.errors import GwqError
from gwq_export.format.foreign import foreign_type
from gwq_export.format.header import GGML_NAMES
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES

PEER = "llama.cpp"


def have_peer():
    return importlib.util.find_spec("xllamacpp") is not None


class Contender:
    """An engine and an open file, in a process of its own that runs only while it is asked. Raises
    GwqError.

    facts: what it sent when it was ready (see `worker`).
    """

    def __init__(self, engine, reader, threads, ctx):
        self.engine, self.reader = engine, reader
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        vocab = reader.tensors["token_embd.weight"].shape[0]
        command = [
            sys.executable,
            "-m",
            "gwq_export.bench.worker",
            engine,
            reader.path,
            *map(str, (threads, ctx, vocab)),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, prompt, gen):
        """Seconds of a prompt of `prompt` tokens and of `gen` decoded ones."""
        with contextlib.suppress(
            ProcessLookupError, BrokenPipeError
        ):  # it has ended: then there is no answer
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.stdin.write(json.dumps({"prompt": max(1, prompt), "gen": gen}) + "\n")
        answer = self._answer()
        return answer["prompt_ns"] / 1e9, answer["gen_ns"] / 1e9

    def _answer(self):
        line = self._process.stdout.readline()
        answer = (
            json.loads(line)
            if line
            else {"error": f"{self.reader.path}: {self.engine} ended ({self.log()[-300:]})"}
        )
        if "error" in answer:
            raise GwqError(answer["error"])
        os.kill(self._process.pid, signal.SIGSTOP)
        return answer

    def log(self):
        """What the engine has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def repacks(self):
        """llama.cpp only: whether it keeps weights rearranged for this CPU."""
        return "CPU_REPACK" in self.log()

    def close(self):
        self._process.kill()
        self._process.communicate()
        self._log.close()


MISSING = 'this takes llama.cpp, which is not installed: pip install "gwq-export[interop]"'


def _other_type(id):
    if str(id) in GGML_NAMES and not have_peer():
        raise GwqError(MISSING)
    return foreign_type(id)


def open_file(path):
    """A Reader of any GGUF file that some engine here runs, for its header. Raises GwqError."""
    reader = Reader(path, _other_type)
    if "token_embd.weight" not in reader.tensors:
        raise GwqError(f"{path}: no matrix token_embd.weight; this is not a language model file")
    return reader


def engines(reader):
    """Which engines run an open file: ours, if it has our types only (and none of the ggml types
    that it computes in plain C); llama.cpp, if it is installed and the file has none of our tiles.
    Raises GwqError when there is none.
    """
    types = [t.type for t in reader.tensors.values()]
    ours = ["gwq"] if all(t.name in TYPES and not t.levels for t in types) else []
    found = ours + ([PEER] if have_peer() and not any(t.bits for t in types) else [])
    if not found:
        raise GwqError(f"{reader.path}: {MISSING}")
    return found


def start(reader, names, threads, ctx):
    """A Contender for each engine; llama.cpp also without repacking where it repacks. All are
    closed if one fails.
    """
    made = []
    try:
        for name in names:
            made.append(Contender(name, reader, threads, ctx))
            if name == PEER and made[-1].repacks:
                made.append(Contender(f"{PEER}, no repack", reader, threads, ctx))
    except BaseException:
        for contender in made:
            contender.close()
        raise
    return made
