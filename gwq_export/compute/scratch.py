"""Results that only this run of an export reads, in files that have no name."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from gwq_export.compute.results import Memory, read_arrays, write_arrays

SMALL = 1 << 20  # bytes of a result that stays in memory


class Scratch(Memory):
    """Results by name, of which large ones are on the disk and not in memory.

    Their files have no name in `place`, so that they are gone when the process ends, however that
    happens. Where the disk takes no more, results stay in memory.
    """

    def __init__(self, place: Path) -> None:
        """place: a folder that exists, on the disk that takes the results."""
        super().__init__()
        self._place = place
        self._files: dict[str, BinaryIO] = {}
        self._sections: list[Scratch] = []

    def section(self, name: str) -> Scratch:
        """Return results of their own, on the same disk; they are closed with these."""
        section = Scratch(self._place)
        self._sections.append(section)
        return section

    def put(self, name: str, *arrays: np.ndarray) -> None:
        """Keep a result; what this name had before is forgotten."""
        self.drop(name)
        if sum(a.nbytes for a in arrays) > SMALL:
            with contextlib.suppress(OSError):
                self._files[name] = self._written(arrays)
                return
        super().put(name, *arrays)

    def _written(self, arrays: tuple[np.ndarray, ...]) -> BinaryIO:
        """A file of these arrays. Raises OSError."""
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._place))  # noqa: SIM115 it stays open
        try:
            write_arrays(arrays, file)
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):  # closing it would write the rest
                file.close()
            raise
        return file

    def get(self, name: str) -> list[np.ndarray] | None:
        """Return the arrays of a result, None where there is none; those of a file are copies."""
        file = self._files.get(name)
        if file is None:
            return super().get(name)
        file.seek(0)
        return read_arrays(file)

    def __contains__(self, name: str) -> bool:
        return name in self._files or super().__contains__(name)

    def drop(self, name: str) -> None:
        """Forget a result, and give its room on the disk back."""
        file = self._files.pop(name, None)
        if file is not None:
            file.close()
        super().drop(name)

    def close(self) -> None:
        """Forget everything, sections included."""
        for section in self._sections:
            section.close()
        for name in [*self._files, *self._results]:
            self.drop(name)
