"""Writes a forward pass down as a list of native operations, instead of computing it.

`Recorder` has the methods of `Ops` that a forward pass calls. Beside what gwq_program.h says of an
operation it notes which memory that reads and writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.format.types import ROWS, ffi
from gwq_export.native.library import F32, NULL, Pointer, Pool, lib
from gwq_export.native.ops import Ops
from gwq_export.native.spans import Span, floats


@dataclass
class Op:
    """One recorded operation.

    kind: its name in gwq_program.h, such as "matmul". n: rows. fields: of the struct for that kind.
    reads, writes: work buffers that it touches, beside weights and caches. parts: names of the
    operations that it was joined from, in order.
    """

    kind: str
    n: int
    fields: dict[str, Any]
    reads: list[Span]
    writes: list[Span]
    parts: tuple[str, ...]


class Recorder(Ops):
    """Writes down the operations of a forward pass for `n` tokens at position 0.

    apart: whether `work` gives other memory each time, so that operations can be joined; else the
    next call may overwrite it, as that of Ops.
    """

    def __init__(self, n: int, pool: Pool, apart: bool = True) -> None:
        super().__init__(pool)
        self.n = n
        self.apart = apart
        self.ops: list[Op] = []
        self._buffers: list[F32] = []

    def _add(self, kind: str, n: int, reads: list[Span], writes: list[Span], **fields: Any) -> None:
        self.ops.append(Op(kind, n, fields, reads, writes, (kind,)))

    @property
    def own(self) -> list[Span]:
        """Memory that `work` has given."""
        return [floats(b.ptr, b.size) for b in self._buffers]

    def work(self, count: int) -> Pointer:
        """Pointer to `count` floats of the program's own."""
        last = self._buffers[-1].size if self._buffers else 0
        if self.apart or last < count:
            self._buffers.append(self.pool.floats(count))
        return self._buffers[-1].ptr

    def embed(self, matrix: Pointer, cols: int, ids: np.ndarray, out: Pointer) -> None:
        """As Ops.embed, of the ids that the program is run for."""
        self._embed(matrix, cols, out, False)

    def positions(self, matrix: Pointer, cols: int, start: int, n: int, out: Pointer) -> None:
        """As Ops.positions, of those that the program is run at."""
        self._embed(matrix, cols, out, True)

    def _embed(self, matrix: Pointer, cols: int, out: Pointer, positions: bool) -> None:
        group = self.work(ROWS * cols)
        fields = {"matrix": matrix, "positions": positions, "group": group, "out": out}
        self._add("embed", self.n, [], [floats(out, self.n * cols)], **fields)

    def matmul(
        self, m: Pointer, count: int, x: Pointer, n: int, ys: Sequence[Pointer], cols: int
    ) -> None:
        """As Ops.matmul."""
        matrices = [m[i] for i in range(count)]
        writes = [floats(y, n * int(a.rows)) for y, a in zip(ys, matrices, strict=True)]
        self._add(
            "matmul",
            n,
            [floats(x, n * cols)],
            writes,
            x=x,
            count=count,
            m=matrices,
            y=list(ys),
            bias=[NULL] * count,
            into=NULL,
            before=lib().GWQ_BEFORE_NOTHING,
        )

    def rmsnorm(
        self, x: Pointer, weight: Pointer, eps: float, n: int, dim: int, out: Pointer
    ) -> None:
        """As Ops.rmsnorm."""
        self._norm("rmsnorm", x, weight, NULL, eps, n, dim, out)

    def layernorm(
        self, x: Pointer, weight: Pointer, bias: Pointer, eps: float, n: int, dim: int, out: Pointer
    ) -> None:
        """As Ops.layernorm."""
        self._norm("layernorm", x, weight, bias, eps, n, dim, out)

    def _norm(
        self,
        kind: str,
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        eps: float,
        n: int,
        dim: int,
        out: Pointer,
    ) -> None:
        fields = {"x": x, "weight": weight, "bias": bias, "eps": eps, "dim": dim, "out": out}
        span = n * dim
        self._add(kind, n, [floats(x, span)], [floats(out, span)], **fields)

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
        """As Ops.rope."""
        span = [floats(x, n * heads * dim)]
        fields = {"heads": heads, "dim": dim, "rotated": rotated, "style": style}
        self._add("rope", n, span, span, x=x, cos=cos, sin=sin, **fields)

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
        """As Ops.attention."""
        span = n * heads * dim
        shape = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "window": window}
        fields = {"q": q, "k": k, "v": v, "type": type, "scale": scale, "softcap": softcap}
        self._add(
            "attention", n, [floats(q, span)], [floats(out, span)], out=out, **shape, **fields
        )

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
        """As Ops.shortconv."""
        wide = floats(x, 3 * n * dim)
        fields = {"x": x, "weight": weight, "state": state, "rows": rows, "taps": taps, "dim": dim}
        self._add("shortconv", n, [wide], [wide, floats(out, n * dim)], out=out, **fields)

    def activate(self, x: Pointer, up: Pointer, n: int, dim: int, activation: int) -> None:
        """As Ops.activate."""
        reads = [floats(x, n * dim)]
        if up != NULL:
            reads.append(floats(up, n * dim))
        self._add("activate", n, reads, reads[:1], x=x, up=up, dim=dim, activation=activation)

    def cache(self, x: Pointer, count: int, type: int, cache: Pointer, first: int) -> None:
        """As Ops.cache."""
        fields = {"width": count // self.n, "type": type, "cache": cache}
        self._add("cache", self.n, [floats(x, count)], [], x=x, **fields)

    def fill(self, x: Pointer, n: int, dim: int, number: float) -> None:
        """x (n, dim) = number."""
        self._add("fill", n, [], [floats(x, n * dim)], x=x, dim=dim, number=number)

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
        """As Ops.route."""
        fields = {"scores": scores, "experts": experts, "used": used, "normed": normed}
        writes = [floats(chosen, n * used), floats(weights, n * used)]
        reads = [floats(scores, n * experts)]
        self._add("route", n, reads, writes, chosen=chosen, weights=weights, **fields)

    def of_choice(
        self,
        m: Sequence[Pointer],
        experts: Pointer,
        count: int,
        choice: Pointer,
        x: Pointer,
        ys: Sequence[Pointer],
        into: Pointer = NULL,
        weight: Pointer = NULL,
    ) -> None:
        """As `matmul` of one token, with the matrices of the expert that is chosen by then.

        m: those of an expert. experts: of all `count` of them, one after another. choice: of the
        expert, int32. into: gets the one result times `weight`, a float.
        """
        every = ffi.new("gwq_matrix *[]", list(m))
        self.matmul(every, len(m), x, 1, ys, int(m[0].cols))
        op = self.ops[-1]
        op.fields |= {"experts": experts, "expert_count": count, "choice": choice}
        op.reads = [*op.reads, floats(choice, 1)]
        if into != NULL:
            op.fields |= {"into": into, "weight_of_choice": weight}
            op.reads.append(floats(weight, 1))
            op.writes = [*op.writes, floats(into, int(m[0].rows))]

    def softcap(self, x: Pointer, n: int, dim: int, cap: float) -> None:
        """As Ops.softcap."""
        span = [floats(x, n * dim)]
        self._add("softcap", n, span, span, x=x, dim=dim, number=cap)

    def gate(self, x: Pointer, gate: Pointer, n: int, count: int, each: int) -> None:
        """As Ops.gate."""
        span = floats(x, n * count * each)
        reads = [span, floats(gate, n * count)]
        self._add("gate", n, reads, [span], x=x, gate=gate, count=count, each=each)

    def scale(self, x: Pointer, n: int, dim: int, scale: float) -> None:
        """As Ops.scale."""
        span = [floats(x, n * dim)]
        self._add("scale", n, span, span, x=x, dim=dim, number=scale)

    def add(
        self,
        x: Pointer,
        y: Pointer,
        n: int,
        dim: int,
        scale: float = 1.0,
        broadcast: bool = False,
    ) -> None:
        """As Ops.add."""
        span = floats(x, n * dim)
        reads = [span] if broadcast else [span, floats(y, n * dim)]
        self._add("add", n, reads, [span], x=x, y=y, dim=dim, scale=scale, broadcast=broadcast)

    def copy(self, x: Pointer, stride: int, n: int, dim: int, out: Pointer) -> None:
        """As Ops.copy."""
        reads = [floats(x, (n - 1) * stride + dim)]
        self._add("copy", n, reads, [floats(out, n * dim)], x=x, stride=stride, dim=dim, out=out)
