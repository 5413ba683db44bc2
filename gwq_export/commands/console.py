"""What every command shares: argument types, the progress bar, and what becomes of an exception.

Exit status: 0 success, 2 what the user can mend (one line on stderr), 130 after Ctrl-C, 1 a fault
of ours.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback

from gwq_export.errors import GwqError
from gwq_export.version import __version__


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def make_parser(prog, text):
    p = Parser(prog=prog, description=text)
    p.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    p.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    return p


class Progress:
    """Reports on stderr, by phase, with the time that is left of it. style: one of STYLES."""

    STYLES = ("bar", "jsonl", "none")

    def __init__(self, check, style="bar"):
        self.phase = self.bar = None
        self.check, self.style = check, style

    def __call__(self, phase, done, total):
        self.check()
        if self.style != "none":
            getattr(self, f"_{self.style}")(phase, done, total)

    def _bar(self, phase, done, total):
        from tqdm import tqdm

        if phase != self.phase:
            self.close()
            every = (
                0.1 if sys.stderr.isatty() else 10
            )  # seconds between updates: a log file wants few
            options = {
                "file": sys.stderr,
                "mininterval": every,
                "unit_scale": True,
                "unit": "",
                "leave": False,
                "initial": done,
            }
            self.phase, self.bar = phase, tqdm(total=total, desc=phase, **options)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _jsonl(self, phase, done, total):
        """seconds: of this phase so far; eta: seconds that are left of it, null before there is
        anything to tell it from.
        """
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.start, self.first = phase, now, done
        seconds, made = now - self.start, done - self.first
        eta = round(seconds * (total - done) / made, 3) if made > 0 else None
        line = {
            "phase": phase,
            "done": done,
            "total": total,
            "seconds": round(seconds, 3),
            "eta": eta,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
        self.phase = self.bar = None


def add_base(p):
    p.add_argument(
        "--base",
        action="store_true",
        help="of a bridge file, only what llama.cpp runs: without its deltas",
    )


def thread_counts(text):
    try:
        values = [int(t) for t in text.split(",")]
    except ValueError:
        values = [0]
    if min(values) < 1 or max(values) > 256:
        raise argparse.ArgumentTypeError(f"{text!r}: give thread counts from 1 to 256, such as 1,2")
    return values


def size(n):
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.2f} MiB"


class _Interrupt:
    """Ctrl-C as a KeyboardInterrupt that nothing can swallow for good.

    C code in which it strikes may turn it into an error of its own (torch's storage code does) or
    drop it; so what was asked for is remembered, looked up at the next progress report, and
    outranks whatever exception comes of it.
    """

    asked = False

    def __enter__(self):
        try:
            ignored = (
                signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            )  # a background job, or a caller's own
            self._before = None if ignored else signal.signal(signal.SIGINT, self._strike)
        except ValueError:  # not the main thread
            self._before = None
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _strike(self, *_):
        self.asked = True
        raise KeyboardInterrupt

    def check(self):
        if self.asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def ctrl_c_asks():
    """In this block the first Ctrl-C only makes the function it gives return True; a second one
    strikes as it did before.
    """
    asked, before = [], signal.getsignal(signal.SIGINT)

    def strike(*args):
        if asked:
            before(*args)
        asked.append(True)

    try:
        replaced = callable(before) and signal.signal(
            signal.SIGINT, strike
        )  # not where it is ignored, as in a background job
    except ValueError:  # not the main thread
        replaced = False
    try:
        yield lambda: bool(asked)
    finally:
        if replaced:
            signal.signal(signal.SIGINT, before)


def run_command(prog, parser, command, argv=None):
    """Parse `argv`, run `command(args, progress) -> dict`, print it if asked to; returns the exit
    status.
    """
    logging.basicConfig(stream=sys.stderr, format=f"{prog}: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace"
            )  # a terminal that cannot show a character shows a question mark
    with _Interrupt() as interrupt:
        progress = Progress(interrupt.check)
        try:
            args = parser().parse_args(argv)
            progress.style = getattr(args, "progress", progress.style)
            result = command(args, progress)
            interrupt.check()
            if args.json:
                print(json.dumps(result, default=_plain))
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # the reader of our output went away
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (KeyboardInterrupt, Exception) as e:
            progress.close()
            if getattr(e, "result", None) and args.json:
                print(json.dumps(e.result, default=_plain))
            sys.stdout.flush()
            status, message = (130, "interrupted") if interrupt.asked else _verdict(e)
            if status == 1:
                traceback.print_exc()
            print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
            return status


def _verdict(e):
    """An exception -> (exit status, the line to print)."""
    if isinstance(e, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(e, GwqError):
        return 2, f"error: {e}"
    if isinstance(e, MemoryError):
        return (
            2,
            "error: not enough memory: close other programs, or use fewer --samples or a smaller --ctx",
        )
    if isinstance(e, OSError):  # no space, no permission, a name too long, ...
        return (
            2,
            f"error: {e.strerror or e}: {e.filename or 'output'}; check the path, its permissions and the free space",
        )
    return 1, "internal error, please report it with the lines above"


def _plain(value):
    return (
        value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else list(value)
    )
