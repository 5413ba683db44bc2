"""The layout in which the native encoder takes a matrix: (columns, rows).

It works on one column, or the columns of one ring, after another, and on 64 rows side by side, so
columns come first and rows are padded to a multiple of 64.
"""

from __future__ import annotations

import numpy as np

from gwq_export.format.types import BLOCK, padded_rows

LANES = 64  # rows that the native encoder works on side by side


def to_lanes(array: np.ndarray) -> np.ndarray:
    """Lay out (rows, cols) as (padded cols, padded rows), with zeros in the padding."""
    rows, cols = array.shape
    out = np.zeros((-(-cols // BLOCK) * BLOCK, -(-rows // LANES) * LANES), array.dtype)
    out[:cols, :rows] = array.T
    return out


def from_lanes(lanes: np.ndarray, rows: int) -> np.ndarray:
    """Lay out (cols, padded rows) as (rows, cols), the rows padded as in a file."""
    return np.ascontiguousarray(lanes[:, : padded_rows(rows)].T)


def rows_to_lanes(vector: np.ndarray, count: int, fill: float) -> np.ndarray:
    """Lay out one number per row, (rows,), as float32 (count,), with `fill` in the padding."""
    out = np.full(count, fill, np.float32)
    out[: len(vector)] = vector
    return out
