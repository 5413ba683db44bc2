"""A process that makes mutated files and takes each of them through the commands.

    python -m tests.fuzz.worker FOLDER FIRST COUNT

writes a line of JSON on stdout for each file, [number, outcome, words]. Outcomes: "runs",
"refused", and for findings "exception", "status", "memory". Where the process ends, or is ended for
a file that takes more than SECONDS of processor time, the file is the one after the last line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.gguf import File, parse

SECONDS = 5.0  # of processor time that a file may take
MEMORY = 2 << 30  # bytes beside those that the process has at first
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n 1 é"}]
FINE = ("runs", "refused")  # outcomes that are no findings
SHORT = "not enough memory"  # in what a command says


def bases(folder: str | Path) -> list[File]:
    """The files to begin with, in the order of their names."""
    return [parse(path.read_bytes()) for path in sorted(Path(folder).glob("*.gguf"))]


def file_of(number: int, files: Sequence[File]) -> bytes:
    """The mutated file of a number; the same one every time."""
    from tests.fuzz.mutations import mutated

    return mutated(files[number % len(files)], random.Random(f"file {number}"))


def told(number: int, words: str) -> None:
    """Raise AssertionError unless a message is one line of sane length."""
    if not words.isprintable() or not 0 < len(words) < 1200:
        raise AssertionError(f"file {number}: not one line: {words!r}")


def check(number: int, path: str) -> tuple[str, str]:
    """`gwq-info --check`: (outcome, what it said)."""
    from gwq_export.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main("info", [path, "--check"])
    text = said.getvalue().strip("\n")
    if status == 2:
        last = text.splitlines()[-1] if text else ""
        told(number, last)
        if not last.startswith("gwq-info: error: "):
            return "status", text
        return "memory" if SHORT in last else "refused", last
    return ("runs", "") if status == 0 else ("status", f"{status}: {text}")


def run(number: int, path: str) -> tuple[str, str]:
    """`open_gguf`, `load`, a prompt, one decode step."""
    import gwq_export
    from gwq_export.errors import GwqError, NoMemory

    try:
        with gwq_export.open_gguf(path) as reader:
            for name in reader.metadata:
                reader.metadata[name]
        model = gwq_export.load(path, threads=1)
        session = model.session()
        ids = [1, 2, 3]
        with contextlib.suppress(GwqError):  # no tokenizer, or no template: there are still ids
            ids = model.prompt_ids("Hi 12\n", chat=False)[:5] or ids
            model.tokenizer.decode(ids)
            model.prompt_ids(MESSAGES, chat=True)
        logits = session.forward(ids)
        session.forward([int(logits[-1].argmax())])
        return "runs", ""
    except NoMemory as e:
        return "memory", str(e)
    except GwqError as e:
        told(number, str(e))
        return "refused", str(e)


def outcome_of(number: int, path: str) -> tuple[str, str]:
    """What becomes of a file: of `check` if that is a finding, or of `run`."""
    try:
        checked = check(number, path)
        return run(number, path) if checked[0] in FINE else checked
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "exception", traceback.format_exc()


def limit_memory() -> None:
    """Let this process take MEMORY more than it has."""
    with open("/proc/self/statm") as f:
        size = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def main() -> None:
    """The command line."""
    folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    errors = os.fdopen(os.dup(2), "w", buffering=1)
    sys.excepthook = lambda *e: traceback.print_exception(*e, file=errors)  # a fault of this one
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what the commands print, and panics of a library
    os.dup2(null, 2)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    files = bases(folder)
    path = f"{folder}/{os.getpid()}.fuzz"
    outcome_of(0, str(sorted(Path(folder).glob("*.gguf"))[0]))  # what is loaded once
    limit_memory()
    for number in range(first, first + count):
        data = file_of(number, files)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # a new one: the last one may be mapped
        Path(path).write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
        outcome, words = outcome_of(number, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines.write(json.dumps([number, outcome, words]) + "\n")
    os.unlink(path)


if __name__ == "__main__":
    main()
