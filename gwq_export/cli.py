"""The entry points of the commands.

    python -m gwq_export.cli export|run|eval|bench|info ...

does the same as gwq-export, gwq-run, ...
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from gwq_export.commands.console import run_command
from gwq_export.machine import default_threads

# name of the command -> module of gwq_export.commands
COMMANDS = {
    "export": "export",
    "run": "run",
    "eval": "evaluate",
    "bench": "bench",
    "info": "info",
}


def main(command: str, argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argv: None for sys.argv."""
    # numpy's OpenBLAS starts threads when it is imported: one for each CPU of the machine, though a
    # container may grant fewer
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(default_threads()))
    module = import_module(f"gwq_export.commands.{COMMANDS[command]}")
    return run_command(f"gwq-{command}", module.parser, module.command, argv)


def export() -> NoReturn:
    """gwq-export."""
    sys.exit(main("export"))


def run() -> NoReturn:
    """gwq-run."""
    sys.exit(main("run"))


def evaluate() -> NoReturn:
    """gwq-eval."""
    sys.exit(main("eval"))


def bench() -> NoReturn:
    """gwq-bench."""
    sys.exit(main("bench"))


def info() -> NoReturn:
    """gwq-info."""
    sys.exit(main("info"))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m gwq_export.cli {'|'.join(COMMANDS)} ...", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
