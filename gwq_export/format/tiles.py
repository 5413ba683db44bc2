"""The bytes of a tile tensor: head, row scales, and tiles of up to four blocks.

`gwq_format.h` draws the layout. `blocks` has the bytes of a block, `decoding` what they stand for.
"""

from __future__ import annotations

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.blocks import LINES, SCALES
from gwq_export.format.outliers import Outliers, check_outliers
from gwq_export.format.types import (
    BLOCK,
    ENTRY_MAX,
    ENTRY_MIN,
    EXPONENT_AT,
    HEAD,
    MAX_EXPONENT,
    ROWS,
    SCALE_BIAS,
    TABLE,
    TILE,
    TILE_BLOCKS,
    TensorType,
    padded_rows,
)


def _tile_runs(type: TensorType, cols: int) -> list[tuple[int, int, int, int, int]]:
    """Runs of equal tiles of a row group.

    Returns (first block, tiles, blocks per tile, bytes of scales, bytes of lines of a tile): the
    full tiles, and the last one if it is narrower or its last block is short.
    """
    scales, lines = type.block_bytes(BLOCK)
    full, rest = divmod(cols, TILE)
    runs = [(0, full, TILE_BLOCKS, TILE_BLOCKS * scales, TILE_BLOCKS * lines)]
    if rest:
        blocks = -(-rest // BLOCK)
        last_scales, last_lines = type.block_bytes(rest - (blocks - 1) * BLOCK)
        before = blocks - 1
        at = full * TILE_BLOCKS
        runs.append((at, 1, blocks, before * scales + last_scales, before * lines + last_lines))
    return [run for run in runs if run[1]]


def pack_tiles(
    type: TensorType,
    table: np.ndarray,
    row_scales: np.ndarray,
    scales: np.ndarray,
    codes: np.ndarray,
    exponent: int = 0,
    cols: int | None = None,
) -> np.ndarray:
    """Lay out a tile tensor; returns uint8 (nbytes,).

    table (16,) int8 in -32 .. 31; row_scales (rows,) float16; scales (padded rows, sub-blocks) int8
    in -32 .. 31; codes (padded rows, padded columns) uint8 in 0 .. 2^bits-1; exponent in -64 .. 64.
    Rows are padded to a multiple of 16, columns to one of 64; a code beyond the matrix may be the
    neighbour of a real one. cols: how many columns there are, all if None; the last block is as
    short as they allow.
    """
    rows = len(row_scales)
    cols = codes.shape[1] if cols is None else cols
    groups = codes.shape[0] // ROWS
    blocks = codes.shape[1] // BLOCK
    pack_lines, _ = LINES[type.name]
    pack_scales, _ = SCALES[BLOCK // type.sub]

    head = np.zeros(type.head_bytes(rows), np.uint8)
    head[:TABLE] = np.asarray(table, np.int8).view(np.uint8)
    head[EXPONENT_AT] = np.int8(exponent).view(np.uint8)
    head[HEAD : HEAD + 2 * rows] = np.ascontiguousarray(row_scales, np.float16).view(np.uint8)

    by_block = codes.reshape(groups, ROWS, blocks, BLOCK).swapaxes(1, 2)
    lines = pack_lines(by_block).reshape(groups, blocks, -1)
    biased = (scales.astype(np.int16) + SCALE_BIAS).astype(np.uint8)
    by_block = biased.reshape(groups, ROWS, blocks, -1).swapaxes(1, 2)
    scale_bytes = pack_scales(_without_missing(type, by_block, cols))
    runs = []
    for first, tiles, width, *sizes in _tile_runs(type, cols):
        run = slice(first, first + tiles * width)
        parts = [
            array[:, run].reshape(groups, tiles, -1)[..., :size]
            for array, size in zip((scale_bytes, lines), sizes, strict=True)
        ]
        runs.append(np.concatenate(parts, -1).reshape(groups, -1))
    return np.concatenate([head, np.concatenate(runs, axis=1).reshape(-1)])


def _without_missing(type: TensorType, biased: np.ndarray, cols: int) -> np.ndarray:
    """The biased scales (groups, blocks, rows, scales of a row), zero where a short block has none.

    The bits of a missing scale lie above those of the block's first ones.
    """
    subs = -(-type.stored(cols % BLOCK or BLOCK) // type.sub)
    biased = biased.copy()
    biased[:, -1, :, subs:] = 0
    return biased


def unpack_tiles(
    type: TensorType, data: np.ndarray, rows: int, cols: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Inverse of `pack_tiles`: (table, row_scales, scales, codes, exponent).

    Scales and codes are padded: of what a short block lacks, codes are 0 and scales mean nothing.
    """
    groups = padded_rows(rows) // ROWS
    blocks = -(-cols // BLOCK)
    count = BLOCK // type.sub  # scales of a row of a block
    _, unpack_lines = LINES[type.name]
    _, unpack_scales = SCALES[count]

    data = np.ascontiguousarray(data, np.uint8)
    table = data[:TABLE].view(np.int8)
    exponent = int(data[EXPONENT_AT : EXPONENT_AT + 1].view(np.int8)[0])
    row_scales = data[HEAD : HEAD + 2 * groups * ROWS].view(np.float16)[:rows]
    data = data[type.head_bytes(rows) :].reshape(groups, -1)

    whole = type.block_bytes(BLOCK)  # bytes of scales, of lines
    scale_bytes = np.zeros((groups, blocks, whole[0]), np.uint8)
    line_bytes = np.zeros((groups, blocks, whole[1]), np.uint8)
    at = 0
    for first, tiles, width, *sizes in _tile_runs(type, cols):
        tile = data[:, at : at + tiles * sum(sizes)].reshape(groups, tiles, -1)
        at += tiles * sum(sizes)
        run = slice(first, first + tiles * width)
        parts = (tile[..., : sizes[0]], tile[..., sizes[0] :])
        for array, part in zip((scale_bytes, line_bytes), parts, strict=True):
            full = np.zeros((groups, tiles, width * array.shape[-1]), np.uint8)
            full[..., : part.shape[-1]] = part
            array[:, run] = full.reshape(groups, tiles * width, -1)
    scales = (unpack_scales(scale_bytes).astype(np.int16) - SCALE_BIAS).astype(np.int8)
    codes = unpack_lines(line_bytes.reshape(groups, blocks, type.lines, ROWS, 4))
    return (
        table,
        row_scales,
        scales.swapaxes(1, 2).reshape(groups * ROWS, blocks * count),
        codes.reshape(groups, blocks, ROWS, BLOCK).swapaxes(1, 2).reshape(groups * ROWS, -1),
        exponent,
    )


def check_tiles(
    type: TensorType, data: np.ndarray, shape: tuple[int, int], outliers: Outliers | None = None
) -> None:
    """Check the bytes of a tile tensor, and those of its side-table.

    Raises GwqError unless every row scale and outlier is finite, table entries are in range and
    padding is zero.
    """
    rows, cols = shape
    data = np.ascontiguousarray(data, np.uint8)
    table, row_scales, _, _, exponent = unpack_tiles(type, data, rows, cols)
    if abs(exponent) > MAX_EXPONENT:
        raise GwqError("an exponent is out of range; the file is damaged, export it again")
    if (table < ENTRY_MIN).any() or (table > ENTRY_MAX).any():
        raise GwqError("a table entry is out of range; the file is damaged, export it again")
    if not np.isfinite(row_scales).all():
        raise GwqError("a scale is not finite; the file is damaged, export it again")
    if data[EXPONENT_AT + 1 : HEAD].any() or data[HEAD + 2 * rows : type.head_bytes(rows)].any():
        raise GwqError("padding is not zero; the file is damaged, export it again")
    if outliers is not None:
        check_outliers(outliers, shape)
