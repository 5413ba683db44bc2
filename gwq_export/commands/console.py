"""What every command shares: the progress bar, and what becomes of an exception.

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
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Any

from gwq_export.commands.arguments import Parser
from gwq_export.errors import GwqError, short_of_memory


class Progress:
    """Reports progress on stderr, phase by phase, with the time that is left of the phase.

    check: called at every report; may raise. style: one of STYLES.
    """

    STYLES = ("bar", "jsonl", "none")

    def __init__(self, check: Callable[[], None], style: str = "bar") -> None:
        self.check = check
        self.style = style
        self.phase: str | None = None
        self.bar: Any = None  # tqdm's

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of the phase are finished."""
        self.check()
        if self.style != "none":
            getattr(self, f"_{self.style}")(phase, done, total)

    def _bar(self, phase: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if phase != self.phase:
            self.close()
            self.phase = phase
            self.bar = tqdm(
                total=total,
                desc=phase,
                file=sys.stderr,
                # seconds between updates: a log file wants few
                mininterval=0.1 if sys.stderr.isatty() else 10,
                unit_scale=True,
                unit="",
                leave=False,
                initial=done,
            )
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def _jsonl(self, phase: str, done: int, total: int) -> None:
        """Print a line of JSON.

        seconds: of this phase so far; eta: seconds that are left of it, null before there is
        anything to tell it from.
        """
        now = time.monotonic()
        if phase != self.phase:
            self.phase = phase
            self.start = now
            self.first = done
        seconds = now - self.start
        made = done - self.first
        eta = round(seconds * (total - done) / made, 3) if made > 0 else None
        line = {
            "phase": phase,
            "done": done,
            "total": total,
            "seconds": round(seconds, 3),
            "eta": eta,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the phase."""
        if self.bar is not None:
            self.bar.close()
        self.phase = None
        self.bar = None


class _Interrupt:
    """Ctrl-C, and the signals of STOPS, as a KeyboardInterrupt that nothing can swallow for good.

    Where it strikes inside C code, that code may turn it into an error of its own (torch's storage
    code does) or drop it. So the request is remembered: the next progress report raises it again,
    and it outranks whatever exception comes of it.
    """

    # signal -> what Python does with it, where nobody has chosen otherwise
    STOPS = MappingProxyType(
        {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            **({signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}),
        }
    )

    asked: int | None = None  # the signal that struck

    def __enter__(self) -> "_Interrupt":
        self._before: dict[signal.Signals, Any] = {}
        for number, usual in self.STOPS.items():
            # leave a background job's SIG_IGN, or a caller's own handler, in its place
            if signal.getsignal(number) is usual:
                # outside the main thread signals cannot be handled
                with contextlib.suppress(ValueError):
                    self._before[number] = signal.signal(number, self._strike)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _strike(self, number: int, frame: object) -> None:
        self.asked = number
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed, or another signal has come."""
        if self.asked:
            raise KeyboardInterrupt

    @property
    def verdict(self) -> tuple[int, str] | None:
        """(exit status, the line to print) after a signal, as of a shell's command it ended."""
        if self.asked is None:
            return None
        name = signal.Signals(self.asked).name
        said = "" if self.asked == signal.SIGINT else f" by {name}"
        return 128 + self.asked, f"interrupted{said}"


@contextlib.contextmanager
def ctrl_c_asks() -> Iterator[Callable[[], bool]]:
    """In this block the first Ctrl-C only makes the function that is yielded return True.

    A second one strikes as it did before.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def strike(*args: Any) -> None:
        nonlocal asked
        if asked and callable(before):
            before(*args)
        asked = True

    replaced = False
    if callable(before):  # not where it is ignored, as in a background job
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, strike)
            replaced = True
    try:
        yield lambda: asked
    finally:
        if replaced:
            signal.signal(signal.SIGINT, before)


def run_command(
    prog: str,
    parser: Callable[[], Parser],
    command: Callable[[argparse.Namespace, Progress], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv`, run `command` and print its result with --json; returns the exit status."""
    logging.basicConfig(stream=sys.stderr, format=f"{prog}: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal that cannot show a character shows a question mark
            stream.reconfigure(errors="replace")
    with _streams_there(), _Interrupt() as interrupt:
        progress = Progress(interrupt.check)
        memory = ""
        try:
            arguments = parser()
            memory = arguments.memory
            args = arguments.parse_args(argv)
            progress.style = getattr(args, "progress", progress.style)
            result = command(args, progress)
            interrupt.check()
            if args.json:
                print(json.dumps(result, default=_plain))
            sys.stdout.flush()
            return 0
        except BrokenPipeError:  # the reader of our output went away
            _drop_output()
            return 0
        except (KeyboardInterrupt, Exception) as e:
            # another signal, and output that cannot be written, change nothing any more
            with contextlib.suppress(KeyboardInterrupt, OSError):
                progress.close()
                partial = getattr(e, "result", None)  # what was made and measured all the same
                if partial and args.json:
                    print(json.dumps(partial, default=_plain))
                sys.stdout.flush()
            status, message = interrupt.verdict or _verdict(e, memory)
            with contextlib.suppress(OSError):
                if status == 1:
                    traceback.print_exc()
                print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
            _drop_output()
            return status


def _drop_output() -> None:
    """Let what the streams still hold go: where it cannot be written, Python would say so at exit.

    Its exit status would then be 120 instead of ours.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # not a file, as in tests
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _streams_there() -> Iterator[None]:
    """Streams that were closed before the start (`>&-`) take what is written, and drop it.

    Python has None in their place; a file that is opened must not get their numbers, for libraries
    write to these.
    """
    with contextlib.ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                stream = stack.enter_context(open(os.devnull, mode, encoding="utf-8"))
                setattr(sys, name, stream)
                stack.callback(setattr, sys, name, None)
        yield


def say_where(model: Any) -> None:
    """Print which layers of a `runtime.model.Model` run on a device, if there is one."""
    if model.weights.where:
        print(f"[{model.weights.where}]", file=sys.stderr)


def explained(e: Exception, memory: str) -> str:
    """The sentence of a GwqError or a MemoryError. memory: options that help against the latter."""
    if not isinstance(e, MemoryError):
        return str(e)
    what = str(e) if isinstance(e, GwqError) else "not enough memory"
    return f"{what}: close other programs{memory and ', or '}{memory}"


def _verdict(e: BaseException, memory: str) -> tuple[int, str]:
    """An exception -> (exit status, the line to print). memory: see `Parser`."""
    if isinstance(e, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(e, GwqError):
        return 2, f"error: {explained(e, memory)}"
    if short_of_memory(e):
        return 2, f"error: {explained(MemoryError(), memory)}"
    if isinstance(e, OSError):  # no space, no permission, a name too long, ...
        return 2, (
            f"error: {e.strerror or e}: {e.filename or 'output'}; "
            "check the path, its permissions and the free space"
        )
    return 1, "internal error, please report it with the lines above"


def _plain(value: Any) -> Any:
    """What JSON has in the place of a numpy scalar or array, a tuple or the like."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return list(value)
