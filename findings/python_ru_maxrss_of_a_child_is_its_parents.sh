#!/usr/bin/env bash
# 2026-11-28
#
# Expected: resource.getrusage(RUSAGE_SELF).ru_maxrss, which Python's documentation calls the
# maximum resident set size used, is how much memory this process has taken at most.
#
# Instead: on Linux it survives execve. A Python process that subprocess starts reports the peak of
# the large process that started it, from its first line on, though it takes a few MB itself.
# VmHWM in /proc/self/status is of the new program alone. resource.RUSAGE_CHILDREN in the parent
# shows the same wrong number.
#
# Why it matters: benchmarks and memory tests that run each candidate "in a process of its own, to
# be fair" report the harness (a test runner with torch loaded, say): every small program looks
# equally large, and a real rise stays hidden below it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

cat > "$work/main.py" <<'PYTHON'
import platform
import resource
import subprocess
import sys

import numpy as np

CHILD = """
import resource
with open("/proc/self/status") as status:
    own = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, own)
"""


def child():
    """(ru_maxrss, VmHWM) in MB of a Python process that does nothing else."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    return [int(kib) * 1024 / 1e6 for kib in done.stdout.split()]


print("Python", platform.python_version(), platform.system(), "numpy", np.__version__)
print("before: ru_maxrss {:.0f} MB, VmHWM {:.0f} MB".format(*(before := child())))
large = np.ones(75_000_000)
print(f"now the parent holds {large.nbytes / 1e6:.0f} MB")
print("after: ru_maxrss {:.0f} MB, VmHWM {:.0f} MB".format(*(after := child())))
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
print(f"RUSAGE_CHILDREN in the parent: {children:.0f} MB")
as_described = all(
    [
        after[0] > 600,
        children > 600,
        before[0] < 200,
        max(before[1], after[1]) < 50,
    ]
)
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

"$work/venv/bin/python" "$work/main.py"
