"""The bytes of a tile tensor against hand-made ones and their own inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format.decoding import dequantize
from gwq_export.format.outliers import outlier_bytes, pack_outliers, unpack_outliers
from gwq_export.format.tiles import check_tiles, pack_tiles, unpack_tiles
from gwq_export.format.types import BLOCK, TYPES
from tests.support.kernel_cases import plain_parts, random_parts

TILES = [t for t in TYPES.values() if t.bits]


def test_head_by_hand():
    table, row_scales, scales, codes = plain_parts("gwq4", 17)
    table[:3] = (-32, 31, -1)
    row_scales[1] = -2
    row_scales[16] = 0.5
    data = pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes)
    assert data[:16].tobytes() == bytes([0xE0, 0x1F, 0xFF, *range(3, 16)])
    assert not data[16:32].any()  # exponent 0, zeros
    assert data[32:36].tobytes() == bytes([0x00, 0x3C, 0x00, 0xC0])  # 1, -2
    assert data[64:66].tobytes() == bytes([0x00, 0x38])  # 0.5
    assert not data[66:128].any()  # padded rows and the head's end
    data = pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes, -3)
    assert data[16] == 0xFD


def test_scales_by_hand():
    """Row 0 has the biased scales 1, 2, 3, 54 (4 bits) or 1, 54 (3 and 2 bits), row 8 of these 63,
    13.
    """
    parts = plain_parts("gwq4")
    parts[2][:] = -32
    parts[2][0] = np.array([1, 2, 3, 54]) - 32
    for name in ("gwq4", "gwq5", "gwq6"):
        at = pack_tiles(TYPES[name], *parts)[64:]
        assert [at[0], at[16], at[32]] == [1 | 2 << 6, 2 | 1 << 6, 3 | 3 << 6]
        assert not np.delete(at[:48], [0, 16, 32]).any()
    # of a block of 48 columns the same bytes, but nothing of the fourth scale
    at = pack_tiles(TYPES["gwq4"], *parts, cols=48)[64:]
    assert [at[0], at[16], at[32]] == [1, 2, 3]
    for name in ("gwq3", "gwq2"):
        parts = plain_parts(name)
        parts[2][:] = -32
        parts[2][0], parts[2][8] = np.array([1, 54]) - 32, np.array([63, 13]) - 32
        at = pack_tiles(TYPES[name], *parts)[64:]
        assert [at[0], at[8], at[16]] == [1 | 2 << 6, 63 | 1 << 6, 13 | 3 << 4]
        assert not np.delete(at[:24], [0, 8, 16]).any()


def test_lines_by_hand():
    parts = plain_parts("gwq4")
    parts[3][0, :8] = [1, 2, 3, 4, 5, 6, 7, 8]
    parts[3][15, 63] = 9
    line = pack_tiles(TYPES["gwq4"], *parts)[64 + 48 :]
    assert list(line[:4]) == [0x51, 0x62, 0x73, 0x84] and line[7 * 64 + 63] == 0x90
    parts = plain_parts("gwq2")
    # byte i holds columns i, 4+i, 8+i, 12+i
    parts[3][0, [0, 4, 8, 12, 1, 5, 9, 13]] = [1, 0, 2, 3, 2, 1, 3, 3]
    line = pack_tiles(TYPES["gwq2"], *parts)[64 + 24 :]
    assert list(line[:2]) == [0xE1, 0xF6]
    parts = plain_parts("gwq3")
    parts[3][0, 32:64:4] = [1, 2, 3, 4, 5, 6, 3, 5]
    line = pack_tiles(TYPES["gwq3"], *parts)[64 + 24 + 3 * 64 :]
    assert [line[0], line[64], line[128]] == [0b11_010_001, 0b0_101_100_0, 0b101_011_11]
    parts = plain_parts("gwq5")
    parts[3][0, 32:64:4] = [17, 2, 3, 20, 5, 6, 7, 31]
    line = pack_tiles(TYPES["gwq5"], *parts)[64 + 48 + 5 * 64 :]
    assert [line[64 * k] for k in range(5)] == [0x21, 0x43, 0x65, 0xF7, 0b10001001]
    parts = plain_parts("gwq6")
    parts[3][0, 16:32:4] = [1, 18, 35, 52]
    line = pack_tiles(TYPES["gwq6"], *parts)[64 + 48 + 3 * 64 :]
    assert [line[64 * k] for k in range(3)] == [0x21, 0x43, 0b11100100]


def test_tile_order_by_hand():
    """Blocks lie where the drawing in gwq_format.h says, in full and in narrow tiles: first all
    scales, then all lines.
    """
    t = TYPES["gwq4"]
    parts = plain_parts("gwq4", 32, 6)
    parts[2][0, 4:8] = 5 - 32  # row 0, block 1
    parts[3][16, 5 * BLOCK] = 7  # row group 1, block 5
    data = pack_tiles(t, *parts)
    tile = t.head_bytes(32)
    group = 6 * 560
    assert (t.head_bytes(32), t.nbytes(32, 6 * BLOCK)) == (128, 128 + 2 * group)
    assert data[tile] == 33 | (33 & 3) << 6 and data[tile + 48] == 5 | (5 & 3) << 6
    assert data[tile + group + 4 * 560 + 2 * 48 + 512] == 7


shapes = st.tuples(st.integers(1, 40), st.integers(1, 600))


@settings(max_examples=80, deadline=None)
@given(
    shape=shapes,
    name=st.sampled_from([t.name for t in TILES]),
    fraction=st.sampled_from([0, 0.01, 0.2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip(shape, name, fraction, seed):
    t = TYPES[name]
    rng = np.random.default_rng(seed)
    parts = random_parts(rng, t, *shape)
    table, row_scales, scales, codes, exponent = parts
    power = np.float32(2.0**exponent)
    row, col = np.nonzero(rng.random(shape) < fraction)
    value = rng.normal(size=len(row)).astype(np.float16)
    data = pack_tiles(t, *parts, cols=shape[1])
    assert data.size == t.nbytes(*shape)
    stored = -(-shape[1] // t.line_columns) * t.line_columns
    found = unpack_tiles(t, data, *shape)
    assert np.array_equal(found[0], table) and np.array_equal(found[1], row_scales)
    subs = -(-shape[1] // t.sub)
    assert np.array_equal(found[2][:, :subs], scales[:, :subs]) and found[4] == exponent
    assert np.array_equal(found[3][:, :stored], codes[:, :stored])
    assert not found[3][:, stored:].any()
    order = rng.permutation(len(row))
    outliers = pack_outliers(row[order], col[order], value[order], shape)
    assert (outliers[0].size, outliers[1].size) == outlier_bytes(*shape, len(row))
    for got, expected in zip(unpack_outliers(*outliers, shape), (row, col, value), strict=True):
        assert np.array_equal(got, expected)
    check_tiles(t, data, shape, outliers)
    # one by one, as the header says
    for r, c in zip(rng.integers(0, shape[0], 20), rng.integers(0, shape[1], 20), strict=True):
        code = int(codes[r, c])
        if t.bits == 2:  # the next in the order of the bits of four bytes
            k = (c % 4 * 4 + c % 16 // 4 + 1) % 16
            after = int(codes[r, c // 16 * 16 + k % 4 * 4 + k // 4])
        else:
            after = int(codes[r, c // 32 * 32 + (c + 4) % 32])
        entry = {
            6: lambda code=code: code - 32,
            5: lambda code=code: int(table[code % 16]) if code < 16 else -1 - int(table[code % 16]),
            4: lambda code=code: int(table[code]),
            3: lambda code=code, after=after: int(table[code + 8 * (after % 2)]),
            2: lambda code=code, after=after: int(table[code + 4 * after]),
        }[t.bits]()
        weight = 2.0**exponent * float(row_scales[r]) * float(scales[r, c // t.sub]) * entry
        assert dequantize(t, data, shape)[r, c] == weight
    expected = dequantize(t, data, shape)
    expected[row, col] += power * value.astype(np.float32)
    assert np.array_equal(
        dequantize(t, data, shape, outliers).view(np.uint32), expected.view(np.uint32)
    )


def test_damaged_tiles_are_refused():
    t = TYPES["gwq3"]
    shape = (20, 100)
    good = pack_tiles(t, *random_parts(np.random.default_rng(0), t, *shape), cols=shape[1])
    damages = [
        (3, 32, "table"),
        (15, 0x80, "table"),
        (16, 65, "exponent"),
        (16, 0x100 - 65, "exponent"),
        (17, 1, "padding"),
        (31, 1, "padding"),
        (33, 0x7C, "not finite"),
        (32 + 2 * 20, 1, "padding"),
        (127, 1, "padding"),
    ]
    for at, byte, sentence in damages:
        data = good.copy()
        data[at] = byte
        with pytest.raises(GwqError, match=sentence):
            check_tiles(t, data, shape)
    outliers = pack_outliers([0], [0], np.float16([np.inf]), shape)
    with pytest.raises(GwqError, match="outlier is not finite"):
        check_tiles(t, good, shape, outliers)
