"""The feed-forward layer of a mixture of experts: a router, and the experts that it chooses for
each token.

Only the chosen experts' weights are read. Sums go by ascending expert, so that results depend
neither on the number of threads nor on which tokens are computed together.
"""

import numpy as np

from gwq_export.native.library import F32, view


def route(scores, used, normed):
    """(experts, weights), both (n, used), that a softmax over scores (n, experts) float32 chooses
    for each token.

    Experts ascend; of equal scores the lower expert is taken. normed: the weights of a token add up
    to 1.
    """
    power = np.exp(scores - scores.max(1, keepdims=True))
    chosen = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :used], axis=1)
    weights = np.take_along_axis(power, chosen, axis=1)
    return chosen, weights / (weights if normed else power).sum(1, keepdims=True)


class Experts:
    """down_j(activation(gate_j x) * (up_j x)), summed over a token's experts j by the router's
    weights.

    router: Linear with an output for each expert; gate_up, down: a Linear for each expert, gate_up
    of two matrices.
    """

    def __init__(self, router, gate_up, down, used, normed, activation):
        self.router, self.gate_up, self.down, self.used, self.normed = (
            router,
            gate_up,
            down,
            used,
            normed,
        )
        self.activation, self.dim, self.ffn = activation, gate_up[0].cols, down[0].cols

    def __call__(self, ops, x, n, gate, up, out):
        """x (n, dim) to out (n, dim), float pointers; out may be x. gate and up (n, ffn) are work
        space.
        """
        scores = F32((n, len(self.down)))
        self.router(ops, x, n, scores.ptr)
        chosen, weights = route(scores.array, self.used, self.normed)
        given = view(x, (n, self.dim))
        total, part = np.zeros_like(given), F32((n, self.dim))
        for j in np.flatnonzero(np.bincount(chosen.ravel())):
            token, slot = np.nonzero(chosen == j)
            m = len(token)
            rows = part.array[:m]
            rows[...] = given[token]
            self.gate_up[j](ops, part.ptr, m, gate, up)
            ops.activate(gate, up, m, self.ffn, self.activation)
            self.down[j](ops, gate, m, part.ptr)
            rows *= weights[token, slot, None]
            total[token] += rows
        view(out, (n, self.dim))[...] = total
