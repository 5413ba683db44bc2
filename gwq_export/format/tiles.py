"""The bytes of a tile tensor: a numpy encoder and decoder that are the specification.

Every kernel must decode to the same float32 bits as `dequantize` here. `gwq_format.h` draws the
layout.
"""

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.ggml_types import decode_ggml
from gwq_export.format.outliers import unpack_outliers
from gwq_export.format.types import (
    BLOCK,
    ENTRY_MAX,
    ENTRY_MIN,
    RING,
    ROWS,
    SCALE_BIAS,
    TABLE,
    TILE_BLOCKS,
    padded_rows,
)

# --- codes of a block <-> its lines: (..., 16 rows, 64 columns) uint8 <-> (..., lines, 16, 4) uint8 --------------------


def _pack_gwq4(codes):
    c = codes.reshape(*codes.shape[:-1], 8, 2, 4)  # (..., 16, j, half, i)
    return np.moveaxis(c[..., 0, :] | c[..., 1, :] << 4, -3, -2)


def _unpack_gwq4(lines):
    v = np.moveaxis(lines, -3, -2)  # (..., 16, j, i)
    return np.stack([v & 15, v >> 4], axis=-2)


def _pack_gwq2(codes):
    c = codes.reshape(*codes.shape[:-1], 4, 4, 4)  # (..., 16, j, p, i)
    return np.moveaxis(
        c[..., 0, :] | c[..., 1, :] << 2 | c[..., 2, :] << 4 | c[..., 3, :] << 6, -3, -2
    )


def _unpack_gwq2(lines):
    v = np.moveaxis(lines, -3, -2)
    return np.stack([v >> s & 3 for s in (0, 2, 4, 6)], axis=-2)


def _pack_gwq3(codes):
    c = codes.reshape(*codes.shape[:-1], 2, 8, 4)  # (..., 16, j, p, i)
    v = [np.moveaxis(c[..., p, :], -3, -2) for p in range(8)]  # each (..., j, 16, i)
    out = [
        v[2 * k] | v[2 * k + 1] << 4 | (v[6] >> k & 1) << 3 | (v[7] >> k & 1) << 7 for k in range(3)
    ]
    out = np.stack(out, axis=-3)  # (..., j, 3, 16, i)
    return out.reshape(*out.shape[:-4], 6, ROWS, 4)


def _unpack_gwq3(lines):
    lines = lines.reshape(*lines.shape[:-3], 2, 3, ROWS, 4)
    abc = [np.moveaxis(lines[..., k, :, :], -3, -2) for k in range(3)]  # each (..., 16, j, i)
    v = [part >> s & 7 for part in abc for s in (0, 4)]
    v += [sum((part >> s & 1) << k for k, part in enumerate(abc)) for s in (3, 7)]
    return np.stack(v, axis=-2)


_LINES = {
    "gwq2": (_pack_gwq2, _unpack_gwq2),
    "gwq3": (_pack_gwq3, _unpack_gwq3),
    "gwq4": (_pack_gwq4, _unpack_gwq4),
}


# --- biased scales of a block <-> its bytes: (..., 16, 64 / sub) uint8 <-> (..., bytes) uint8 -------------------------


def _pack_scales(u):
    if u.shape[-1] == 4:
        return np.concatenate(
            [u[..., k] | (u[..., 3] >> 2 * k & 3) << 6 for k in range(3)], axis=-1
        )
    high = u[..., 1] >> 2
    return np.concatenate(
        [u[..., 0] | (u[..., 1] & 3) << 6, high[..., :8] | high[..., 8:] << 4], axis=-1
    )


