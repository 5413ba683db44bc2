"""The system's page cache, from which a mapped file is computed with.

A file that comes into memory by page faults lies there in small scattered runs of pages, and one
that is read from start to end in large ones, of which a processor has to look up fewer addresses.
"""

import ctypes
import mmap
import os
from os import PathLike

import numpy as np

from gwq_export.machine import free_memory

# Bytes of a read, as cat has them. For larger ones than its readahead Linux takes single pages.
AT_ONCE = 1 << 17


def resident(path: str | PathLike[str]) -> float:
    """Share of a file's pages that are in the page cache; 1 where the system does not tell."""
    try:
        mincore = ctypes.CDLL(None).mincore
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as file:
            view = np.frombuffer(file, np.uint8)
            pages = np.ones(-(-view.size // mmap.PAGESIZE), np.uint8)
            failed = mincore(
                ctypes.c_void_p(view.ctypes.data),
                ctypes.c_size_t(view.size),
                ctypes.c_void_p(pages.ctypes.data),
            )
            del view  # the map cannot be closed before
    except (AttributeError, OSError, ValueError):
        return 1.0
    return 1.0 if failed else float((pages & 1).mean())


def read_through(path: str | PathLike[str]) -> None:
    """Read a file into the page cache, from start to end. Raises OSError."""
    buffer = bytearray(AT_ONCE)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass


def put_out(path: str | PathLike[str]) -> None:
    """Put a file out of the page cache, where the system can. Raises OSError.

    Pages that somebody has mapped stay.
    """
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as f:
            os.fsync(f.fileno())  # pages that are not on the disk yet would stay, too
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_anew(path: str | PathLike[str]) -> None:
    """Put a file out of the page cache and read it through, so that it lies there as it does after
    a start of the machine, however it came in. Raises OSError.

    Pages that somebody has mapped stay.
    """
    put_out(path)
    read_through(path)


def bring_in(path: str | PathLike[str]) -> None:
    """Read a file through if most of it is not in the page cache, and memory has room for it.

    Computing with it would read all of it, too. Raises OSError.
    """
    free = free_memory()
    if (free is None or os.path.getsize(path) < free) and resident(path) < 0.5:
        read_through(path)
