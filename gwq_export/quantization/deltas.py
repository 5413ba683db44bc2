"""FP16 corrections of a matrix that is coded already: those that take most of the loss away."""

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.format.types import BLOCK
from gwq_export.quantization.encoder import relative
from gwq_export.quantization.saliency import select

ROUNDS = 4  # of choosing some and making them fit each other


def corrections(weight, coded, curvature, row_weight, count):
    """Where a correction of `coded` helps most, and its value: (row, col, float16 value), ascending
    by row and column.

    weight, coded: float32 (rows, cols); curvature: an encoder.Curvature; row_weight (rows,).
    Matching pursuit on sum(row_weight * diag(E H E^T)), E the error: a weight's worth is what the
    best change of it alone would gain; after each choice the values of all chosen are fitted by a
    round of coordinate descent.
    """
    cols = weight.shape[1]
    h, rows = curvature.matrix[:cols, :cols], relative(row_weight)
    diagonal = np.diag(h)[:, None]
    error = np.ascontiguousarray((coded - weight).T)  # (cols, rows)
    before, chosen = error.copy(), np.zeros(weight.shape, bool)
    for k in range(1, ROUNDS + 1):
        worth = rows * product(h, error) ** 2 / diagonal
        keep = select(np.where(chosen, np.inf, worth.T), -(-count * k // ROUNDS))
        chosen.reshape(-1)[keep] = True
        _descend(error, chosen.T, h)
    row, col = np.nonzero(chosen)
    return row, col, (error - before)[col, row].astype(np.float16)


def _descend(error, free, h):
    """One round of coordinate descent on tr(error^T h error), in place, over the entries that are
    free; error (cols, rows).
    """
    for b in range(0, len(h), BLOCK):
        part = slice(b, b + BLOCK)
        image = product(h[part], error)
        for i in range(len(image)):
            step = np.where(free[b + i], -image[i] / h[b + i, b + i], 0)
            error[b + i] += step
            image[i + 1 :] += h[part, b + i][i + 1 :, None] * step
