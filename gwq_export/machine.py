"""What the machine offers, and how much of it this process uses: CPUs, their name, memory."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

MAX_THREADS = 256  # of a pool of the native library


def default_threads() -> int:
    """CPUs that this process may run on, at most MAX_THREADS."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return max(1, min(MAX_THREADS, cpus))


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
