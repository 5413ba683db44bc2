"""The Hessian of a matrix's inputs, damped, and the Cholesky factor of its inverse.

An error E (rows, cols) of a matrix costs sum_i s_i E_i H E_i^T / 2 (`calibration.statistics`): H is
the second derivative of the loss in each row, up to a factor. What error feedback needs of it is U,
the upper triangular matrix with U^T U = H^-1. For columns coded from left to right, GPTQ (arXiv
2210.17323) shows that

- U[j, j+1:] / U[j, j] tells how the columns right of j have to move to compensate an error in
  column j as well as they can, and
- 1 / U[j, j]^2 is what the error costs after that compensation, where H[j, j] is what it costs
  without.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from gwq_export.compute.linalg import cholesky_inverse, product, reversed_as
from gwq_export.format.types import BLOCK

DAMPING = 0.01  # times the mean of the Hessian's diagonal is added to its diagonal


class Curvature:
    """The Hessian of a matrix's inputs, damped and padded to whole blocks of columns.

    cols: columns before padding. matrix: float32 (padded cols, padded cols), symmetric.
    column_weight: float32 (padded cols,), its diagonal in units of the mean diagonal before
    damping, zero in the padding. Matrices with the same inputs share one Curvature, so that its
    factorization is computed once.
    """

    def __init__(self, hessian: np.ndarray, tokens: int | None = None) -> None:
        """Damp a Hessian (cols, cols), float32: the mean of x x^T over `tokens` tokens.

        With m the mean of its diagonal, the matrix becomes

            H + damping m I,     damping = DAMPING + cols / tokens

        The constant keeps columns that were always zero from making H singular. The second term
        shrinks the estimate to a multiple of the identity: a mean over few tokens has sampling
        errors of about sqrt(cols / tokens) of its size, and at tokens < cols it does not even have
        full rank. tokens: None for a Hessian that is taken at its word.
        """
        cols = len(hessian)
        damping = DAMPING + (cols / tokens if tokens else 0)
        padded = -(-cols // BLOCK) * BLOCK
        mean = max(float(np.trace(hessian)) / cols, 1e-30)
        real = np.arange(cols)
        padding = np.arange(cols, padded)
        self.cols = cols
        self.matrix = np.zeros((padded, padded), np.float32)
        self.matrix[:cols, :cols] = hessian
        self.matrix[real, real] += damping * mean
        self.matrix[padding, padding] = damping * mean
        self.column_weight = np.ascontiguousarray(np.diag(self.matrix) / mean)
        self.column_weight[cols:] = 0
        self.gains: dict[Any, Any] = {}  # of `feedback.column_gains`, by what they depend on

    @cached_property
    def factor(self) -> np.ndarray:
        """U, float32 (padded cols, padded cols), upper triangular, with U^T U = matrix^-1.

        Computed in float64. With J the reversal of the columns and J matrix J = L L^T, L lower
        triangular, the matrix is R R^T for the upper triangular R = J L J, so that U = R^-1 =
        J L^-1 J. Raises GwqError where the matrix is not positive definite.
        """
        inverse = cholesky_inverse(reversed_as(np.float64, self.matrix))
        return reversed_as(np.float32, inverse)

    def divide(self, x: np.ndarray) -> np.ndarray:
        """x matrix^-1 for x float32 (n, cols), float32 (n, cols), as x U^T U."""
        factor = self.factor[: self.cols, : self.cols]
        return product(product(x, factor.T), factor)


def curvature_of(statistics: Mapping[str, Any]) -> Curvature:
    """The Curvature among a matrix's statistics, made from the Hessian if there is none yet."""
    hessian = statistics["hessian"]
    return hessian if isinstance(hessian, Curvature) else Curvature(hessian)


class Curvatures:
    """Turns the Hessians of matrices that come one after another into Curvatures.

    Neighbours with one and the same Hessian, such as query, key and value, get one Curvature.
    """

    def __init__(self, tokens: int | None = None) -> None:
        """tokens: how many every Hessian is a mean of, unless `put` is told otherwise."""
        self.tokens = tokens
        self._hessian: np.ndarray | None = None
        self._curvature: Curvature | None = None

    def put(self, statistics: dict[str, Any], tokens: int | None = None) -> dict[str, Any]:
        """Return the statistics of a matrix with a Curvature in the place of their Hessian, if any.

        tokens: how many this Hessian is a mean of, such as those routed to an expert.
        """
        hessian = statistics.get("hessian")
        if hessian is None:
            return statistics
        if self._hessian is not hessian:
            self._hessian = hessian
            self._curvature = Curvature(hessian, self.tokens if tokens is None else tokens)
        return statistics | {"hessian": self._curvature}
