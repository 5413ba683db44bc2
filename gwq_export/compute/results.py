"""Results of an export that are finished: in memory, or in a work folder that survives a kill.

A work folder guarantees four things:

- A result that is there is complete. Each one is a file of its own, written under another name,
  flushed to the disk and renamed; a kill or a power cut leaves at most files under that other name,
  which the next run removes. Nothing else needs to be written down.
- It belongs to one export. `export.json` says which model is exported and how; a folder of another
  export, or one with files that are not an export's, is refused and not touched.
- One process works in it at a time. The folder is locked while it is open, and the lock goes with
  the process, however that ends.
- A finished export leaves nothing behind. `clear` first renames `export.json` to `finished.json`,
  then deletes the results; where a kill comes in between, the next run deletes the rest and begins
  anew.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from gwq_export.errors import GwqError

IDENTITY = "export.json"  # what is exported and how
DONE = "finished.json"  # its name once the export is finished and results may be deleted
RESULT = ".gwqwork"  # suffix of a result: arrays in numpy's .npy format, one after another
UNFINISHED = ".unfinished"  # added to the name of a file that is being written

Results = TypeVar("Results", bound="Memory")


def write_arrays(arrays: Iterable[np.ndarray], file: BinaryIO) -> None:
    """Append arrays to a file. Raises OSError."""
    for array in arrays:
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def read_arrays(file: BinaryIO) -> list[np.ndarray]:
    """The arrays from here to the end of a buffered file. Raises OSError and ValueError."""
    arrays = []
    end = os.fstat(file.fileno()).st_size
    while file.tell() < end:
        arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    return arrays


class Memory:
    """Results by name, each a list of numpy arrays, kept for as long as this export runs."""

    folder: Path | None = None

    def __init__(self) -> None:
        self._results: dict[str, list[np.ndarray]] = {}

    def section(self, name: str) -> Memory:
        """Return results whose names do not collide with those here."""
        return Memory()

    def put(self, name: str, *arrays: np.ndarray) -> None:
        """Keep a result that this run reads again."""
        self._results[name] = list(arrays)

    def save(self, name: str, *arrays: np.ndarray) -> None:
        """Keep a result that only a later run of the command reads: in memory, nothing to do."""

    def get(self, name: str) -> list[np.ndarray] | None:
        """Return the arrays of a result, or None where there is none."""
        return self._results.get(name)

    def need(self, name: str) -> list[np.ndarray]:
        """Return the arrays of a result that must be there; KeyError is a fault of the caller."""
        arrays = self.get(name)
        if arrays is None:
            raise KeyError(name)
        return arrays

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def drop(self, name: str) -> None:
        """Forget a result, if there is one of that name."""
        self._results.pop(name, None)

    def clear(self) -> None:
        """Delete what a later run would read, as the export is finished: in memory, nothing."""

    def __enter__(self: Results) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder: in memory, nothing to do."""


class Workdir(Memory):
    """Results in a folder, from which the same command goes on after a kill.

    Use it as a context manager: the folder is locked while it is open.
    """

    folder: Path

    def __init__(self, folder: str | os.PathLike[str], identity: Any) -> None:
        """Create or reopen `folder`, whose parent exists.

        identity: what is exported and how, as JSON-like values. Raises GwqError where the folder
        holds other work or other files, is in use, or cannot be written.
        """
        self.folder = Path(folder)
        self.prefix = ""  # of the names of a section
        self._lock = -1  # file descriptor of the locked folder, -1 while it is not open
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            self._claim(json.dumps(identity, indent=1, sort_keys=True, default=str))
        except OSError as e:
            self.close()
            if e.errno == errno.EWOULDBLOCK:
                raise GwqError(
                    f"--work-dir {folder} is in use by another export: "
                    "wait for it, or give another folder"
                ) from None
            raise self._write_error(e) from None
        except BaseException:
            self.close()
            raise

    def _claim(self, identity: str) -> None:
        """Lock the folder and make sure that it is empty or holds the work of this export."""
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = {path.name for path in self.folder.iterdir()}
        if DONE in names:  # killed while it deleted the results of a finished export
            self.clear()
        elif IDENTITY in names:
            if (self.folder / IDENTITY).read_bytes() != identity.encode():
                raise GwqError(
                    f"--work-dir {self.folder} holds the work of another export "
                    f"(see its {IDENTITY}): give an empty --work-dir or delete it"
                )
            for name in names:
                if name.endswith(UNFINISHED):
                    (self.folder / name).unlink()
            return
        elif any(not name.endswith(UNFINISHED) for name in names):
            raise GwqError(
                f"--work-dir {self.folder} holds files that are not an export's work: "
                "give an empty folder"
            )
        self._write(IDENTITY, lambda file: file.write(identity.encode()))

    def _write_error(self, e: OSError) -> GwqError:
        return GwqError(
            f"cannot write --work-dir {self.folder}: {e.strerror or e}; what is there is whole: "
            "free space and run the same command again, or give another folder"
        )

    def _write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file that is on the disk completely, or not at all.

        The data is flushed before the rename and the folder after it, so that neither a kill nor a
        power cut can leave a part of a file under its name.
        """
        unfinished = self.folder / (name + UNFINISHED)
        try:
            with open(unfinished, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.folder / name)
            os.fsync(self._lock)
        except OSError as e:
            raise self._write_error(e) from None

    def section(self, name: str) -> Workdir:
        """Return results in the same folder whose names begin with `name.`."""
        section = copy.copy(self)
        section.prefix = f"{self.prefix}{name}."
        return section

    def _path(self, name: str) -> Path:
        return self.folder / (self.prefix + name + RESULT)

    def put(self, name: str, *arrays: np.ndarray) -> None:
        """Write a result to the disk. Raises GwqError where that fails."""

        self._write(self.prefix + name + RESULT, partial(write_arrays, arrays))

    save = put

    def get(self, name: str) -> list[np.ndarray] | None:
        """Read the arrays of a result, or return None where there is none.

        Raises GwqError for a file that cannot be read.
        """
        try:
            with open(self._path(name), "rb") as file:
                return read_arrays(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise GwqError(
                f"--work-dir {self.folder}: {name} cannot be read ({e}): delete the folder"
            ) from None

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def drop(self, name: str) -> None:
        """Delete the file of a result, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    @property
    def nbytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def clear(self) -> None:
        """Delete all results and the identity, as the export is finished.

        The rename comes first: from then on the folder holds nothing that a run would go on from,
        and the next one completes the deletion if this is cut short.
        """
        if (self.folder / IDENTITY).exists():
            os.replace(self.folder / IDENTITY, self.folder / DONE)
        for path in self.folder.iterdir():
            if path.name.endswith((RESULT, UNFINISHED)):
                path.unlink()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / DONE).unlink()

    def close(self) -> None:
        """Unlock the folder; it may be opened again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
