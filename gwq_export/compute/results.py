"""What an export has finished so far: in memory, or in a work folder from which the same command
goes on after a kill.

In the folder every result is a file of its own. It is written under another name, flushed to the
disk and renamed, so that a file that is there is whole; nothing else needs to be written down.
"""

import contextlib
import copy
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError

IDENTITY, DONE, RESULT, UNFINISHED = "export.json", "finished.json", ".gwqwork", ".unfinished"


class Memory:
    """Results by name, each a list of numpy arrays, for as long as this export runs."""

    folder = None

    def __init__(self):
        self._held = {}

    def section(self, name):
        """Another with names of its own."""
        return Memory()

    def put(self, name, *arrays):
        self._held[name] = list(arrays)

    def save(self, name, *arrays):
        """`put` what only a later run of the command would read: nothing here."""

    def get(self, name):
        """The arrays of a result, or None."""
        return self._held.get(name)

    def __contains__(self, name):
        return name in self._held

    def drop(self, name):
        self._held.pop(name, None)

    def clear(self):
        """The export is finished."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Nothing is open."""


class Workdir(Memory):
    """The same in a folder, for good. Use it as a context manager: the folder is locked as long.

    identity: what the export is of and how, JSON; a folder that holds the work of another is
    refused. Raises GwqError.
    """

    def __init__(self, folder, identity):
        self.folder, self.prefix, self._lock = Path(folder), "", None
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            self._claim(json.dumps(identity, indent=1, sort_keys=True, default=str))
        except OSError as e:
            self.close()
            if e.errno == errno.EWOULDBLOCK:
                raise GwqError(
                    f"--work-dir {folder} is in use by another export: wait for it, or give another folder"
                ) from None
            raise self._sentence(e) from None
        except BaseException:
            self.close()
            raise

    def _claim(self, identity):
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = {p.name for p in self.folder.iterdir()}
        if DONE in names:
            self.clear()
        elif IDENTITY in names:
            if (self.folder / IDENTITY).read_bytes() != identity.encode():
                raise GwqError(
                    f"--work-dir {self.folder} holds the work of another export (see its {IDENTITY}): give an empty"
                    " --work-dir or delete it"
                )
            for name in names:
                if name.endswith(UNFINISHED):
                    (self.folder / name).unlink()
            return
        elif any(not name.endswith(UNFINISHED) for name in names):
            raise GwqError(
                f"--work-dir {self.folder} holds files that are not an export's work: give an empty folder"
            )
        self._write(IDENTITY, lambda file: file.write(identity.encode()))

    def _sentence(self, e):
        return GwqError(
            f"cannot write --work-dir {self.folder}: {e.strerror or e}; what is there is whole: free space and run the"
            " same command again, or give another folder"
        )

    def _write(self, name, write):
        """A file that is there whole, and on the disk, or not at all."""
        unfinished = self.folder / (name + UNFINISHED)
        try:
            with open(unfinished, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.folder / name)
            os.fsync(self._lock)
        except OSError as e:
            raise self._sentence(e) from None

    def section(self, name):
        found = copy.copy(self)
        found.prefix = f"{self.prefix}{name}."
        return found

    def _path(self, name):
        return self.folder / (self.prefix + name + RESULT)

    def put(self, name, *arrays):
        def write(file):
            for array in arrays:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)

        self._write(self.prefix + name + RESULT, write)

    save = put

    def get(self, name):
        found = []
        try:
            with open(self._path(name), "rb") as file:
                while file.peek(1):
                    found.append(np.lib.format.read_array(file, allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise GwqError(
                f"--work-dir {self.folder}: {name} cannot be read ({e}): delete the folder"
            ) from None
        return found

    def __contains__(self, name):
        return self._path(name).exists()

    def drop(self, name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    @property
    def nbytes(self):
        """Bytes in use."""
        return sum(p.stat().st_size for p in self.folder.iterdir())

    def clear(self):
        """Remove everything: the export is finished.

        A kill in between is made good by the next run.
        """
        if (self.folder / IDENTITY).exists():
            os.replace(self.folder / IDENTITY, self.folder / DONE)
        for path in self.folder.iterdir():
            if path.name.endswith((RESULT, UNFINISHED)):
                path.unlink()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / DONE).unlink()

    def close(self):
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def check_space(wanted):
    """wanted: [(folder, bytes, what for)]. Raises GwqError when the disks have not so much free."""
    disks = {}
    for folder, nbytes, what in wanted:
        disks.setdefault(os.stat(folder).st_dev, []).append((folder, nbytes, what))
    for parts in disks.values():
        needed, free = sum(n for _, n, _ in parts), shutil.disk_usage(parts[0][0]).free
        if needed > free:
            names = " and ".join(what for *_, what in parts)
            raise GwqError(
                f"{names} need{'s' * (len(parts) == 1)} {needed} bytes and {free} are free: free space or choose another disk"
            )
