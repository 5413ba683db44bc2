"""The arguments of the commands: a parser with groups and examples, and what they share."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from gwq_export.machine import MAX_THREADS
from gwq_export.version import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help has groups and examples.

    text: what the command does. examples: lines of a shell, shown after the options. memory: which
    options help where memory is short.
    """

    def __init__(
        self, prog: str, text: str, examples: Sequence[str] = (), memory: str = ""
    ) -> None:
        super().__init__(
            prog=prog,
            description=text,
            epilog="\n  ".join(["examples:", *examples]) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        self.memory = memory
        # its dest and metavar; whether it must be there; the flag that spares it
        self._model: tuple[str, str, bool, str | None] | None = None

    def add_model(
        self,
        dest: str,
        metavar: str,
        help: str | None = None,
        required: bool = True,
        spared_by: str | None = None,
    ) -> None:
        """Add the argument that names the model: by its place, or after -m as in llama.cpp.

        spared_by: dest of a flag with which the command needs no model.
        """
        self._model = dest, metavar, required, spared_by
        self.usage = f"%(prog)s {metavar} [options]"
        text = f"{help or 'the file'}; -m {metavar} does the same"
        self.add_argument(dest, nargs="?", metavar=metavar, help=text)
        self.add_argument("-m", "--model", dest="_m", metavar=metavar, help=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's; the model of -m gets its own name."""
        found, others = super().parse_known_args(args, namespace)
        if self._model is not None:
            dest, metavar, required, spared_by = self._model
            if spared_by and getattr(found, spared_by):
                required = False
            named = found.__dict__.pop("_m")
            if named is not None and getattr(found, dest) is not None:
                self.error(f"{metavar} and -m both name the model: give one")
            if named is not None:
                setattr(found, dest, named)
            if required and getattr(found, dest) is None:
                self.error(f"{metavar} is missing: give it, or -m {metavar}")
        return found, others

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_common(group: Any) -> None:
    """Add what all commands have to a parser or to a group of it."""
    group.add_argument(
        "--json", action="store_true", help="one JSON object as the last line of stdout"
    )
    group.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    group.add_argument("-h", "--help", action="help", help="show this and exit")


def add_threads(group: Any) -> None:
    """Add the flag -t."""
    group.add_argument(
        "-t",
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads (default: as many CPUs as this process may use)",
    )


def add_device(group: Any) -> None:
    """Add the flags --device and --gpu-layers."""
    group.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (default), or cuda (cuda:N), a GPU",
    )
    group.add_argument(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        dest="gpu_layers",
        type=int,
        metavar="N",
        help="with --device cuda: the head and the last N - 1 blocks run there, the others on the"
        " CPU (default: as many as fit)",
    )


def add_base(group: Any) -> None:
    """Add the flag --base."""
    group.add_argument(
        "--base",
        action="store_true",
        help="of a bridge file, only what llama.cpp runs: without its deltas",
    )


def lengths(text: str) -> list[int]:
    """Argument type: numbers of tokens, 0 or more, separated by commas."""
    try:
        values = [int(t) for t in text.split(",")]
    except ValueError:
        values = [-1]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers of tokens, such as 16,512")
    return values


def thread_counts(text: str) -> list[int]:
    """Argument type: thread counts from 1 to 256, separated by commas."""
    try:
        values = [int(t) for t in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1 or max(values) > MAX_THREADS:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give thread counts from 1 to {MAX_THREADS}, such as 1,2"
        )
    return values
