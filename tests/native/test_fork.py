"""Children of fork: they compute, or refuse in one line, and never wait for ever."""

import os
import subprocess
import sys

import pytest

from tests.support.random_llama import TINY, write_llama

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# one thread stands inside lib(), as if it was just opening the library; another one forks
AMID_OPENING = """
import os, threading, time
from gwq_export.native import library

inside, go_on = threading.Event(), threading.Event()
opens = library._open

def slow():
    inside.set()
    go_on.wait(1)
    return opens()

library._open = slow
other = threading.Thread(target=library.lib)
other.start()
inside.wait()
child = os.fork()
if child == 0:
    library._open = opens
    library.lib()
    os._exit(7)
other.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# other threads compute with a model all the time; children of children compute with it, too
AMID_COMPUTING = """
import os, sys, threading
import numpy as np
from gwq_export.runtime.model import Model

model = Model(sys.argv[1], threads=2)
wanted = model.logits([1, 2, 3])
stop = threading.Event()

def compute():
    while not stop.is_set():
        assert np.array_equal(model.logits([1, 2, 3]), wanted)

others = [threading.Thread(target=compute) for _ in range(3)]
for other in others:
    other.start()
found = []
for _ in range(10):
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        same = np.array_equal(model.logits([1, 2, 3]), wanted)
        if grandchild == 0:
            os._exit(7 if same else 1)
        left = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os._exit(7 if same and left == 7 else 1)
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for other in others:
    other.join()
print(set(found))
"""

# a child that may have no threads of its own
WITHOUT_THREADS = """
import os, sys
import numpy as np
from gwq_export.errors import GwqError
from gwq_export.native import library
from gwq_export.runtime.model import Model

model = Model(sys.argv[1], threads=2)
wanted = model.logits([1, 2, 3])

def none(self):
    raise GwqError("no more threads can be started")

library.Pool.start = none
child = os.fork()
if child == 0:
    os._exit(7 if np.array_equal(model.logits([1, 2, 3]), wanted) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(
    "script, printed",
    [(AMID_OPENING, "7"), (AMID_COMPUTING, "{7}"), (WITHOUT_THREADS, "7")],
    ids=["amid opening", "amid computing", "without threads"],
)
def test_a_child_computes(tmp_path, script, printed):
    write_llama(tmp_path / "m.gguf", TINY, 2, "gwq4", 0.01)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "m.gguf"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout.strip(), done.stderr) == (printed, "")
