"""The Hessian of a matrix's inputs, damped, and its Cholesky factor."""

from functools import cached_property

import numpy as np

from gwq_export.compute.linalg import cholesky_inverse
from gwq_export.format.types import BLOCK

# of the Hessian's mean diagonal, added to it; with few tokens, columns / tokens of it more
DAMPING = 0.01


class Curvature:
    """The Hessian (cols, cols) of a matrix's inputs, damped and padded, and what error feedback
    needs of it.

    Matrices that share an input share one: its factorization is computed once.
    """

    def __init__(self, hessian, tokens=None):
        """tokens: how many the Hessian is the mean of; the fewer, the more it is drawn to a
        multiple of the identity.
        """
        cols = len(hessian)
        damping = DAMPING + (cols / tokens if tokens else 0)
        padded = -(-cols // BLOCK) * BLOCK
        self.cols, mean = cols, max(float(np.trace(hessian)) / cols, 1e-30)
        self.matrix = np.zeros((padded, padded), np.float32)
        self.matrix[:cols, :cols] = hessian
        self.matrix[np.arange(cols), np.arange(cols)] += damping * mean
        self.matrix[np.arange(cols, padded), np.arange(cols, padded)] = damping * mean
        self.column_weight = np.ascontiguousarray(
            np.diag(self.matrix) / mean
        )  # float32 (padded cols,)
        self.column_weight[cols:] = 0

    @cached_property
    def factor(self):
        """U, upper triangular, float32: U^T U is the inverse of the matrix."""
        # With the columns in reverse order, matrix = L L^T becomes matrix = R R^T, R upper; U is
        # R's inverse.
        inverse = cholesky_inverse(self.matrix[::-1, ::-1].astype(np.float64))
        return inverse[::-1, ::-1].astype(np.float32)


def curvature_of(statistics):
    """The Curvature among a matrix's statistics, made of the Hessian if that is an array still."""
    h = statistics["hessian"]
    return h if isinstance(h, Curvature) else Curvature(h)


class Curvatures:
    """Makes a Curvature of each Hessian that comes by, one of neighbours that share it."""

    def __init__(self, tokens=None):
        self.tokens, self.of, self.last = tokens, None, None

    def put(self, statistics, tokens=None):
        """The statistics with a Curvature in the place of the Hessian, if they have one.

        tokens: of it, if not of all.
        """
        hessian = statistics.get("hessian")
        if hessian is None:
            return statistics
        if self.of is not hessian:
            self.of, self.last = (
                hessian,
                Curvature(hessian, self.tokens if tokens is None else tokens),
            )
        return statistics | {"hessian": self.last}
