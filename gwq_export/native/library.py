"""Opens libgwq, owns matrices and the thread pool, and turns status codes into sentences.

Arrays are C-contiguous numpy float32; `F32` keeps an array and its C pointer together, because
making a pointer costs as much as a small op. The library never keeps a pointer, so the owners here
keep everything alive.
"""

import functools
import hashlib
import math
import os
import threading
import weakref
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.types import BUILD_COMMAND, HEADERS, ffi
from gwq_export.machine import default_threads

NULL = ffi.NULL
_FOLDER = Path(__file__).parent
_opening = threading.Lock()
_DAMAGED = "the file is damaged, export it again"
# gwq_status -> sentence, for what a file can cause; anything else is a fault of ours
_SENTENCES = {
    "GWQ_E_TYPE": "not a matrix type this runtime computes with",
    "GWQ_E_SHAPE": "its shape is out of range",
    "GWQ_E_SIZE": f"its data has the wrong length; {_DAMAGED}",
    "GWQ_E_TABLE": f"an entry of its table is out of range; {_DAMAGED}",
    "GWQ_E_OFFSETS": f"its outlier offsets are inconsistent; {_DAMAGED}",
    "GWQ_E_RECORD": f"its outlier records do not fill their row group; {_DAMAGED}",
    "GWQ_E_ROW": f"an outlier lies beyond its last row; {_DAMAGED}",
    "GWQ_E_COLUMN": f"an outlier column is out of range or out of order; {_DAMAGED}",
    "GWQ_E_INDEX": "a row or token id is out of range",
    "GWQ_E_MEMORY": "out of memory, or no more threads can be started",
}


def lib():
    """The native library, with the instruction set of $GWQ_ISA or the best one. Raises GwqError."""
    with _opening:
        return _open()


@functools.cache
def _open():
    path = _FOLDER / "libgwq.so"
    if not path.exists():
        raise GwqError(
            f"{path} is missing: build it with `{BUILD_COMMAND}` or reinstall gwq-export"
        )
    try:
        library = ffi.dlopen(str(path))
    except OSError as e:
        raise GwqError(f"{path} cannot be opened ({e}): build it with `{BUILD_COMMAND}`") from None
    headers = hashlib.sha256(
        b"".join((_FOLDER / name).read_bytes() for name in HEADERS)
    ).hexdigest()
    if ffi.string(library.gwq_abi()).decode() != headers:
        raise GwqError(
            f"{path} was built from other headers: build it again with `{BUILD_COMMAND}`"
        )
    wanted = os.environ.get("GWQ_ISA")
    if library.gwq_isa_select(wanted.encode() if wanted else ffi.NULL):
        raise GwqError(
            f"GWQ_ISA={wanted} is not one of {', '.join(isas(library))}, what this machine supports"
        )
    return library


def isas(library=None):
    """Names of the instruction sets this machine supports, best last."""
    library, names = library or lib(), []
    while (name := library.gwq_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return [name for i, name in enumerate(names) if library.gwq_isa_supported(i)]


def isa():
    """Name of the instruction set in use."""
    return ffi.string(lib().gwq_isa()).decode()


def check(status, what="native call"):
    """Raise GwqError (a file's fault) or RuntimeError (ours) unless status is GWQ_OK."""
    if status:
        name = ffi.typeof("enum gwq_status").elements.get(status, str(status))
        if name in _SENTENCES:
            raise GwqError(f"{what}: {_SENTENCES[name]}")
        raise RuntimeError(f"{what}: {name}")


def pointer(array, kind="float *"):
    """C pointer to a numpy array's data; the caller keeps the array alive."""
    return ffi.cast(kind, array.ctypes.data)


def view(ptr, shape):
    """float32 array of `shape` over the memory at a float pointer, which the caller keeps alive."""
    return np.frombuffer(ffi.buffer(ptr, 4 * math.prod(shape)), np.float32).reshape(shape)


class F32:
    """A float32 array and its pointer."""

    def __init__(self, shape_or_array):
        if isinstance(shape_or_array, np.ndarray):
            self.array = np.ascontiguousarray(shape_or_array, np.float32)
        else:
            self.array = np.zeros(shape_or_array, np.float32)
        self.ptr = pointer(self.array)


class Pool:
    """Threads for the ops below; usable from several Python threads at once (a call holds it until
    it is done).
    """

    def __init__(self, threads=None):
        threads = default_threads() if threads is None else threads
        if not 1 <= threads <= 256:
            raise GwqError(f"--threads {threads}: give a number from 1 to 256")
        self.threads = threads
        self.start()
        _pools.add(self)

    def start(self):
        out = ffi.new("gwq_pool **")
        check(lib().gwq_pool_new(self.threads, out), "thread pool")
        self.ptr = ffi.gc(out[0], lib().gwq_pool_free)


_pools = weakref.WeakSet()


def _restart_pools():
    """In the child of a fork: threads do not survive it, so every pool gets new ones."""
    for pool in _pools:
        pool.ptr = ffi.gc(pool.ptr, None)  # its threads are gone: joining them would wait for ever
        pool.start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_pools)
