"""The bytes of a block of a tile tensor: codes of 16 rows x 64 columns, and their scales.

`gwq_format.h` draws the layout; the names below are its own: line j of a block, byte 4 * row + i
of a line, v(p), A, B, C, s0, s1, ... Leading dimensions, written "..." here, are row groups and
blocks. LINES has the functions of each type, SCALES those of each number of scales, as
(packing, unpacking).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gwq_export.format.types import ROWS

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
    c = codes.reshape(*codes.shape[:-1], 2, 8, 4)  # (..., row, j, p, i)
    x = c[..., 0, :].astype(np.uint32)
    for p in range(1, 8):
        x |= c[..., p, :].astype(np.uint32) << np.uint32(3 * p)
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


Coder = Callable[[np.ndarray], np.ndarray]
LINES: dict[str, tuple[Coder, Coder]] = {
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


SCALES: dict[int, tuple[Coder, Coder]] = {  # by the scales of a row of a block
    2: (_pack_2_scales, _unpack_2_scales),
    4: (_pack_4_scales, _unpack_4_scales),
}
