"""FP16 corrections (deltas) of a coded matrix: the few that take away most of its loss."""

from __future__ import annotations

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.format.types import BLOCK
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.encoder import relative
from gwq_export.quantization.saliency import select

ROUNDS = 4  # of choosing some positions and fitting the values of all that are chosen


def corrections(
    weight: np.ndarray,
    coded: np.ndarray,
    curvature: Curvature,
    row_weight: np.ndarray,
    count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose `count` positions of a coded matrix and what to add to it there.

    weight, coded: float32 (rows, cols); row_weight: float32 (rows,), the factor s. Returns (row,
    col, float16 value), ascending by row and column.

    Orthogonal matching pursuit, roughly, on the loss sum_i s_i E_i H E_i^T of the error E = coded -
    weight. Changing one entry by d changes the loss by s_i (2 d (E H)_ij + d^2 H_jj), which is
    least at d = -(E H)_ij / H_jj, where it saves

        s_i (E H)_ij^2 / H_jj

    Each of ROUNDS rounds takes those entries that would save most, then fits the values of all
    chosen entries together by one round of coordinate descent.
    """
    cols = weight.shape[1]
    h = curvature.matrix[:cols, :cols]
    s = relative(row_weight)
    diagonal = np.diag(h)[:, None]
    error = np.ascontiguousarray((coded - weight).T)  # (cols, rows), as in `_descend`
    before = error.copy()
    chosen = np.zeros(weight.shape, bool)
    for k in range(1, ROUNDS + 1):
        saved = s * product(h, error) ** 2 / diagonal
        keep = select(np.where(chosen, np.inf, saved.T), -(-count * k // ROUNDS))
        chosen.reshape(-1)[keep] = True
        _descend(error, chosen.T, h)
    row, col = np.nonzero(chosen)
    return row, col, (error - before)[col, row].astype(np.float16)


def _descend(error: np.ndarray, free: np.ndarray, h: np.ndarray) -> None:
    """One round of coordinate descent on tr(error^T h error), in place.

    error: float32 (cols, rows); free: bool (cols, rows), the entries that may change. The columns
    of a matrix (rows of `error`) change one after another, each free entry to the value that is
    best given all others: e_j -= (h e)_j / h_jj. A block's part of `image` = h error is computed
    once and then kept up to date within the block.
    """
    for first in range(0, len(h), BLOCK):
        part = slice(first, first + BLOCK)
        image = product(h[part], error)
        for i in range(len(image)):
            j = first + i
            step = np.where(free[j], -image[i] / h[j, j], 0)
            error[j] += step
            image[i + 1 :] += h[part, j][i + 1 :, None] * step
