"""Streams that are closed or full, and signals that stop a command: nothing is left unsaid."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

import pytest

from gwq_export.commands.arguments import Parser, add_common
from gwq_export.commands.console import run_command
from tests.support.paths import DATA

GOLDEN = sorted((DATA / "golden").glob("*.gguf"))[0]


def shell(words, **options):
    program = shlex.join([sys.executable, "-m", "gwq_export.cli"])
    return subprocess.run(
        f"{program} {words}", shell=True, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    done = shell(f"info {shlex.quote(str(GOLDEN))} --json {closed}")
    assert done.returncode == 0 and done.stderr == ""
    assert bool(done.stdout) == (">&-" not in closed.split())


def test_a_closed_stdout_and_a_mistake():
    done = shell("info none.gguf >&-")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert shell("info none.gguf >&- 2>&-").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_stdout(more):
    done = shell(f"info {shlex.quote(str(GOLDEN))} {more} > /dev/full")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device: output" in done.stderr
    assert shell("info none.gguf > /dev/full 2> /dev/full").returncode == 2


def test_a_reader_that_goes_away():
    done = shell(f"info {shlex.quote(str(GOLDEN))} --json | true")
    assert done.stderr == ""


@pytest.mark.parametrize("variables", [{}, {"LC_ALL": "C"}, {"TZ": "nowhere/at all"}])
def test_without_home_and_locale(variables):
    """A process of a container that has no HOME, no PATH and no locale."""
    kept = {key: os.environ[key] for key in ("PYTHONPATH", "VIRTUAL_ENV") if key in os.environ}
    done = shell(f"info {shlex.quote(str(GOLDEN))} --check", env=kept | variables)
    assert done.returncode == 0, done.stderr


def parser():
    p = Parser("gwq-x", "")
    add_common(p)
    return p


@contextlib.contextmanager
def as_usual(number):
    """The handler that a fresh Python has."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize(
    "number, said",
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "interrupted by SIGTERM"),
        (signal.SIGHUP, "interrupted by SIGHUP"),
    ],
)
@pytest.mark.parametrize("after", ["nothing", "raises", "goes on", "reports"])
def test_signals_stop_a_command_in_one_line(capsys, number, said, after):
    """Whatever C code makes of the exception."""

    def work(args, progress):
        if after == "nothing":
            signal.raise_signal(number)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        if after == "raises":
            raise ValueError("could not determine the shape")
        if after == "reports":
            progress("phase", 1, 2)
        return {}

    with as_usual(number):
        assert run_command("gwq-x", parser, work, ["--json"]) == 128 + number
        assert signal.getsignal(number) is not None
    out, err = capsys.readouterr()
    assert out == "" and err == f"gwq-x: {said}\n"


def test_a_handler_of_the_caller_stays(capsys):
    came = []

    def work(args, progress):
        signal.raise_signal(signal.SIGTERM)
        return {"a": 1}

    before = signal.signal(signal.SIGTERM, lambda *args: came.append(args))
    try:
        assert run_command("gwq-x", parser, work, []) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(came) == 1