def _unpack_scales(data, count):
    if count == 4:
        part = [data[..., 16 * k : 16 * k + 16] for k in range(3)]
        return np.stack(
            [*(p & 63 for p in part), sum(p >> 6 << 2 * k for k, p in enumerate(part))], axis=-1
        )
    low, high = data[..., :16], np.concatenate([data[..., 16:] & 15, data[..., 16:] >> 4], axis=-1)
    return np.stack([low & 63, low >> 6 | high << 2], axis=-1)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tile_runs(blocks):
    """(first block, tiles, blocks per tile) of the full tiles of a row group and of its last,
    narrower one.
    """
    full = blocks // TILE_BLOCKS * TILE_BLOCKS
    return [
        r
        for r in ((0, full // TILE_BLOCKS, TILE_BLOCKS), (full, 1, blocks - full))
        if r[1] and r[2]
    ]


def pack_tiles(type, table, row_scales, scales, codes):
    """Lay out a tile tensor; returns uint8 (nbytes,).

    table (16,) int8 in -32 .. 31; row_scales (rows,) float16; scales (padded rows, sub-blocks) int8
    in -32 .. 31; codes (padded rows, padded columns) uint8 in 0 .. 2^bits-1: rows up to a multiple
    of 16, columns of 64, as a padded row may be a real one's neighbour.
    """
    rows, groups, blocks = len(row_scales), codes.shape[0] // ROWS, codes.shape[1] // BLOCK
    head = np.zeros(type.head_bytes(rows), np.uint8)
    head[:TABLE] = np.asarray(table, np.int8).view(np.uint8)
    head[TABLE : TABLE + 2 * rows] = np.ascontiguousarray(row_scales, np.float16).view(np.uint8)
    lines = codes.reshape(groups, ROWS, blocks, BLOCK).swapaxes(1, 2)  # (groups, blocks, 16, 64)
    lines = _LINES[type.name][0](lines).reshape(groups, blocks, -1)
    biased = (scales.astype(np.int16) + SCALE_BIAS).astype(np.uint8)
    u = _pack_scales(biased.reshape(groups, ROWS, blocks, BLOCK // type.sub).swapaxes(1, 2))
    out = []
    for first, tiles, nb in _tile_runs(blocks):
        part = slice(first, first + tiles * nb)
        tile = [a[:, part].reshape(groups, tiles, -1) for a in (u, lines)]
        out.append(np.concatenate(tile, -1).reshape(groups, -1))
    return np.concatenate([head, np.concatenate(out, axis=1).reshape(-1)])


def unpack_tiles(type, data, rows, cols):
    """Inverse of `pack_tiles`:

    (table, row_scales, scales, codes), the last two with their padding.
    """
    groups, blocks = padded_rows(rows) // ROWS, -(-cols // BLOCK)
    data, count = np.ascontiguousarray(data, np.uint8), BLOCK // type.sub
    table = data[:TABLE].view(np.int8)
    row_scales = data[TABLE : TABLE + 2 * groups * ROWS].view(np.float16)[:rows]
    data = data[type.head_bytes(rows) :].reshape(groups, -1)
    scales, codes = (
        np.empty((groups, blocks, ROWS, count), np.int8),
        np.empty((groups, blocks, ROWS, BLOCK), np.uint8),
    )
    at, width = 0, type.unit_bytes - 64 * type.lines  # bytes of a block's scales
    for first, tiles, nb in _tile_runs(blocks):
        size, part = tiles * nb * type.unit_bytes, slice(first, first + tiles * nb)
        tile = data[:, at : at + size].reshape(groups, tiles, -1)
        at += size
        biased = _unpack_scales(tile[..., : nb * width].reshape(groups, tiles * nb, width), count)
        scales[:, part] = biased.astype(np.int16) - SCALE_BIAS
        lines = tile[..., nb * width :].reshape(groups, tiles * nb, type.lines, ROWS, 4)
        codes[:, part] = _LINES[type.name][1](lines).reshape(groups, tiles * nb, ROWS, BLOCK)
    scales = scales.swapaxes(1, 2).reshape(groups * ROWS, blocks * count)
    return table, row_scales, scales, codes.swapaxes(1, 2).reshape(groups * ROWS, blocks * BLOCK)


def windows(type, codes):
    """What indexes the table: each code with its neighbour's bits above it; codes (padded rows,
    columns) uint8.
    """
    if not type.history:
        return codes
    ring = codes.reshape(-1, RING, codes.shape[-1])
    before = np.roll(ring, 1, axis=1).reshape(codes.shape)
    return codes | before >> (type.bits - type.history) << type.bits


def check_tiles(type, data, shape, outliers=None):
    """Raise GwqError unless every row scale and outlier is finite, table entries are in range and
    padding is zero.
    """
    rows, cols = shape
    data = np.ascontiguousarray(data, np.uint8)
    table, row_scales, _, _ = unpack_tiles(type, data, rows, cols)
    if (table < ENTRY_MIN).any() or (table > ENTRY_MAX).any():
        raise GwqError("a table entry is out of range; the file is damaged, export it again")
    if not np.isfinite(row_scales).all():
        raise GwqError("a scale is not finite; the file is damaged, export it again")
    if data[TABLE + 2 * rows : type.head_bytes(rows)].any():
        raise GwqError("padding is not zero; the file is damaged, export it again")
    if outliers is not None:
        check_outliers(outliers, shape)


def check_outliers(outliers, shape):
    """Raise GwqError unless the side-table is sound and every outlier is finite."""
    _, _, value = unpack_outliers(*outliers, shape)
    if not np.isfinite(value).all():
        raise GwqError("an outlier is not finite; the file is damaged, export it again")


def dequantize(type, data, shape, outliers=None):
    """float32 (rows, cols) of a tensor: the value every kernel must reproduce to the bit.

    data: its bytes (uint8); outliers: None or (records uint8, offsets int32). Raises GwqError for a
    bad side-table.
    """
    rows, cols = shape
    if type.bits:
        out = _dequantize_tiles(type, data, rows, cols)
    else:
        out = decode_ggml(type, data, rows, cols)
    if outliers is not None:
        row, col, value = unpack_outliers(*outliers, shape)
        out[row, col] += value.astype(np.float32)
    return out


def _dequantize_tiles(type, data, rows, cols):
    table, row_scales, scales, codes = unpack_tiles(type, data, rows, cols)
    entry = table[windows(type, codes)][:rows, :cols].astype(np.float32)
    return row_scales.astype(np.float32)[:, None] * (
        np.repeat(scales, type.sub, axis=1)[:rows, :cols] * entry
    )
