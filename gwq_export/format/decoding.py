"""What the bytes of a matrix stand for: a numpy decoder that is the specification.

Every kernel must decode to the same float32 bits as `dequantize` here; docs/format.md says it in
words.
"""

from __future__ import annotations

import numpy as np

from gwq_export.format.ggml_types import decode_ggml
from gwq_export.format.outliers import Outliers, unpack_outliers
from gwq_export.format.tiles import unpack_tiles
from gwq_export.format.types import ENTRY_MAX, ENTRY_MIN, TensorType


def levels(type: TensorType, table: np.ndarray) -> np.ndarray:
    """What each window of a tile type stands for: int (16,), (32,) at gwq5 or (64,) at gwq6.

    table: (16,), the tensor's.
    """
    table = np.asarray(table).astype(np.int64)
    if type.bits == 6:
        return np.arange(ENTRY_MIN, ENTRY_MAX + 1)
    return np.concatenate([table, -1 - table]) if type.bits == 5 else table


def windows(type: TensorType, codes: np.ndarray) -> np.ndarray:
    """What indexes the table: each code with bits of its neighbour's code above it.

    window = code | (neighbour & (2^history - 1)) << bits

    codes: uint8 (rows, columns), columns a multiple of `line_columns`. The neighbour is the next
    code of the row in the order 4p+i, p first, in a ring of `type.ring` codes.
    """
    if not type.history:
        return codes
    columns = ring_order(type, codes.shape[-1])
    rings = codes[..., columns].reshape(*codes.shape[:-1], -1, type.ring)
    neighbour = np.empty_like(codes)
    neighbour[..., columns] = np.roll(rings, -1, axis=-1).reshape(codes.shape)
    return codes | (neighbour & ((1 << type.history) - 1)) << type.bits


def windows_at(type: TensorType, codes: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """`windows(type, codes)[row, col]`, uint8, from the codes there alone."""
    here = codes[row, col]
    if not type.history:
        return here
    order = ring_order(type, codes.shape[1]).reshape(-1, type.ring)
    neighbour = np.empty(order.size, np.int64)
    neighbour[order] = np.roll(order, -1, axis=1)
    return here | (codes[row, neighbour[col]] & ((1 << type.history) - 1)) << type.bits


def ring_order(type: TensorType, count: int) -> np.ndarray:
    """The columns 0 .. count-1 ring after ring, int (count,); without history as they come.

    count: a multiple of `line_columns`, in which column 4p+i comes as p runs for each i in turn.
    """
    columns = np.arange(count)
    if not type.history:
        return columns
    return columns.reshape(-1, type.line_columns // 4, 4).swapaxes(-1, -2).reshape(-1)


def dequantize(
    type: TensorType, data: np.ndarray, shape: tuple[int, int], outliers: Outliers | None = None
) -> np.ndarray:
    """float32 (rows, cols) of a matrix: the values that every kernel must reproduce to the bit.

    data: its bytes (uint8); outliers: its side-table, which is added with one rounding. Raises
    GwqError for a damaged side-table.
    """
    rows, cols = shape
    power = np.float32(1)
    if type.bits:
        out, power = _dequantize_tiles(type, data, rows, cols)
    else:
        out = decode_ggml(type, data, rows, cols)
    if outliers is not None:
        row, col, value = unpack_outliers(*outliers, shape)
        out[row, col] += power * value.astype(np.float32)
    return out


def _dequantize_tiles(
    type: TensorType, data: np.ndarray, rows: int, cols: int
) -> tuple[np.ndarray, np.float32]:
    """(weights, power), power = 2^exponent.

    weight = power * row_scale * (scale * entry), every product exact in float32.
    """
    table, row_scales, scales, codes, exponent = unpack_tiles(type, data, rows, cols)
    entry = levels(type, table).astype(np.float32)[windows(type, codes)][:rows, :cols]
    scale = np.repeat(scales, type.sub, axis=1)[:rows, :cols]
    power = np.float32(2.0**exponent)
    return power * row_scales.astype(np.float32)[:, None] * (scale * entry), power
