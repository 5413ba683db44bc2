"""The feed-forward layer of a mixture of experts: a router and the experts it chooses for a token.

Only the chosen experts' weights are read. Experts are summed in ascending order, so that results
depend neither on the number of threads nor on which tokens are computed together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gwq_export.format.types import TYPES, ffi
from gwq_export.native.cuda import Cuda
from gwq_export.native.library import F32, Pointer, Pool, pointer, view
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import Ops
from gwq_export.native.recorder import Recorder


@dataclass(frozen=True)
class _Room:
    """Work space of n tokens on a device: where each part begins, in floats.

    part: (slots, dim) inputs by expert, then results, a slot for each expert of a token; those of
    a shared expert come last. scores; weights (n, used), and behind them the shares (n, 2) of the
    shared expert; in_order (n, used + 1): both, as they are added up. index: (slots,) int32.
    """

    slots: int
    scores: int
    weights: int
    in_order: int
    index: int
    end: int


def _room(n: int, experts: int, used: int, dim: int, shared: bool) -> _Room:
    slots = n * (used + shared)
    scores = slots * dim
    weights = scores + n * max(experts, 2)  # a shared expert has two scores
    in_order = weights + n * (used + 2 * shared)
    index = in_order + slots * shared
    return _Room(slots, scores, weights, in_order, index, index + slots)


def work_floats(n: int, experts: int, used: int, dim: int, shared: bool) -> int:
    """Floats that n tokens take on a device beside the layer's inputs and outputs.

    shared: whether there is a shared expert.
    """
    return _room(n, experts, used, dim, shared).end


class SharedExpert:
    """An expert of all tokens, whose weight in their sums is sigmoid(share . x).

    That is the first of two shares of a softmax over share . x and 0, so that the operations of the
    other experts compute it. share (dim,), in the pool. gate_up: Linear of two matrices.
    """

    def __init__(self, pool: Pool, share: np.ndarray, gate_up: Linear, down: Linear) -> None:
        rows = np.stack([share, np.zeros_like(share)])
        data = rows.view(np.uint8).reshape(-1)
        self.router = Linear([pool.matrix(Matrix("share", TYPES["f32"], rows.shape, data))])
        self.gate_up = gate_up
        self.down = down
        self._gate_up, self._down = (
            ffi.new("gwq_matrix *[]", [m.struct for m in linear.matrices])
            for linear in (gate_up, down)
        )

    def weights(self, ops: Ops, x: Pointer, n: int) -> np.ndarray:
        """Of each token of x (n, dim), (n,)."""
        scores, shares = F32((n, 2)), F32((n, 2))
        both = np.empty((n, 2), np.int32)
        self.router(ops, x, n, scores.ptr)
        ops.route(scores.ptr, n, 2, 2, False, pointer(both, "int32_t *"), shares.ptr)
        return shares.array[:, 0]

    def on_device(
        self,
        ops: Ops,
        x: Pointer,
        n: int,
        gate: Pointer,
        up: Pointer,
        out: Pointer,
        activation: int,
        scores: Pointer,
        both: Pointer,
        shares: Pointer,
    ) -> None:
        """out (n, dim) of x (n, dim), and shares (n, 2), the first of which is its weight.

        scores: 2n floats of work space, both: 2n int32.
        """
        self.gate_up(ops, x, n, gate, up)
        ops.activate(gate, up, n, self.down.cols, activation)
        self.down(ops, gate, n, out)
        self.router(ops, x, n, scores)
        ops.route(scores, n, 2, 2, False, both, shares)

    def record(
        self, ops: Recorder, x: Pointer, gate: Pointer, up: Pointer, out: Pointer, activation: int
    ) -> None:
        """Add its part to out (dim,), of one token x (dim,)."""
        scores, shares, part = ops.work(2), ops.work(2), ops.work(self.gate_up.cols)
        first = ffi.cast("int32_t *", ops.work(2))  # 0 and 1: of two experts, both are chosen
        self.router(ops, x, 1, scores)
        ops.route(scores, 1, 2, 2, False, first, shares)
        ops.of_choice(
            [m.struct for m in self.gate_up.matrices], self._gate_up, 1, first, x, [gate, up]
        )
        ops.activate(gate, up, 1, self.down.cols, activation)
        ops.of_choice(
            [self.down.matrices[0].struct], self._down, 1, first, gate, [part], out, shares
        )


class Experts:
    """down_j(activation(gate_j x) * (up_j x)), summed over a token's experts j by their weights.

    router: Linear with one output for each expert. gate_up, down: a Linear for each expert, gate_up
    of two matrices. used, normed: as in `Ops.route`. activation: enum gwq_activation. shared: comes
    last in the sum.
    """

    def __init__(
        self,
        router: Linear,
        gate_up: Sequence[Linear],
        down: Sequence[Linear],
        used: int,
        normed: bool,
        activation: int,
        shared: SharedExpert | None = None,
    ) -> None:
        self.router = router
        self.gate_up = gate_up
        self.down = down
        self.used = used
        self.normed = normed
        self.activation = activation
        self.dim = gate_up[0].cols
        self.ffn = down[0].cols
        self.shared = shared
        self.width = max(self.ffn, shared.down.cols if shared else 0)
        self._gate_up, self._down = (  # gwq_matrix pointers of all experts
            ffi.new("gwq_matrix *[]", [m.struct for linear in linears for m in linear.matrices])
            for linears in (gate_up, down)
        )

    def __call__(
        self, ops: Ops, x: Pointer, n: int, gate: Pointer, up: Pointer, out: Pointer
    ) -> None:
        """x (n, dim) to out (n, dim), which may be x; gate and up (n, ffn) are work space."""
        if isinstance(ops, Recorder):
            self._record(ops, x, gate, up, out)
            return
        if isinstance(ops.pool, Cuda):
            self._on_device(ops, ops.pool, x, n, gate, up, out)
            return
        scores = F32((n, len(self.down)))
        chosen = np.empty((n, self.used), np.int32)
        weights = F32((n, self.used))
        self.router(ops, x, n, scores.ptr)
        ids = pointer(chosen, "int32_t *")
        ops.route(scores.ptr, n, len(self.down), self.used, self.normed, ids, weights.ptr)
        inputs = view(x, (n, self.dim))
        total = np.zeros_like(inputs)
        part = F32((n, self.dim))  # the tokens of one expert: its inputs, then its outputs
        for j in np.flatnonzero(np.bincount(chosen.ravel())).tolist():
            token, slot = np.nonzero(chosen == j)
            m = len(token)
            rows = part.array[:m]
            rows[...] = inputs[token]
            self.gate_up[j](ops, part.ptr, m, gate, up)
            ops.activate(gate, up, m, self.ffn, self.activation)
            self.down[j](ops, gate, m, part.ptr)
            rows *= weights.array[token, slot, None]
            total[token] += rows
        if self.shared:
            self.shared.gate_up(ops, x, n, gate, up)
            ops.activate(gate, up, n, self.shared.down.cols, self.activation)
            self.shared.down(ops, gate, n, part.ptr)
            total += part.array * self.shared.weights(ops, x, n)[:, None]
        view(out, (n, self.dim))[...] = total

    def _on_device(
        self, ops: Ops, device: Cuda, x: Pointer, n: int, gate: Pointer, up: Pointer, out: Pointer
    ) -> None:
        """The same where `x` lies in a device's memory: all that crosses is who goes where."""
        experts, pairs = len(self.down), n * self.used
        room = _room(n, experts, self.used, self.dim, self.shared is not None)
        part = ops.work(room.end)
        scores, weights, index = part + room.scores, part + room.weights, part + room.index
        self.router(ops, x, n, scores)
        chosen = ffi.cast("int32_t *", index)  # until it is work space
        ops.route(scores, n, experts, self.used, self.normed, chosen, weights)
        of_pair = device.ids(chosen, pairs)  # the expert of token i // used
        order = np.argsort(of_pair, kind="stable")
        device.gather(x, n, (order // self.used).astype(np.int32), self.dim, index, part)
        ends = np.cumsum(np.bincount(of_pair, minlength=experts)).tolist()
        for j, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if m := end - start:
                rows = part + start * self.dim
                self.gate_up[j](ops, rows, m, gate, up)
                ops.activate(gate, up, m, self.ffn, self.activation)
                self.down[j](ops, gate, m, rows)
        place = np.empty(pairs, np.int32)
        place[order] = np.arange(pairs)
        rows_of = place.reshape(n, self.used)
        if self.shared:
            last = part + pairs * self.dim
            shares = weights + pairs
            self.shared.on_device(
                ops, x, n, gate, up, last, self.activation, scores, chosen, shares
            )
            of_shared = np.arange(n, dtype=np.int32)[:, None]
            rows_of = np.hstack([rows_of, pairs + of_shared])
            of_slot = np.arange(pairs, dtype=np.int32).reshape(n, self.used)
            of_slot = np.hstack([of_slot, pairs + 2 * of_shared])
            in_order = part + room.in_order
            device.gather(weights, pairs + 2 * n, of_slot.ravel(), 1, index, in_order)
            weights = in_order
        device.combine(part, room.slots, rows_of, weights, self.dim, index, out)

    def _record(self, ops: Recorder, x: Pointer, gate: Pointer, up: Pointer, out: Pointer) -> None:
        """The same for one token, whose experts are chosen when the program runs."""
        count = len(self.down)
        scores, weights = ops.work(count), ops.work(self.used)
        chosen = ffi.cast("int32_t *", ops.work(self.used))
        total, part = ops.work(self.dim), ops.work(self.dim)
        self.router(ops, x, 1, scores)
        ops.route(scores, 1, count, self.used, self.normed, chosen, weights)
        ops.fill(total, 1, self.dim, 0.0)
        for i in range(self.used):
            of_one = [m.struct for m in self.gate_up[0].matrices]
            ops.of_choice(of_one, self._gate_up, count, chosen + i, x, [gate, up])
            ops.activate(gate, up, 1, self.ffn, self.activation)
            of_one = [self.down[0].matrices[0].struct]
            ops.of_choice(of_one, self._down, count, chosen + i, gate, [part], total, weights + i)
        if self.shared:
            self.shared.record(ops, x, gate, up, total, self.activation)
        ops.copy(total, self.dim, 1, self.dim, out)
