"""Joins neighbours of a recorded list of operations, so that threads wait less for each other.

A norm or an activation before a product every thread computes for itself; a bias, or the sum that
the result goes to, is added by whoever has computed a row. What can be joined is read off the
memory that operations read and write.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from gwq_export.native.library import NULL, lib
from gwq_export.native.recorder import Op
from gwq_export.native.spans import Span


def _dead(span: Span, later: Sequence[Op]) -> bool:
    """Whether no later operation reads what is in a buffer now.

    At the end nobody does: results are what products and sums leave, which no join takes away.
    """
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
    """The operations, with neighbours joined where no other operation sees a difference."""
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
