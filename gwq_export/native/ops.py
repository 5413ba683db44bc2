"""The native operations of a forward pass, bound to a thread pool.

`x`, `out` and the like are float pointers; a shape after a name is that of the floats it points to.
gwq.h declares the C functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gwq_export.format.types import ROWS, ffi
from gwq_export.native.library import Pointer, Pool, check, lib, pointer

CACHE = ("f16", "q8_0", "f32")  # types that the numbers of a KV cache may have
MAX_MATRICES = 4  # of one matmul
ATTENTION_CUT: int = ffi.typeof("enum gwq_attention_cuts").relements["GWQ_ATTENTION_CUT"]


class Ops:
    """The native operations with work buffers of their own: use one Ops per Python thread.

    Small models spend as long in these few lines as in the kernels, so they look up and allocate
    little. Every method raises as `native.library.check` does.
    """

    def __init__(self, pool: Pool) -> None:
        self.lib = pool.lib
        self.pool = pool
        self._scratch: object = None  # keeps the memory
        self._scratch_bytes = 0
        self._scratch_ptr = ffi.NULL
        self._need: dict[tuple[int, int], int] = {}  # (n, cols) -> bytes of scratch
        self._outputs = [ffi.new("float *[]", count + 1) for count in range(MAX_MATRICES)]
        self._group = pool.floats((ROWS, 1))
        self._group_cols = 1
        self._work = pool.floats(0)

    def work(self, count: int) -> Pointer:
        """Pointer to `count` floats that the next call may overwrite."""
        if self._work.size < count:
            self._work = self.pool.floats(count)
        return self._work.ptr

    def _scratch_of(self, need: int) -> Pointer:
        """Pointer to at least `need` bytes that the next call may overwrite."""
        if need > self._scratch_bytes:
            self._scratch, self._scratch_ptr = self.pool.scratch(need)
            self._scratch_bytes = need
        return self._scratch_ptr if need else ffi.NULL

    def matmul(
        self, m: Pointer, count: int, x: Pointer, n: int, ys: Sequence[Pointer], cols: int
    ) -> None:
        """ys[i] (n, rows of m[i]) = x (n, cols) @ m[i].T, for `count` gwq_matrix pointers m."""
        need = self._need.get((n, cols))
        if need is None:
            need = self._need[n, cols] = self.lib.gwq_scratch_bytes(n, cols)
            self._scratch_of(need)
        outputs = self._outputs[count - 1]
        for i in range(count):
            outputs[i] = ys[i]
        if s := self.lib.gwq_matmul(
            self.pool.ptr, m, count, x, n, outputs, self._scratch_ptr, self._scratch_bytes
        ):
            check(s, "matmul")

    def embed(self, matrix: Pointer, cols: int, ids: np.ndarray, out: Pointer) -> None:
        """out (n, cols) = rows ids (n,) int32 of a gwq_matrix of `cols` columns."""
        if self._group_cols != cols:
            self._group = self.pool.floats((ROWS, cols))
            self._group_cols = cols
        if s := self.lib.gwq_embed(
            matrix, pointer(ids, "int32_t *"), len(ids), self._group.ptr, out
        ):
            check(s, "embedding")

    def positions(self, matrix: Pointer, cols: int, start: int, n: int, out: Pointer) -> None:
        """out (n, cols) = rows start .. start + n - 1 of a gwq_matrix of `cols` columns."""
        self.embed(matrix, cols, np.arange(start, start + n, dtype=np.int32), out)

    def rmsnorm(
        self, x: Pointer, weight: Pointer, eps: float, n: int, dim: int, out: Pointer
    ) -> None:
        """out (n, dim) = x / sqrt(mean(x^2) + eps) * weight (dim); out may be x."""
        if s := self.lib.gwq_rmsnorm(self.pool.ptr, x, weight, eps, n, dim, out):
            check(s, "rmsnorm")

    def layernorm(
        self, x: Pointer, weight: Pointer, bias: Pointer, eps: float, n: int, dim: int, out: Pointer
    ) -> None:
        """out (n, dim) = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; out may be x."""
        if s := self.lib.gwq_layernorm(self.pool.ptr, x, weight, bias, eps, n, dim, out):
            check(s, "layernorm")

    def rope(
        self,
        x: Pointer,
        cos: Pointer,
        sin: Pointer,
        n: int,
        heads: int,
        dim: int,
        rotated: int,
        style: int,
    ) -> None:
        """Turn the first `rotated` values of every head of x (n, heads, dim) in place.

        cos, sin: (n, rotated / 2), of the tokens' positions. style: GWQ_ROPE_PAIRS or _HALVES.
        """
        if s := self.lib.gwq_rope(self.pool.ptr, x, cos, sin, n, heads, dim, rotated, style):
            check(s, "rope")

    def attention(
        self,
        q: Pointer,
        k: Pointer,
        v: Pointer,
        type: int,
        n: int,
        start: int,
        heads: int,
        kv_heads: int,
        dim: int,
        scale: float,
        softcap: float,
        window: int,
        out: Pointer,
    ) -> None:
        """Causal attention of n queries q (n, heads, dim) at positions start .. start + n - 1.

        k, v: (start + n, kv_heads, dim) of a KV cache whose numbers have the type with the id
        `type`. softcap, window: 0 for none. out: (n, heads, dim).
        """
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
            self._scratch_of(self.lib.gwq_attention_bytes(n, heads, dim)),
        ):
            check(s, "attention")

    def shortconv(
        self,
        x: Pointer,
        weight: Pointer,
        state: Pointer,
        rows: int,
        taps: int,
        n: int,
        start: int,
        dim: int,
        out: Pointer,
    ) -> None:
        """out (n, dim) = gated short convolution of x (n, 3, dim) by weight (taps, dim).

        The tokens' positions are start .. start + n - 1. state (rows, dim) has the convolution's
        inputs at the positions before them and gets theirs; x means nothing afterwards.
        """
        if s := self.lib.gwq_shortconv(
            self.pool.ptr, x, weight, state, rows, taps, n, start, dim, out
        ):
            check(s, "short convolution")

    def activate(self, x: Pointer, up: Pointer, n: int, dim: int, activation: int) -> None:
        """x (n, dim) = activation(x) * up (n, dim); up may be NULL with GWQ_GELU and _GELU_TANH."""
        if s := self.lib.gwq_activate(self.pool.ptr, x, up, n, dim, activation):
            check(s, "activation")

    def cache(self, x: Pointer, count: int, type: int, cache: Pointer, first: int) -> None:
        """Write x (count,) as the numbers from `first` on of a cache of the type id `type`."""
        if s := self.lib.gwq_cache(x, count, type, cache, first):
            check(s, "cache")

    def softcap(self, x: Pointer, n: int, dim: int, cap: float) -> None:
        """x (n, dim) = cap * tanh(x / cap)."""
        if s := self.lib.gwq_softcap(self.pool.ptr, x, n, dim, cap):
            check(s, "softcap")

    def gate(self, x: Pointer, gate: Pointer, n: int, count: int, each: int) -> None:
        """x (n, count, each) *= sigmoid(gate (n, count))."""
        if s := self.lib.gwq_gate(self.pool.ptr, x, gate, n, count, each):
            check(s, "gate")

    def scale(self, x: Pointer, n: int, dim: int, scale: float) -> None:
        """x (n, dim) *= scale."""
        if s := self.lib.gwq_scale(x, n, dim, scale):
            check(s, "scale")

    def add(
        self,
        x: Pointer,
        y: Pointer,
        n: int,
        dim: int,
        scale: float = 1.0,
        broadcast: bool = False,
    ) -> None:
        """x (n, dim) += scale * y; y is (n, dim), or (dim,) for every row with `broadcast`."""
        if s := self.lib.gwq_add(x, y, n, dim, scale, broadcast):
            check(s, "add")

    def copy(self, x: Pointer, stride: int, n: int, dim: int, out: Pointer) -> None:
        """out (n, dim) = n runs of `dim` floats that begin `stride` floats apart in x."""
        if s := self.lib.gwq_copy(x, stride, n, dim, out):
            check(s, "copy")

    def route(
        self,
        scores: Pointer,
        n: int,
        experts: int,
        used: int,
        normed: bool,
        chosen: Pointer,
        weights: Pointer,
    ) -> None:
        """Choose `used` experts for each token by a softmax over scores (n, experts).

        chosen (n, used) int32: ascending; of equal scores the lower expert is taken. weights (n,
        used): those of a token add up to 1 if `normed`; else they are shares of all experts.
        """
        if s := self.lib.gwq_route(scores, n, experts, used, normed, chosen, weights):
            check(s, "the scores of the experts")


@dataclass(frozen=True)
class Best:
    """The largest of many numbers: their indices, int32 (k,), and they, float32 (k,).

    The largest first; of equal numbers the earlier ones.
    """

    ids: np.ndarray
    values: np.ndarray


def top(x: np.ndarray, k: int) -> np.ndarray:
    """Indices (k,) int32 of the k largest of x (n,) float32, largest first, 1 <= k <= n.

    Of equal numbers the earlier ones. Raises GwqError for numbers that are not finite.
    """
    x = np.ascontiguousarray(x, np.float32)
    ids = np.empty(k, np.int32)
    check(lib().gwq_top(pointer(x), x.size, k, pointer(ids, "int32_t *")), "the model's logits")
    return ids


def read_roof(pool: Pool, array: np.ndarray, streams: int, ahead: int) -> None:
    """Read `array` once, to be timed by the caller.

    streams: 1 to 8, how many places each thread reads at once; ahead: bytes prefetched, 0: none.
    """
    read_memory(pool, pointer(array, "void *"), array.nbytes, streams, ahead)


def read_memory(pool: Pool, memory: Pointer, count: int, streams: int = 1, ahead: int = 0) -> None:
    """As `read_roof`, `count` bytes where the pool's operations find them."""
    out = ffi.new("uint64_t *")
    check(pool.lib.gwq_read(pool.ptr, memory, count, streams, ahead, out), "read")
