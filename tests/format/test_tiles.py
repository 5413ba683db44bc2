"""The specification against hand-made bytes and its own inverse."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format.ggml_types import decode_ggml, encode_ggml
from gwq_export.format.outliers import outlier_bytes, pack_outliers, unpack_outliers
from gwq_export.format.tiles import check_tiles, dequantize, pack_tiles, unpack_tiles, windows
from gwq_export.format.types import BLOCK, TILE, TYPES, padded_rows, tensor_type
from tests.support.kernel_cases import random_parts

TILES = [t for t in TYPES.values() if t.bits]


def test_sizes_are_those_of_the_header():
    assert {t.name: (t.bits, t.history, t.sub, t.unit_bytes) for t in TILES} == {
        "gwq2": (2, 2, 32, 280),
        "gwq3": (3, 1, 32, 408),
        "gwq4": (4, 0, 16, 560),
        "gwq5": (5, 0, 16, 688),
        "gwq6": (6, 0, 16, 816),
    }
    assert TYPES["gwq4"].id == int.from_bytes(b"GWQ4", "little")
    # table and zeros: a line
    assert TYPES["gwq4"].nbytes(4096, 4096) * 8 == 4.375 * 4096 * 4096 + 8 * (2 * 4096 + 64)
    # 32 + 2 * 32, up to 128; a short block of 32 columns: 16 bytes of scales, 3 lines
    assert TYPES["gwq3"].nbytes(17, 65) == 128 + 2 * (408 + 16 + 3 * 64)
    assert TYPES["gwq2"].nbytes(24 * 16 - 8, 1) == 32 + 768 + 32 + 24 * (16 + 64)


def test_sizes_of_short_blocks():
    """Lines of the columns that are there, in steps of 16 or 32; scales of their sub-blocks."""
    found = {
        t.name: [t.group_bytes(cols) for cols in (1, 16, 17, 33, 48, 49, 64, 96)] for t in TILES
    }
    assert found == {
        "gwq2": [80, 80, 144, 216, 216, 280, 280, 424],
        "gwq3": [208, 208, 208, 408, 408, 408, 408, 616],
        "gwq4": [144, 144, 288, 432, 432, 560, 560, 848],
        "gwq5": [352, 352, 352, 688, 688, 688, 688, 1040],
        "gwq6": [208, 208, 416, 624, 624, 816, 816, 1232],
    }


def test_sizes_of_other_types():
    assert TYPES["q8_0"].nbytes(3, 64) == 3 * 68


def zeros(name, rows=16, blocks=1):
    """Parts of a matrix to change by hand: table 0, 1, .. 15; row scales 1; scales 1; codes 0."""
    t = TYPES[name]
    scales = np.ones((padded_rows(rows), blocks * BLOCK // t.sub), np.int8)
    return (
        np.arange(16, dtype=np.int8),
        np.ones(rows, np.float16),
        scales,
        np.zeros((padded_rows(rows), blocks * BLOCK), np.uint8),
    )


def test_head_by_hand():
    table, row_scales, scales, codes = zeros("gwq4", 17)
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
    parts = zeros("gwq4")
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
        parts = zeros(name)
        parts[2][:] = -32
        parts[2][0], parts[2][8] = np.array([1, 54]) - 32, np.array([63, 13]) - 32
        at = pack_tiles(TYPES[name], *parts)[64:]
        assert [at[0], at[8], at[16]] == [1 | 2 << 6, 63 | 1 << 6, 13 | 3 << 4]
        assert not np.delete(at[:24], [0, 8, 16]).any()


def test_lines_by_hand():
    parts = zeros("gwq4")
    parts[3][0, :8] = [1, 2, 3, 4, 5, 6, 7, 8]
    parts[3][15, 63] = 9
    line = pack_tiles(TYPES["gwq4"], *parts)[64 + 48 :]
    assert list(line[:4]) == [0x51, 0x62, 0x73, 0x84] and line[7 * 64 + 63] == 0x90
    parts = zeros("gwq2")
    # byte i holds columns i, 4+i, 8+i, 12+i
    parts[3][0, [0, 4, 8, 12, 1, 5, 9, 13]] = [1, 0, 2, 3, 2, 1, 3, 3]
    line = pack_tiles(TYPES["gwq2"], *parts)[64 + 24 :]
    assert list(line[:2]) == [0xE1, 0xF6]
    parts = zeros("gwq3")
    parts[3][0, 32:64:4] = [1, 2, 3, 4, 5, 6, 3, 5]
    line = pack_tiles(TYPES["gwq3"], *parts)[64 + 24 + 3 * 64 :]
    assert [line[0], line[64], line[128]] == [0b11_010_001, 0b0_101_100_0, 0b101_011_11]
    parts = zeros("gwq5")
    parts[3][0, 32:64:4] = [17, 2, 3, 20, 5, 6, 7, 31]
    line = pack_tiles(TYPES["gwq5"], *parts)[64 + 48 + 5 * 64 :]
    assert [line[64 * k] for k in range(5)] == [0x21, 0x43, 0x65, 0xF7, 0b10001001]
    parts = zeros("gwq6")
    parts[3][0, 16:32:4] = [1, 18, 35, 52]
    line = pack_tiles(TYPES["gwq6"], *parts)[64 + 48 + 3 * 64 :]
    assert [line[64 * k] for k in range(3)] == [0x21, 0x43, 0b11100100]


def test_windows_by_hand():
    """A code's lowest bits lie above the code before it in its ring, whose first code follows its
    last: at 2 bits the columns 0, 4, 8, 12, 1, 5, .. 15, at 3 bits 0, 4, .. 28.
    """
    rings = {"gwq2": (8, 12, 1, 5), "gwq3": (20, 24, 28, 0)}
    for name, above in (("gwq3", {3: 8, 5: 8, 6: 0}), ("gwq2", {1: 4, 2: 8, 3: 12})):
        ends = {"gwq2": (15, 0), "gwq3": (31, 3)}[name]
        for code, bits in above.items():
            for before, column in (*pairwise(rings[name]), ends):
                for row, first in ((0, 0), (7, 32), (15, 32)):
                    parts = zeros(name)
                    parts[3][row, first + column] = code
                    expected = np.zeros((16, 64), np.float32)
                    expected[row, first + column], expected[row, first + before] = code, bits
                    assert np.array_equal(windows(TYPES[name], parts[3]), expected)
                    data = pack_tiles(TYPES[name], *parts)
                    assert np.array_equal(dequantize(TYPES[name], data, (16, 64)), expected)
    parts = zeros("gwq4")
    parts[3][3, 5] = 15
    assert windows(TYPES["gwq4"], parts[3]).sum() == 15


def test_windows_are_bits_that_follow_one_another():
    rng = np.random.default_rng(0)
    for name, unit, lines in (("gwq2", 16, 1), ("gwq3", 32, 3)):
        parts = zeros(name)
        parts[3][:] = rng.integers(0, 1 << TYPES[name].bits, (16, 64))
        data = pack_tiles(TYPES[name], *parts)
        bits = np.unpackbits(data[64 + 24 :].reshape(-1, lines, 16, 4), bitorder="little")
        bits = bits.reshape(-1, lines, 16, 4, 8)  # (unit, line, row, i, bit)
        # of a ring in turn: the four bytes of a row, or the three lines of a byte
        axes = (0, 2, 1, 3, 4) if name == "gwq2" else (0, 2, 3, 1, 4)
        ring = bits.transpose(axes).reshape(64 // unit, 16, -1, 32 if name == "gwq2" else 24)
        got = dequantize(TYPES[name], data, (16, 64))  # the windows themselves
        for k in range(TYPES[name].ring):
            window = np.roll(ring, -TYPES[name].bits * k, -1)[..., :4] @ [1, 2, 4, 8]
            if name == "gwq2":
                assert np.array_equal(window[..., 0].T, got[:, 4 * (k % 4) + k // 4 :: 16])
            else:
                for i in range(4):
                    assert np.array_equal(window[..., i].T, got[:, 4 * k + i :: 32])


def test_a_code_beyond_the_matrix_can_be_a_neighbour():
    parts = zeros("gwq2", 1)
    parts[3][0, 4] = 3
    data = pack_tiles(TYPES["gwq2"], *parts, cols=3)
    assert dequantize(TYPES["gwq2"], data, (1, 3)).tolist() == [[12, 0, 0]]


def test_weight_by_hand():
    table, row_scales, scales, codes = zeros("gwq4")
    table[5], row_scales[2], codes[2, 20] = -7, -0.5, 5
    scales[2] = [3, -31, 2, 1]
    assert dequantize(
        TYPES["gwq4"], pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes), (16, 64)
    )[2, 20] == -0.5 * (-31 * -7)


def test_outliers_are_added():
    table, row_scales, scales, codes = zeros("gwq4")
    codes[1, 9] = 3
    data = pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes)
    outliers = pack_outliers([1, 4], [9, 63], np.float16([0.25, -2]), (16, 64))
    expected = np.zeros((16, 64), np.float32)
    expected[1, 9], expected[4, 63] = 3.25, -2
    assert np.array_equal(dequantize(TYPES["gwq4"], data, (16, 64), outliers), expected)


def test_tile_order_by_hand():
    """Blocks lie where the drawing in gwq_format.h says, in full and in narrow tiles: first all
    scales, then all lines.
    """
    t = TYPES["gwq4"]
    parts = zeros("gwq4", 32, 6)
    parts[2][0, 4:8] = 5 - 32  # row 0, block 1
    parts[3][16, 5 * BLOCK] = 7  # row group 1, block 5
    data = pack_tiles(t, *parts)
    tile = t.head_bytes(32)
    group = 6 * 560
    assert (t.head_bytes(32), t.nbytes(32, 6 * BLOCK)) == (128, 128 + 2 * group)
    assert data[tile] == 33 | (33 & 3) << 6 and data[tile + 48] == 5 | (5 & 3) << 6
    assert data[tile + group + 4 * 560 + 2 * 48 + 512] == 7


def test_side_table_by_hand():
    """Row 0 has columns 5 and 200, row 3 column 17: level 0 lists rows 0 and 3, level 1 row 0
    again.
    """
    records, offsets = pack_outliers([0, 3, 0], [200, 17, 5], np.array([2.0, 3.0, 1.0]), (16, 256))
    counts = [2, 0, 0, 1] + [0] * 12
    values = np.array([1.0, 3.0, 2.0], np.float16).tobytes()
    assert records.tobytes() == bytes(counts) + values + bytes([5, 17, 200])
    assert list(offsets) == [0, 25]
    assert outlier_bytes(16, 256, 3) == (25, 2)


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


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_side_tables_are_refused_or_valid(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.integers(1, 600)))
    row, col = np.nonzero(rng.random(shape) < 0.03)
    records, offsets = pack_outliers(row, col, np.ones(len(row)), shape)
    damaged = records.copy() if rng.random() < 0.7 else offsets.copy()
    damaged[rng.integers(len(damaged))] += rng.integers(1, 255)
    table = (damaged, offsets) if damaged.dtype == np.uint8 else (records, damaged)
    try:
        row, col, _ = unpack_outliers(*table, shape)
    except GwqError as e:
        assert "export it again" in str(e)
    else:
        assert (row < shape[0]).all()
        assert (col < shape[1]).all()
        assert len(set(zip(row, col, strict=True))) == len(row)


def test_full_rows_are_limits():
    cols = np.arange(255)
    records, offsets = pack_outliers(np.zeros(255, int), cols, np.ones(255), (1, TILE))
    assert np.array_equal(unpack_outliers(records, offsets, (1, TILE))[1], cols)
    with pytest.raises(GwqError, match="255"):
        pack_outliers(np.zeros(256, int), np.arange(256), np.ones(256), (1, TILE))


def test_stock_types_equal_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    w = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    w[0] = 0
    for name, kind in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")]:
        data = encode_ggml(TYPES[name], w)
        expected = (
            gguf.quants.dequantize(data.reshape(7, -1), gguf.GGMLQuantizationType[kind])
            if name[0] != "f"
            else None
        )
        got = decode_ggml(TYPES[name], data, 7, 96)
        if expected is not None:
            assert np.array_equal(got, expected)
        assert np.abs(got - w).max() <= {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2}[name]


def test_sentences():
    with pytest.raises(GwqError, match="choose one of f32"):
        tensor_type("q9")
    with pytest.raises(GwqError, match="multiple of 32"):
        TYPES["q8_0"].nbytes(4, 40)
    with pytest.raises(GwqError, match="too large for FP16"):
        encode_ggml(TYPES["f16"], np.float32([[1e6]]))
