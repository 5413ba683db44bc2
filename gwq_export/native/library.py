"""Opens libgwq, turns its status codes into sentences, and owns the thread pools.

Arrays are C-contiguous numpy float32. `F32` keeps an array and its C pointer together, because
making a pointer costs as much as a small operation. The library never keeps a pointer it was given,
so the Python objects here have to keep the memory alive.
"""

import functools
import math
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.types import ABI_HASH, BUILD_COMMAND, ffi
from gwq_export.machine import default_threads

Pointer: TypeAlias = Any  # a C pointer or array of cffi's, which has no types of its own

NULL = ffi.NULL
MAX_THREADS = 256
CACHE_LINE = 64
_FOLDER = Path(__file__).parent
_opening = threading.Lock()
_DAMAGED = "the file is damaged, export it again"
# gwq_status -> sentence, for what a file can cause; any other status is a fault of this package
_SENTENCES = {
    "GWQ_E_TYPE": "not a matrix type this runtime computes with",
    "GWQ_E_SHAPE": "its shape is out of range",
    "GWQ_E_SIZE": f"its data has the wrong length; {_DAMAGED}",
    "GWQ_E_TABLE": f"an entry of its table is out of range; {_DAMAGED}",
    "GWQ_E_EXPONENT": f"its exponent is out of range; {_DAMAGED}",
    "GWQ_E_OFFSETS": f"its outlier offsets are inconsistent; {_DAMAGED}",
    "GWQ_E_RECORD": f"its outlier records do not fill their row group; {_DAMAGED}",
    "GWQ_E_ROW": f"an outlier lies beyond its last row; {_DAMAGED}",
    "GWQ_E_COLUMN": f"an outlier column is out of range or out of order; {_DAMAGED}",
    "GWQ_E_INDEX": "a row or token id is out of range",
    "GWQ_E_FINITE": (
        "a number is not finite: the file is damaged (see gwq-info --check), or the model was"
    ),
    "GWQ_E_MEMORY": "out of memory, or no more threads can be started",
    "GWQ_E_DEVICE": "the GPU or its driver failed: see the system's log, or use --device cpu",
}
device_words: Callable[[], str] | None = None  # what a GPU's driver said last, once it is in use


def lib() -> Any:
    """The native library, with the instruction set of $GWQ_ISA or else the best one.

    Raises GwqError when it is missing, was built from other headers, or lacks that instruction set.
    """
    with _opening:
        return _open()


def open_library(path: Path, build_command: str) -> Any:
    """A library of the headers' functions. Raises GwqError: it does not open, or has other ones."""
    try:
        # Stays until the process ends: while Python tears its modules down, in any order, pools
        # still have threads in it, and are freed by it.
        library = ffi.dlopen(str(path), ffi.RTLD_NOW | ffi.RTLD_NODELETE)
    except OSError as e:
        raise GwqError(f"{path} cannot be opened ({e}): build it with `{build_command}`") from None
    if ffi.string(library.gwq_abi()).decode() != ABI_HASH:
        raise GwqError(
            f"{path} was built from other headers: build it again with `{build_command}`"
        )
    return library


@functools.cache
def _open() -> Any:
    path = _FOLDER / "libgwq.so"
    if not path.exists():
        raise GwqError(
            f"{path} is missing: build it with `{BUILD_COMMAND}` or reinstall gwq-export"
        )
    library = open_library(path, BUILD_COMMAND)
    wanted = os.environ.get("GWQ_ISA")
    if library.gwq_isa_select(wanted.encode() if wanted else ffi.NULL):
        raise GwqError(
            f"GWQ_ISA={wanted} is not one of {', '.join(isas(library))}, what this machine supports"
        )
    return library


