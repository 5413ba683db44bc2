"""What the machine offers, and what this process uses of it: CPUs, their name, memory."""

import os
import platform
import re
import resource
import sys
from pathlib import Path


def default_threads():
    """CPUs this process may run on."""
    return max(
        1,
        min(
            256,
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
        ),
    )


def cpu_name():
    """The CPU as the operating system calls it."""
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss():
    """Largest resident size of this process so far, bytes. Linux carries ru_maxrss over from the
    process that started this one (getrusage(2) keeps it through execve), so there VmHWM of /proc is
    read, which begins with the program.
    """
    status = Path("/proc/self/status")
    if status.exists() and (
        found := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    ):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
