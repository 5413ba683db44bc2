"""The native operations of a forward pass, bound to a thread pool."""

import numpy as np

from gwq_export.format.types import ROWS, ffi
from gwq_export.native.library import F32, check, lib, pointer

CACHE = ("f16", "q8_0", "f32")  # types that the numbers of a KV cache may have


class Ops:
    """The native ops bound to a pool, with work buffers of their own: use one Ops per Python
    thread.

    Small models spend as long in these few lines as in the kernels, so they look up and allocate
    little.
    """

    def __init__(self, pool):
        self.lib, self.pool = lib(), pool
        self._scratch, self._scratch_ptr, self._need = np.empty(0, np.uint8), ffi.NULL, {}
        self._outputs = [
            ffi.new("float *[]", count) for count in range(1, 5)
        ]  # by number of matrices
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
        if s := self.lib.gwq_matmul(
            self.pool.ptr, m, count, x, n, outputs, self._scratch_ptr, self._scratch.nbytes
        ):
            check(s, "matmul")

    def embed(self, matrix, ids, out):
        """Rows ids (n,) int32 of a matrix into out (n, cols)."""
        if self._group.array.shape[1] != matrix.cols:
            self._group = F32((ROWS, matrix.cols))
        if s := self.lib.gwq_embed(
            matrix.struct, pointer(ids, "int32_t *"), len(ids), self._group.ptr, out
        ):
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
        if s := self.lib.gwq_attention(
            self.pool.ptr,
            q,
            k,
            v,
            type,
            n,
            start,
            heads,
            kv_heads,
            dim,
            scale,
            softcap,
            window,
            out,
        ):
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
    check(
        lib().gwq_read(pool.ptr, pointer(array, "void *"), array.nbytes, streams, ahead, out),
        "read",
    )
