#!/usr/bin/env bash
# 2026-11-28
#
# Expected: torch.tensor(sequence) passes on what the sequence raises when its elements are read, as
# list(sequence) and numpy.asarray(sequence) do: an OSError of a lazily read file, Ctrl-C.
#
# Instead: an exception at the first element, of any kind, becomes "ValueError: could not determine
# the shape of object type ...", with neither cause nor context; what was raised is lost. So a
# KeyboardInterrupt that arrives there does not stop the program as Ctrl-C should, and code that
# catches ValueError goes on. At any later element the exception comes through.
#
# Why it matters: the message sends its reader to look for a shape, not for the disk or for memory,
# and a program that answers Ctrl-C (status 130) and bugs (a traceback) differently takes one for
# the other.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$work/main.py" <<'PYTHON'
import signal
import sys

import numpy as np
import torch


class Lazy:
    """Three numbers, the one at `position` of which cannot be read."""

    def __init__(self, position, fail):
        self.position = position
        self.fail = fail

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i >= 3:
            raise IndexError(i)
        if i == self.position:
            self.fail()
        return float(i)


def disk():
    raise OSError("the disk is gone")


def memory():
    raise MemoryError("no memory")


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)
print("torch", torch.__version__, "numpy", np.__version__)
found = {}
for fail, error in ((disk, OSError), (memory, MemoryError), (ctrl_c, KeyboardInterrupt)):
    for position in (0, 1):
        for make in (torch.tensor, np.asarray, list):
            try:
                made = make(Lazy(position, fail))
            except BaseException as e:
                hidden = not isinstance(e, error)
                found[fail.__name__, position, make.__name__] = hidden
                print(f"{fail.__name__} at element {position}, {make.__name__}: {e!r}, "
                      f"cause {e.__cause__!r}, context {e.__context__!r}")
as_described = len(found) == 18 and all(
    hidden == (position == 0 and make == "tensor") for (_, position, make), hidden in found.items()
)
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

"$work/venv/bin/python" "$work/main.py"
