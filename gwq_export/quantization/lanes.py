"""The layout in which the native encoder takes a matrix: (columns, 8 rows of a ring, rings).

It works on one column after another, on the eight rows of a ring in turn (at 2 and 3 bits a row's
code depends on the row before it), and on eight rings side by side, one in each lane of a vector
register. So columns come first, rings last, and rings are padded to a multiple of eight. Entry
[c, r, g] is row 8 g + r of column c.
"""

from __future__ import annotations

import numpy as np

from gwq_export.format.types import BLOCK, RING, padded_rows

LANES = 8  # rings that the native encoder works on side by side


def to_lanes(array: np.ndarray) -> np.ndarray:
    """Lay out (rows, cols) as (padded cols, 8, rings), with zeros in the padding."""
    rows, cols = array.shape
    rings = -(-rows // (RING * LANES)) * LANES
    out = np.zeros((-(-cols // BLOCK) * BLOCK, RING, rings), array.dtype)
    full = np.zeros((rings * RING, cols), array.dtype)
    full[:rows] = array
    out[:cols] = full.reshape(rings, RING, cols).transpose(2, 1, 0)
    return out


def from_lanes(lanes: np.ndarray, rows: int) -> np.ndarray:
    """Lay out (cols, 8, rings) as (padded rows, cols), the rows padded as in a file."""
    flat = np.ascontiguousarray(lanes.transpose(2, 1, 0)).reshape(-1, len(lanes))
    return flat[: padded_rows(rows)]


def rows_to_lanes(vector: np.ndarray, rings: int, fill: float) -> np.ndarray:
    """Lay out one number per row, (rows,), as float32 (8, rings), with `fill` in the padding."""
    out = np.full(rings * RING, fill, np.float32)
    out[: len(vector)] = vector
    return np.ascontiguousarray(out.reshape(rings, RING).T)
