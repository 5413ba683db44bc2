"""The feed-forward layer of a mixture of experts: a router and the experts it chooses for a token.

Only the chosen experts' weights are read. Experts are summed in ascending order, so that results
depend neither on the number of threads nor on which tokens are computed together.
"""

from collections.abc import Sequence

import numpy as np

from gwq_export.native.library import F32, Pointer, view
from gwq_export.native.matrix import Linear
from gwq_export.native.ops import Ops


def route(scores: np.ndarray, used: int, normed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Choose `used` experts for each token by a softmax over scores (n, experts) float32.

    Returns (experts, weights), both (n, used): experts ascend; of equal scores the lower expert is
    taken. normed: the weights of a token add up to 1; else they are shares of all experts.
    """
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    chosen = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :used], axis=1)
    weights = np.take_along_axis(exponentials, chosen, axis=1)
    return chosen, weights / (weights if normed else exponentials).sum(1, keepdims=True)


class Experts:
    """down_j(activation(gate_j x) * (up_j x)), summed over a token's experts j by their weights.

    router: Linear with one output for each expert. gate_up, down: a Linear for each expert, gate_up
    of two matrices. used, normed: as in `route`. activation: enum gwq_activation.
    """

    def __init__(
        self,
        router: Linear,
        gate_up: Sequence[Linear],
        down: Sequence[Linear],
        used: int,
        normed: bool,
        activation: int,
    ) -> None:
        self.router = router
        self.gate_up = gate_up
        self.down = down
        self.used = used
        self.normed = normed
        self.activation = activation
        self.dim = gate_up[0].cols
        self.ffn = down[0].cols

    def __call__(
        self, ops: Ops, x: Pointer, n: int, gate: Pointer, up: Pointer, out: Pointer
    ) -> None:
        """x (n, dim) to out (n, dim), which may be x; gate and up (n, ffn) are work space."""
        scores = F32((n, len(self.down)))
        self.router(ops, x, n, scores.ptr)
        chosen, weights = route(scores.array, self.used, self.normed)
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
            rows *= weights[token, slot, None]
            total[token] += rows
        view(out, (n, self.dim))[...] = total
