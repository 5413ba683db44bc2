"""Opens libgwq, owns matrices and the thread pool, and turns status codes into sentences.

Arrays are C-contiguous numpy float32; `F32` keeps an array and its C pointer together, because making a pointer
costs as much as a small op. The library never keeps a pointer, so the owners here keep everything alive.
"""

import functools
import hashlib
import math
import os
import threading
import weakref
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export.format import BUILD_COMMAND, HEADERS, ROWS, ffi

NULL = ffi.NULL
_FOLDER = Path(__file__).parent
_opening = threading.Lock()
CACHE = ("f16", "q8_0", "f32")  # types that the numbers of a KV cache may have
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
        raise GwqError(f"{path} is missing: build it with `{BUILD_COMMAND}` or reinstall gwq-export")
    try:
        library = ffi.dlopen(str(path))
    except OSError as e:
        raise GwqError(f"{path} cannot be opened ({e}): build it with `{BUILD_COMMAND}`") from None
    headers = hashlib.sha256(b"".join((_FOLDER / name).read_bytes() for name in HEADERS)).hexdigest()
    if ffi.string(library.gwq_abi()).decode() != headers:
        raise GwqError(f"{path} was built from other headers: build it again with `{BUILD_COMMAND}`")
    wanted = os.environ.get("GWQ_ISA")
    if library.gwq_isa_select(wanted.encode() if wanted else ffi.NULL):
        raise GwqError(f"GWQ_ISA={wanted} is not one of {', '.join(isas(library))}, what this machine supports")
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
    """Threads for the ops below; usable from several Python threads at once (a call holds it until it is done)."""

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


