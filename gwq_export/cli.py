"""The entry points of the commands.

Also `python -m gwq_export.cli export|run|eval|bench|info ...`.
"""

import sys
from importlib import import_module

from gwq_export.commands.console import run_command

COMMANDS = {
    "export": "export",
    "run": "run",
    "eval": "evaluate",
    "bench": "bench",
    "info": "info",
}  # name -> module of commands/


def main(command, argv=None):
    """Run one command; returns the exit status."""
    module = import_module(f"gwq_export.commands.{COMMANDS[command]}")
    return run_command(f"gwq-{command}", module.parser, module.command, argv)


def export():
    sys.exit(main("export"))


def run():
    sys.exit(main("run"))


def evaluate():
    sys.exit(main("eval"))


def bench():
    sys.exit(main("bench"))


def info():
    sys.exit(main("info"))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python -m gwq_export.cli {'|'.join(COMMANDS)} ...", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
