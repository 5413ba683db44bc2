"""gwq-run: prompts, options, mistakes, a chat from a pipe and on a terminal."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

import gwq_export
from tests.support.cli import assert_one_line, call, command
from tests.support.paths import REFERENCE


@pytest.fixture(scope="module")
def path(exported):
    return exported(REFERENCE, type="f32")[0]


@pytest.fixture(scope="module")
def model(path):
    return gwq_export.load(path, threads=1)


def run(capsys, path, *args):
    status, out, err = call(capsys, "run", path, "-t", 1, *args, "--json")
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def test_prompts_from_everywhere(path, capsys, tmp_path):
    (tmp_path / "p.txt").write_text("The city\n")
    wanted = run(capsys, path, "-p", "The city", "-n", 6)["text"]
    assert run(capsys, path, "-f", tmp_path / "p.txt", "-n", 6)["text"] == wanted
    done = command("run", path, "-p", "-", "-n", 6, "-t", 1, "--json", input="The city\n")
    assert json.loads(done.stdout.splitlines()[-1])["text"] == wanted
    assert (
        run(capsys, path, "-p", "The city", "-n", 6, "--system", "Shout.")["prompt_tokens"]
        > run(capsys, path, "-p", "The city", "-n", 6)["prompt_tokens"]
    )


def test_the_cache_may_hold_codes(path, capsys, exported, tiny):
    wanted = run(capsys, path, "-p", "The city", "--raw", "-n", 3)
    assert (
        run(capsys, path, "-p", "The city", "--raw", "-n", 3, "--cache-type", "q8_0")["text"]
        == wanted["text"]
    )
    narrow, _ = exported(tiny("llama"), type="f16")
    status, _, err = call(capsys, "run", narrow, "-p", "x", "--cache-type", "q8_0")
    assert status == 2 and "choose f16" in err


def test_sampling_is_reproducible(path, capsys):
    texts = [
        run(capsys, path, "-p", "The", "-n", 12, "--temp", 1, "--top-k", 0, "--seed", seed)["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_full_contexts_are_said(path, capsys, caplog):
    assert run(capsys, path, "-p", "The city", "--raw", "-n", 4, "--ctx", 16)["stop"] == "length"
    assert not caplog.text
    assert run(capsys, path, "-p", "The city", "--raw", "-n", -1, "--ctx", 16)["stop"] == "context"
    assert "context of 16 tokens is full" in caplog.text


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "no prompt"),
        (["-p", "x", "-f", "y"], "use one of them"),
        (["-f", "no/such/file"], "cannot be read"),
        (["-f", os.devnull], "prompt is empty"),
        (["-p", "x", "--stop", ""], "stop string is empty"),
        (["-p", "x", "--repeat-penalty", "0"], "above 0"),
        (["-p", "x", "--raw", "--system", "y"], "--raw"),
        (["-i", "--raw", "--system", "y"], "--raw"),
    ],
)
def test_run_mistakes(path, capsys, monkeypatch, args, words):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, _, err = call(capsys, "run", path, *args)
    assert_one_line("run", status, err, words)


def test_options_reach_the_model(path, model, capsys):
    plain = ["-p", "The city of", "--raw", "-n", 24]
    text = model.generate("The city of", n=24)
    cut = text[8:11]
    found = run(capsys, path, *plain, "--stop", cut)
    assert (found["text"], found["stop"]) == (text[: text.index(cut)], "string")
    for flag, value, off in (
        ("repeat_penalty", 1.5, 1.0),
        ("top_p", 0.3, 1.0),
        ("min_p", 0.5, 0.0),
    ):
        options = {"temp": 1.0, "seed": 1, "top_k": 0, flag: value}
        flags = [str(part) for k, v in options.items() for part in ("--" + k.replace("_", "-"), v)]
        wanted = model.generate("The city of", n=24, **options)
        assert (
            run(capsys, path, *plain, *flags)["text"]
            == wanted
            != model.generate("The city of", n=24, **options | {flag: off})
        ), flag
    done = command(
        "run",
        path,
        "-i",
        "--raw",
        "-n",
        24,
        "-t",
        1,
        "--stop",
        cut,
        "--json",
        input="The city of\n",
    )
    assert json.loads(done.stdout.splitlines()[-1])["stop"] == "string"


def test_a_chat_from_a_pipe(path):
    lines = (
        "Hello there\n\n/help\n/nonsense\nWhat?\n"
        + "word " * 600
        + "\n/clear\nHello there\n/exit\nnever\n"
    )
    done = command("run", path, "-i", "-n", 6, "-t", 1, "--ctx", 64, "--json", input=lines)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and result["turns"] == 3 and result["tokens"] == 18, done.stderr
    assert done.stdout.startswith(result["text"]) and done.stdout.count(result["text"]) == 2
    assert "there is no /nonsense" in done.stderr and "context holds 64" in done.stderr
    assert "> " not in done.stdout


class Terminal:
    """gwq-run with a pseudo-terminal of its own, so that control characters mean something."""

    def __init__(self, path, *args):
        self.master, slave = pty.openpty()

        def own():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        argv = [sys.executable, "-m", "gwq_export.cli", "run", str(path), "-t", "1", *args]
        env = os.environ | {"TERM": "dumb"}
        self.child = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own,
            env=env,
        )
        os.close(slave)
        self.seen = ""

    def send(self, text):
        os.write(self.master, text.encode())

    def wait(self, pattern, seconds=30):
        """What is printed up to a match of `pattern`."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the other side is closed
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def leaves_with(self, keys, seconds=60):
        """Exit status after `keys`; typed again now and then: what comes while a terminal changes
        its mode can get lost.
        """
        start = time.monotonic()
        typed = 0
        while self.child.poll() is None and (now := time.monotonic() - start) < seconds:
            with contextlib.suppress(OSError):
                if now >= 5 * typed:
                    self.send(keys)
                    typed += 1
                if select.select([self.master], [], [], 0.1)[0]:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.child.kill()
        os.close(self.master)
        return self.child.wait()


@pytest.mark.parametrize("end, status", [("/exit\n", 0), ("\x04", 0), ("\x03", 130)])
def test_chat_on_a_terminal(path, end, status):
    terminal = Terminal(path)
    terminal.wait("> ")
    terminal.send("Hello there\n")
    terminal.wait("(?s)Hello there\r\n.{20}")  # the answer goes on for long, in pieces
    terminal.send("\x03")
    terminal.wait("> ", seconds=5)  # back at the prompt
    terminal.send("/clear\n")
    terminal.wait("> ")
    assert terminal.leaves_with(end) == status and "Traceback" not in terminal.seen
