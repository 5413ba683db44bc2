"""A forward pass as a list of native operations, recorded once and run by one call.

`Recorder` has the methods of `Ops` that a forward pass calls; instead of computing it writes them
down. Neighbours are joined, and `Program.run` hands the list to the library. What can be joined is
read off the memory that operations read and write. gwq_program.h says what an op does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gwq_export.format.types import ROWS, ffi
from gwq_export.native.library import F32, NULL, Pointer, Pool, check, lib, pointer
from gwq_export.native.ops import Ops

_ADDRESS = ffi.typeof("uintptr_t")
MAX_TOKENS: int = ffi.typeof("enum gwq_program_limits").relements["GWQ_PROGRAM_TOKENS"]


@dataclass(frozen=True)
class Span:
    """Bytes of memory: `bytes` from address `at` on."""

    at: int
    bytes: int

    def meets(self, other: "Span") -> bool:
        """Whether the two share a byte."""
        return self.at < other.at + other.bytes and other.at < self.at + self.bytes

    def covers(self, other: "Span") -> bool:
        """Whether every byte of `other` is in here."""
        return self.at <= other.at and other.at + other.bytes <= self.at + self.bytes


def floats(at: Pointer, count: int) -> Span:
    """The memory of `count` floats."""
    return Span(int(ffi.cast(_ADDRESS, at)), 4 * count)


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
    """Writes down the operations of a forward pass for `n` tokens at position 0."""

    def __init__(self, n: int, pool: Pool) -> None:
        super().__init__(pool)
        self.n = n
        self.ops: list[Op] = []
        self._buffers: list[F32] = []

    def _add(self, kind: str, n: int, reads: list[Span], writes: list[Span], **fields: Any) -> None:
        self.ops.append(Op(kind, n, fields, reads, writes, (kind,)))

    def work(self, count: int) -> Pointer:
        """Pointer to `count` floats of the program's own."""
        self._buffers.append(F32(count))
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


# --- joining --------------------------------------------------------------------------------------


def _dead(span: Span, later: Sequence[Op]) -> bool:
    """Whether no later operation reads what is in a buffer now."""
    for op in later:
        if any(r.meets(span) for r in op.reads):
            return False
        if any(w.covers(span) for w in op.writes):
            return True
    return True


def _apart(op: Op, read: Sequence[Span]) -> bool:
    """Whether an operation leaves alone what is read beside it."""
    return not any(w.meets(r) for w in op.writes for r in read)


def _norm_first(norm: Op, product: Op, later: Sequence[Op]) -> bool:
    """Join a norm and the product that reads its result."""
    if not _can_come_first(norm, product, later):
        return False
    f = norm.fields
    product.fields |= {"before": lib().GWQ_BEFORE_NORM, "layer": norm.kind == "layernorm"}
    product.fields |= {"x": f["x"], "weight": f["weight"], "shift": f["bias"], "eps": f["eps"]}
    product.reads = [*norm.reads, *product.reads[1:]]
    return True


def _activation_first(activation: Op, product: Op, later: Sequence[Op]) -> bool:
    """Join an activation and the product that reads its result."""
    if not _can_come_first(activation, product, later):
        return False
    f = activation.fields
    product.fields |= {"before": lib().GWQ_BEFORE_ACTIVATION, "activation": f["activation"]}
    product.fields |= {"x": f["x"], "up": f["up"]}
    product.reads = [*activation.reads, *product.reads[1:]]
    return True


def _can_come_first(op: Op, product: Op, later: Sequence[Op]) -> bool:
    """Whether an operation's one result is the input of a product, and of nothing else.

    Then every thread can compute it for itself, and it is nowhere in the end.
    """
    if (
        product.fields["before"]
        or product.reads[:1] != op.writes
        or product.n != op.n
        or not _apart(product, op.reads)
    ):
        return False
    return _dead(op.writes[0], [replace(product, reads=product.reads[1:]), *later])


