"""What the machine offers, and how much of it this process uses: CPUs, their name, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gwq_export import cgroups

MAX_THREADS = 256  # of a pool of the native library
_asked: ContextVar[int | None] = ContextVar("threads", default=None)
_quota = functools.cache(cgroups.cpu_quota)


def default_threads() -> int:
    """How many threads use the CPUs that this process may run on, at most MAX_THREADS.

    That is what `threads` asks for; else the CPUs of its affinity mask, or as many as its container
    grants on average (rounded up) where these are fewer.
    """
    if (asked := _asked.get()) is not None:
        return asked
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    if (quota := _quota()) is not None:
        cpus = min(cpus, math.ceil(quota))
    return max(1, min(MAX_THREADS, cpus))


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """In this block, `default_threads` is `count` (1 to MAX_THREADS); None: as it was."""
    token = _asked.set(_asked.get() if count is None else count)
    try:
        yield
    finally:
        _asked.reset(token)


@contextlib.contextmanager
def kept_on(cpus: Sequence[int] | None) -> Iterator[None]:
    """In this block, this thread and what it starts run on these CPUs only; None: as before.

    Where the system cannot do that, they run where they like.
    """
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping; None where that is not known."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        found = None
    limits = [cgroups.free_memory(), int(found[1]) * 1024 if found else None]
    return min((limit for limit in limits if limit is not None), default=None)


def release_memory() -> None:
    """Give memory that was freed back to the operating system, where the C library can (glibc).

    It keeps freed memory for later allocations of like sizes. Where phases take arrays of ever
    other sizes, a process holds half as much again as it uses (glibc 2.36, an export of 135 million
    weights). A call takes some 10 ms.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another C library
        return None


def size(nbytes: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"


def cpu_name() -> str:
    """The CPU as the operating system calls it."""
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform  # as slow to import as all of this, and seldom needed

    return platform.processor() or platform.machine()


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux carries ru_maxrss over from the process that started this one (getrusage(2) keeps it
    through execve), so there VmHWM of /proc is read, which begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak is not None:
            return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
