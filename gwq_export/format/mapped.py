"""A file on the memory map, and whether it still is the one that was opened."""

from __future__ import annotations

import mmap
import os
import weakref

from gwq_export.errors import GwqError


class MappedFile:
    """A file's bytes, mapped to be read.

    A file that is replaced under its name, as by `os.replace`, stays as it was. One that is written
    in place does not: `check` says so. Raises OSError or ValueError.
    """

    path: str
    nbytes: int
    buffer: memoryview  # keeps the map alive; () bytes of an empty file

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (it stays open)
        self._fd = file.fileno()
        self._closed = weakref.finalize(self, file.close)
        self._found = self._state()
        self.nbytes = self._found[0]
        self.buffer = memoryview(
            mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) if self.nbytes else b""
        )

    def _state(self) -> tuple[int, int]:
        """(bytes, time of the last change in ns)."""
        found = os.fstat(self._fd)
        return found.st_size, found.st_mtime_ns

    def close(self) -> None:
        """Let go of the file; the map stays until the last view of it goes."""
        self._closed()

    def let_pages_go(self) -> None:
        """Let the system drop the pages that were read so far; they can be read again."""
        if isinstance(self.buffer.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.obj.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Raise GwqError when the file was written to, or cut short, since it was opened."""
        if self._closed.alive and self._state() != self._found:
            raise GwqError(
                f"{self.path} has been changed since it was opened: open it again, and let other "
                "programs write a new file and rename it"
            )