def _bias_after(product: Op, add: Op, later: Sequence[Op]) -> bool:
    """Join a product and the bias that is added to one of its results."""
    if not add.fields["broadcast"]:
        return False
    f = product.fields
    hit = [i for i, y in enumerate(f["y"]) if y == add.fields["x"] and f["bias"][i] == NULL]
    if not hit or f["into"] != NULL or add.fields["scale"] != 1:
        return False
    f["bias"] = [add.fields["y"] if i == hit[0] else b for i, b in enumerate(f["bias"])]
    return True


def _sum_after(product: Op, add: Op, later: Sequence[Op]) -> bool:
    """Join a product and the sum that its one result is added to."""
    if add.fields["broadcast"]:
        return False
    f = product.fields
    if f["count"] != 1 or f["into"] != NULL or add.fields["y"] != f["y"][0]:
        return False
    if not _apart(add, [*product.reads, *product.writes]):
        return False
    f |= {"into": add.fields["x"], "factor": add.fields["scale"]}
    product.writes = [*product.writes, *add.writes]
    return True


# (kinds of an operation, of the next one, what joins them, which of the two stays)
_JOINS: list[tuple[set[str], set[str], Callable[[Op, Op, Sequence[Op]], bool], int]] = [
    ({"matmul"}, {"add"}, _bias_after, 0),
    ({"matmul"}, {"add"}, _sum_after, 0),
    ({"rmsnorm", "layernorm"}, {"matmul"}, _norm_first, 1),
    ({"activate"}, {"matmul"}, _activation_first, 1),
]


def joined(ops: Sequence[Op]) -> list[Op]:
    """The operations, with neighbours joined where that changes nothing they leave behind."""
    left = [Op(o.kind, o.n, dict(o.fields), o.reads, o.writes, o.parts) for o in ops]
    for first, second, join, stays in _JOINS:
        i = 0
        while i + 1 < len(left):
            one, other = left[i], left[i + 1]
            if one.kind in first and other.kind in second and join(one, other, left[i + 2 :]):
                parts = one.parts + other.parts
                left[i : i + 2] = [(one, other)[stays]]
                left[i].parts = parts
            else:
                i += 1
    return left


# --- running --------------------------------------------------------------------------------------

_STRUCTS = {  # kinds whose struct has another name
    "rmsnorm": "norm",
    "layernorm": "norm",
    "activate": "each",
    "softcap": "each",
    "scale": "each",
    "fill": "each",
}


class Program:
    """A recorded forward pass for n tokens, ready to run on a pool at any position.

    It points into weights, work buffers and caches, which have to stay where they are.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.n = recorder.n
        self.pool = recorder.pool
        self.ops = joined(recorder.ops)
        self._recorder = recorder  # which has work buffers
        self._lib = lib()
        self._ops = ffi.new("gwq_op[]", len(self.ops))
        for struct, op in zip(self._ops, self.ops, strict=True):
            struct.kind = getattr(self._lib, f"GWQ_OP_{op.kind.upper()}")
            struct.n = op.n
            setattr(struct, _STRUCTS.get(op.kind, op.kind), op.fields)
        self._ids = np.zeros(self.n, np.int32)
        self._ids_ptr = pointer(self._ids, "int32_t *")
        size = self._lib.gwq_program_bytes(self._ops, len(self.ops), self.pool.threads)
        self._scratch = np.empty(size, np.uint8)
        self._scratch_ptr = pointer(self._scratch, "void *")

    def run(self, ids: np.ndarray, pos: int, nanoseconds: np.ndarray | None = None) -> None:
        """Run for the token ids (n,) at the positions from `pos` on.

        nanoseconds: int64 (operations,), to which the time of every one is added. Raises as
        `native.library.check` does.
        """
        self._ids[:] = ids
        times = ffi.NULL if nanoseconds is None else pointer(nanoseconds, "int64_t *")
        if s := self._lib.gwq_program_run(
            self.pool.ptr,
            self._ops,
            len(self.ops),
            self._ids_ptr,
            self.n,
            pos,
            self._scratch_ptr,
            self._scratch.nbytes,
            times,
        ):
            check(s, "forward pass")
