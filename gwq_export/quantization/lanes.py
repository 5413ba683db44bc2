"""The layout in which the native encoder takes a matrix: (columns, rows).

It works on one column, or the columns of one ring, after another, and on 64 rows side by side, so
columns come first and rows are padded to a multiple of 64.
"""

from __future__ import annotations

import numpy as np
import torch

from gwq_export.compute.linalg import pieces
from gwq_export.compute.threads import each
from gwq_export.format.types import BLOCK, padded_rows
from gwq_export.machine import default_threads

LANES = 64  # rows that the native encoder works on side by side
TOGETHER = 512  # rows that one thread works on at a time, at most


def lane_slices(lanes: np.ndarray) -> list[slice]:
    """The rows of an array (columns, padded rows) in parts for `threads.each`."""
    rows = lanes.shape[1]
    per_thread = -(-rows // default_threads())
    return pieces(rows, min(TOGETHER, -(-per_thread // LANES) * LANES))


def to_lanes(array: np.ndarray) -> np.ndarray:
    """Lay out (rows, cols) as (padded cols, padded rows), with zeros in the padding."""
    rows, cols = array.shape
    out = np.zeros((-(-cols // BLOCK) * BLOCK, -(-rows // LANES) * LANES), array.dtype)
    _turn(array, out[:cols, :rows])
    return out


def from_lanes(lanes: np.ndarray, rows: int) -> np.ndarray:
    """Lay out (cols, padded rows) as (rows, cols), the rows padded as in a file."""
    out = np.empty((padded_rows(rows), len(lanes)), lanes.dtype)
    _turn(lanes[:, : len(out)], out)
    return out


def _turn(array: np.ndarray, out: np.ndarray) -> None:
    """out = array^T; torch turns tiles that fit in the cache, which numpy does not."""
    target, source = torch.from_numpy(out), torch.from_numpy(array).T
    each(lambda part: target[:, part].copy_(source[:, part]), pieces(out.shape[1]))


def rows_to_lanes(vector: np.ndarray, count: int, fill: float) -> np.ndarray:
    """Lay out one number per row, (rows,), as float32 (count,), with `fill` in the padding."""
    out = np.full(count, fill, np.float32)
    out[: len(vector)] = vector
    return out
