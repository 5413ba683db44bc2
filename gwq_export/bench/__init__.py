"""Speed of files and of kernels, against what the machine can read from memory and against other engines.

roof        what the machine can read, measured beside what it is compared to
cases       the table of kernels, types and shapes, and random data for them
kernels     rows of the kernels
worker      one engine with one file, in a process of its own; contender: the side that drives it
models      rows of files, several in alternation
tables      rows as Markdown, JSON or CSV
"""

import platform


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