def isas(library: Any = None) -> list[str]:
    """Names of the instruction sets this machine supports, best last.

    library: the opened libgwq; None opens it.
    """
    library = library or lib()
    names: list[str] = []
    while (name := library.gwq_isa_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return [name for i, name in enumerate(names) if library.gwq_isa_supported(i)]


def isa() -> str:
    """Name of the instruction set in use."""
    return ffi.string(lib().gwq_isa()).decode()


def check(status: int, what: str = "native call") -> None:
    """Raise unless status is GWQ_OK: GwqError for a file's fault, RuntimeError for one of ours.

    what: what was computed; begins the sentence.
    """
    if status:
        name = ffi.typeof("enum gwq_status").elements.get(status, str(status))
        if name == "GWQ_E_DEVICE" and device_words:
            what = f"{what}: {device_words()}"
        if name in _SENTENCES:
            raise GwqError(f"{what}: {_SENTENCES[name]}")
        raise RuntimeError(f"{what}: {name}")


def pointer(array: np.ndarray, kind: str = "float *") -> Pointer:
    """C pointer of type `kind` to a numpy array's data; the caller keeps the array alive."""
    return ffi.cast(kind, array.ctypes.data)


def view(ptr: Pointer, shape: tuple[int, ...]) -> np.ndarray:
    """float32 array of `shape` over the memory at a float pointer, which the caller keeps alive."""
    return np.frombuffer(ffi.buffer(ptr, 4 * math.prod(shape)), np.float32).reshape(shape)


class F32:
    """A float32 array and its pointer.

    shape_or_array: a shape (or length) for zeros, or an array, which is copied only if it is not
    C-contiguous float32 already. Zeros begin where a cache line does, as the kernels like it.
    """

    def __init__(self, shape_or_array: int | tuple[int, ...] | np.ndarray) -> None:
        if isinstance(shape_or_array, np.ndarray):
            self.array = np.ascontiguousarray(shape_or_array, np.float32)
        else:
            nbytes = 4 * math.prod(np.atleast_1d(shape_or_array).tolist())
            room = np.zeros(nbytes + CACHE_LINE, np.uint8)
            start = -room.ctypes.data % CACHE_LINE
            floats = room[start : start + nbytes].view(np.float32)
            self.array = floats.reshape(shape_or_array)
        self.ptr = pointer(self.array)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.array.size

    def fetch(self, out: np.ndarray) -> None:
        """Copy the first numbers into an array, as many as it has, unless they lie there already.

        out: C-contiguous float32.
        """
        if out is not self.array:
            out.ravel()[...] = self.array.ravel()[: out.size]

    def put(self, values: np.ndarray) -> None:
        """Copy an array, C-contiguous float32, into the place of the first numbers."""
        self.array.ravel()[: values.size] = values.ravel()


class Pool:
    """The threads that the native operations run on.

    Several Python threads may use one Pool at once: a call holds it until it is done. What they
    compute with lies where `floats`, `scratch` and `matrix` put it.

    threads: 1 to 256; None takes one for each CPU. Raises GwqError.
    """

    on_device = False  # whether pointers are those of a device's memory
    name = "CPU"

    def __init__(self, threads: int | None = None) -> None:
        threads = default_threads() if threads is None else threads
        if not 1 <= threads <= MAX_THREADS:
            raise GwqError(f"--threads {threads}: give a number from 1 to {MAX_THREADS}")
        self.threads = threads
        self.start()
        _pools.add(self)

    @property
    def lib(self) -> Any:
        """The library whose functions compute."""
        return lib()

    def floats(self, shape_or_array: int | tuple[int, ...] | np.ndarray) -> F32:
        """float32 numbers, as F32 takes them."""
        return F32(shape_or_array)

    def output(self, out: np.ndarray) -> F32:
        """Numbers that `fetch(out)` will bring into an array, C-contiguous float32."""
        return F32(out)

    def scratch(self, count: int) -> tuple[Any, Pointer]:
        """(what keeps the memory, void pointer) of `count` bytes."""
        memory = np.empty(count, np.uint8)
        return memory, pointer(memory, "void *")

    def matrix(self, matrix: Any) -> Any:
        """A `native.matrix.Matrix` where the operations find it."""
        return matrix

    @property
    def host(self) -> "Pool":
        """The CPU threads that run what this pool has no room for: these here."""
        return self

    def start(self) -> None:
        """Start the threads. Raises GwqError when the system gives none."""
        out = ffi.new("gwq_pool **")
        check(lib().gwq_pool_new(self.threads, out), "thread pool")
        self.ptr = ffi.gc(out[0], lib().gwq_pool_free)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    """Leave everything in the child of a fork as it is to be used there.

    Pools have no threads in it: each gets new ones. One that cannot have them becomes NULL, by
    which the caller computes alone.
    """
    _opening.release()
    for pool in _pools:
        pool.ptr = ffi.gc(pool.ptr, None)  # joining threads that are gone would wait for ever
        try:
            pool.start()
        except GwqError:
            if not pool.on_device:
                pool.ptr = NULL


# another thread may be opening the library: a child that begins then would wait for it for ever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork
    )
