"""The files and programs by which a system tells of itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 5  # seconds that a program may take to answer


def run_program(*command: str) -> str | None:
    """What a program prints; None where it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def stream_program(*command: str) -> Iterator[str]:
    """The lines that a program prints, as they come; it is ended with the iterator."""
    if shutil.which(command[0]) is None:
        return
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        try:
            yield from process.stdout
        finally:
            process.kill()


class System:
    """A system's files under `root`, and what its programs print.

    Paths are given as they are on that system, such as "/sys/class/thermal". run and stream: as
    `run_program` and `stream_program`.
    """

    def __init__(
        self,
        root: str | Path = "/",
        run: Callable[..., str | None] = run_program,
        stream: Callable[..., Iterator[str]] = stream_program,
    ) -> None:
        self.root = Path(root)
        self.output = run
        self.lines = stream

    def text(self, path: str) -> str | None:
        """The text of a file, stripped; None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip("\0 \n\t")
        except OSError:
            return None

    def number(self, path: str) -> float | None:
        """The decimal number in a file; None where there is none to read."""
        try:
            return float(self.text(path) or "")
        except ValueError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            return (self.root / path.lstrip("/")).exists()
        except OSError:
            return False

    def paths(self, pattern: str) -> list[str]:
        """The paths that match a pattern with *, numbers in them in their order."""
        try:
            found = [str(p.relative_to(self.root)) for p in self.root.glob(pattern.lstrip("/"))]
        except OSError:
            return []
        return [f"/{path}" for path in sorted(found, key=_natural)]


def _natural(path: str) -> list[str | int]:
    # a text and a number by turns, so that two such lists can be compared
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]