def default_threads():
    """CPUs this process may run on."""
    return max(1, min(256, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class Matrix:
    """A (rows, cols) weight as it lies in the file: checked once here, then used by pointer.

    data and the two side-table arrays are uint8 (offsets int32); none is copied. Raises GwqError.
    """

    def __init__(self, name, type, shape, data, outliers=None):
        self.name, self.type, (self.rows, self.cols) = name, type, shape
        self._keep = [data, *(outliers or ())]
        self.nbytes = sum(a.nbytes for a in self._keep)
        self.struct = ffi.new("gwq_matrix *")
        m = self.struct
        m.type, m.rows, m.cols = type.id, self.rows, self.cols
        m.data, m.data_bytes = pointer(data, "void *"), data.nbytes
        if outliers is not None:
            m.outliers, m.outlier_bytes = pointer(outliers[0], "uint8_t *"), outliers[0].nbytes
            m.offsets, m.offset_bytes = pointer(outliers[1], "uint8_t *"), outliers[1].nbytes
        check(lib().gwq_matrix_check(m), f"tensor {name}")

    def dequantize(self, pool):
        """All weights, float32 (rows, cols)."""
        out = np.empty((self.rows, self.cols), np.float32)
        check(lib().gwq_dequantize(pool.ptr, self.struct, 0, self.rows, pointer(out)), f"tensor {self.name}")
        return out

    def copy(self):
        """The same matrix in memory of its own."""
        data, *table = [a.copy() for a in self._keep]
        return Matrix(self.name, self.type, (self.rows, self.cols), data, tuple(table) or None)


class Linear:
    """Matrices that share an input, multiplied in one parallel region: y[i] = x @ m[i].T + bias[i].

    biases: F32 or None for each matrix.
    """

    def __init__(self, matrices, biases=None):
        self.matrices, self.count, self.cols = matrices, len(matrices), matrices[0].cols
        self._m = ffi.new("gwq_matrix *[]", [m.struct for m in matrices])
        self._bias = biases or [None] * self.count

    def __call__(self, ops, x, n, *ys):
        """x (n, cols) and ys[i] (n, rows of matrix i) are float pointers."""
        ops.matmul(self._m, self.count, x, n, ys, self.cols)
        if any(self._bias):
            for b, out, m in zip(self._bias, ys, self.matrices, strict=True):
                if b is not None:
                    ops.add(out, b.ptr, n, m.rows, broadcast=True)


class Split:
    """One matrix whose outputs, side by side, are those of several: called like the Linear of these."""

    def __init__(self, matrix, widths, bias=None):
        self.linear, self.widths, self.rows = Linear([matrix], [bias]), widths, matrix.rows

    def __call__(self, ops, x, n, *ys):
        whole = ops.work(n * self.rows)
        self.linear(ops, x, n, whole)
        for y, width in zip(ys, self.widths, strict=True):
            ops.copy(whole, self.rows, n, width, y)
            whole += width


class Ops:
    """The native ops bound to a pool, with work buffers of their own: use one Ops per Python thread.

    Small models spend as long in these few lines as in the kernels, so they look up and allocate little.
    """

    def __init__(self, pool):
        self.lib, self.pool = lib(), pool
        self._scratch, self._scratch_ptr, self._need = np.empty(0, np.uint8), ffi.NULL, {}
        self._outputs = [ffi.new("float *[]", count) for count in range(1, 5)]  # by number of matrices
        self._group, self._work = F32((ROWS, 1)), F32(0)

    def work(self, count):
        """Pointer to `count` floats that the next call may overwrite."""
        if self._work.array.size < count:
            self._work = F32(count)
        return self._work.ptr

    def matmul(self, m, count, x, n, ys, cols):
        need = self._need.get((n, cols))
        if need is None:
            need = self._need[n, cols] = self.lib.gwq_scratch_bytes(n, cols)
            if need > self._scratch.nbytes:
                self._scratch = np.empty(need, np.uint8)
                self._scratch_ptr = pointer(self._scratch, "void *")
        outputs = self._outputs[count - 1]
        for i in range(count):
            outputs[i] = ys[i]
        if s := self.lib.gwq_matmul(self.pool.ptr, m, count, x, n, outputs, self._scratch_ptr, self._scratch.nbytes):
            check(s, "matmul")

    def embed(self, matrix, ids, out):
        """Rows ids (n,) int32 of a matrix into out (n, cols)."""
        if self._group.array.shape[1] != matrix.cols:
            self._group = F32((ROWS, matrix.cols))
        if s := self.lib.gwq_embed(matrix.struct, pointer(ids, "int32_t *"), len(ids), self._group.ptr, out):
            check(s, "embedding")

    def rmsnorm(self, x, weight, eps, n, dim, out):
        if s := self.lib.gwq_rmsnorm(self.pool.ptr, x, weight, eps, n, dim, out):
            check(s, "rmsnorm")

    def layernorm(self, x, weight, bias, eps, n, dim, out):
        if s := self.lib.gwq_layernorm(self.pool.ptr, x, weight, bias, eps, n, dim, out):
            check(s, "layernorm")

    def rope(self, x, cos, sin, n, heads, dim, rotated, style):
        if s := self.lib.gwq_rope(self.pool.ptr, x, cos, sin, n, heads, dim, rotated, style):
            check(s, "rope")

    def attention(self, q, k, v, type, n, start, heads, kv_heads, dim, scale, softcap, window, out):
        if s := self.lib.gwq_attention(self.pool.ptr, q, k, v, type, n, start, heads, kv_heads, dim, scale, softcap, window, out):
            check(s, "attention")

    def activate(self, x, up, n, dim, activation):
        if s := self.lib.gwq_activate(self.pool.ptr, x, up, n, dim, activation):
            check(s, "activation")

    def cache(self, x, count, type, cache, first):
        if s := self.lib.gwq_cache(x, count, type, cache, first):
            check(s, "cache")

    def softcap(self, x, n, dim, cap):
        if s := self.lib.gwq_softcap(self.pool.ptr, x, n, dim, cap):
            check(s, "softcap")

    def scale(self, x, n, dim, scale):
        if s := self.lib.gwq_scale(x, n, dim, scale):
            check(s, "scale")

    def add(self, x, y, n, dim, scale=1.0, broadcast=False):
        if s := self.lib.gwq_add(x, y, n, dim, scale, broadcast):
            check(s, "add")

    def copy(self, x, stride, n, dim, out):
        if s := self.lib.gwq_copy(x, stride, n, dim, out):
            check(s, "copy")


def read_roof(pool, array, streams, ahead):
    """Read `array` once; returns nothing, the caller takes the time."""
    out = ffi.new("uint64_t *")
    check(lib().gwq_read(pool.ptr, pointer(array, "void *"), array.nbytes, streams, ahead, out), "read")
