"""The bytes of a tile tensor: a numpy encoder and decoder that are the specification.

Every kernel must decode to the same float32 bits as `dequantize` here. `gwq_format.h` draws the
layout; the names below are its own: line j of a block, byte 4 * row + i of a line, v(p), A, B, C,
s0, s1, ... Leading dimensions, written "..." here, are row groups and blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.ggml_types import decode_ggml
from gwq_export.format.outliers import unpack_outliers
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

Outliers = tuple[np.ndarray, np.ndarray]  # a side-table: (records uint8, offsets int32)

# --- codes of a block <-> its lines ---------------------------------------------------------------
# packing:   uint8 (..., 16 rows, 64 columns) -> (..., lines, 16 rows, 4)
# unpacking: uint8 (..., lines, 16 rows, 4) -> (..., 16 rows, and axes that make up 64 columns)


def _pack_gwq4(codes: np.ndarray) -> np.ndarray:
    """line j: low nibble = column 8j+i, high nibble = column 8j+4+i"""
    c = codes.reshape(*codes.shape[:-1], 8, 2, 4)  # (..., row, j, nibble, i)
    line = c[..., 0, :] | c[..., 1, :] << 4  # (..., row, j, i)
    return np.moveaxis(line, -3, -2)


def _unpack_gwq4(lines: np.ndarray) -> np.ndarray:
    line = np.moveaxis(lines, -3, -2)  # (..., row, j, i)
    return np.stack([line & 15, line >> 4], axis=-2)


def _pack_gwq2(codes: np.ndarray) -> np.ndarray:
    """line j: bits 2p,2p+1 = column 16j+4p+i, p = 0..3"""
    c = codes.reshape(*codes.shape[:-1], 4, 4, 4)  # (..., row, j, p, i)
    line = c[..., 0, :] | c[..., 1, :] << 2 | c[..., 2, :] << 4 | c[..., 3, :] << 6
    return np.moveaxis(line, -3, -2)


def _unpack_gwq2(lines: np.ndarray) -> np.ndarray:
    line = np.moveaxis(lines, -3, -2)  # (..., row, j, i)
    return np.stack([line >> 2 * p & 3 for p in range(4)], axis=-2)


def _pack_gwq3(codes: np.ndarray) -> np.ndarray:
    """2 x 3 lines A B C: bits 3p .. 3p+2 of A | B << 8 | C << 16 = column 32j+4p+i, p = 0..7"""
    c = codes.reshape(*codes.shape[:-1], 2, 8, 4).astype(np.uint32)  # (..., row, j, p, i)
    x = (c << 3 * np.arange(8, dtype=np.uint32)[:, None]).sum(-2, dtype=np.uint32)
    abc = [(x >> 8 * k & 255).astype(np.uint8) for k in range(3)]  # each (..., row, j, i)
    lines = np.moveaxis(np.stack(abc, axis=-2), -4, -2)  # (..., j, 3, row, i)
    return lines.reshape(*lines.shape[:-4], 6, ROWS, 4)


def _unpack_gwq3(lines: np.ndarray) -> np.ndarray:
    lines = lines.reshape(*lines.shape[:-3], 2, 3, ROWS, 4)  # (..., j, 3, row, i)
    a, b, c = (np.moveaxis(lines[..., k, :, :], -3, -2).astype(np.uint32) for k in range(3))
    x = a | b << 8 | c << 16  # (..., row, j, i)
    return np.stack([(x >> 3 * p & 7).astype(np.uint8) for p in range(8)], axis=-2)


def _pack_nibbles(codes: np.ndarray, high_bits: int) -> np.ndarray:
    """Lines of codes of 4 + high_bits bits, `per` = 8 / high_bits quads of columns to a group:

    v(p) = column (4 per) j+4p+i, p = 0..per-1
    line k = low nibbles of v(2k) and, << 4, of v(2k+1); last line: bits high_bits p.. = v(p) >> 4
    """
    per = 8 // high_bits
    c = codes.reshape(*codes.shape[:-1], -1, per, 4)  # (..., row, j, p, i)
    v = [np.moveaxis(c[..., p, :], -3, -2) for p in range(per)]  # each (..., j, row, i)
    lines = [v[p] & 15 | (v[p + 1] & 15) << 4 for p in range(0, per, 2)]
    high = np.zeros_like(v[0])
    for p in range(per):
        high |= v[p] >> 4 << high_bits * p
    out = np.stack([*lines, high], axis=-3)  # (..., j, line, row, i)
    return out.reshape(*out.shape[:-4], -1, ROWS, 4)


def _unpack_nibbles(lines: np.ndarray, high_bits: int) -> np.ndarray:
    per = 8 // high_bits
    lines = lines.reshape(*lines.shape[:-3], -1, per // 2 + 1, ROWS, 4)  # (..., j, line, row, i)
    line = [np.moveaxis(lines[..., k, :, :], -3, -2) for k in range(per // 2 + 1)]
    mask = (1 << high_bits) - 1
    v = [
        line[p // 2] >> 4 * (p % 2) & 15 | (line[-1] >> high_bits * p & mask) << 4
        for p in range(per)
    ]
    return np.stack(v, axis=-2)  # (..., row, j, p, i)


_Coder = Callable[[np.ndarray], np.ndarray]
_LINES: dict[str, tuple[_Coder, _Coder]] = {
    "gwq2": (_pack_gwq2, _unpack_gwq2),
    "gwq3": (_pack_gwq3, _unpack_gwq3),
    "gwq4": (_pack_gwq4, _unpack_gwq4),
    "gwq5": (partial(_pack_nibbles, high_bits=1), partial(_unpack_nibbles, high_bits=1)),
    "gwq6": (partial(_pack_nibbles, high_bits=2), partial(_unpack_nibbles, high_bits=2)),
}


# --- biased scales of a block <-> its bytes -------------------------------------------------------
# uint8 (..., 16 rows, scales of a row) <-> uint8 (..., bytes)


def _pack_4_scales(s: np.ndarray) -> np.ndarray:
    """byte 16k+r = s(k) | (s3 >> 2k & 3) << 6, k = 0..2"""
    s3 = s[..., 3]
    return np.concatenate([s[..., k] | (s3 >> 2 * k & 3) << 6 for k in range(3)], axis=-1)


def _unpack_4_scales(data: np.ndarray) -> np.ndarray:
    a, b, c = (data[..., 16 * k : 16 * k + 16] for k in range(3))  # each (..., row)
    s3 = a >> 6 | b >> 6 << 2 | c >> 6 << 4
    return np.stack([a & 63, b & 63, c & 63, s3], axis=-1)


def _pack_2_scales(s: np.ndarray) -> np.ndarray:
    """byte r = s0 | (s1 & 3) << 6; byte 16+q: low nibble = s1 >> 2 of row q, high = of row q+8"""
    low = s[..., 0] | (s[..., 1] & 3) << 6
    high = s[..., 1] >> 2
    return np.concatenate([low, high[..., :8] | high[..., 8:] << 4], axis=-1)


def _unpack_2_scales(data: np.ndarray) -> np.ndarray:
    low = data[..., :16]
    high = np.concatenate([data[..., 16:] & 15, data[..., 16:] >> 4], axis=-1)
    return np.stack([low & 63, low >> 6 | high << 2], axis=-1)


_SCALES: dict[int, tuple[_Coder, _Coder]] = {  # by the scales of a row of a block
    2: (_pack_2_scales, _unpack_2_scales),
    4: (_pack_4_scales, _unpack_4_scales),
}


# --- tensors --------------------------------------------------------------------------------------


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
    pack_lines, _ = _LINES[type.name]
    pack_scales, _ = _SCALES[BLOCK // type.sub]

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
    _, unpack_lines = _LINES[type.name]
    _, unpack_scales = _SCALES[count]

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


def ring_order(type: TensorType, count: int) -> np.ndarray:
    """The columns 0 .. count-1 ring after ring, int (count,); without history as they come.

    count: a multiple of `line_columns`, in which column 4p+i comes as p runs for each i in turn.
    """
    columns = np.arange(count)
    if not type.history:
        return columns
    return columns.reshape(-1, type.line_columns // 4, 4).swapaxes(-1, -2).reshape(-1)


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


def check_outliers(outliers: Outliers, shape: tuple[int, int]) -> None:
    """Raise GwqError unless the side-table is sound and every outlier is finite."""
    _, _, value = unpack_outliers(*outliers, shape)
    if not np.isfinite(value).all():
        raise GwqError("an outlier is not finite; the file is damaged, export it again")


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
