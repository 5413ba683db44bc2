"""What tiles stand for, by hand and by the drawing of their bits."""

from itertools import pairwise

import numpy as np

from gwq_export.format.decoding import dequantize, windows, windows_at
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import TYPES
from tests.support.kernel_cases import plain_parts


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
                    parts = plain_parts(name)
                    parts[3][row, first + column] = code
                    expected = np.zeros((16, 64), np.float32)
                    expected[row, first + column], expected[row, first + before] = code, bits
                    assert np.array_equal(windows(TYPES[name], parts[3]), expected)
                    data = pack_tiles(TYPES[name], *parts)
                    assert np.array_equal(dequantize(TYPES[name], data, (16, 64)), expected)
    parts = plain_parts("gwq4")
    parts[3][3, 5] = 15
    assert windows(TYPES["gwq4"], parts[3]).sum() == 15


def test_windows_at_some_places():
    rng = np.random.default_rng(0)
    row, col = rng.integers(0, 16, 200), rng.integers(0, 64, 200)
    for type in (t for t in TYPES.values() if t.bits):
        codes = rng.integers(0, 1 << type.bits, (16, 64)).astype(np.uint8)
        expected = windows(type, codes)[row, col]
        assert np.array_equal(windows_at(type, codes, row, col), expected)


def test_windows_are_bits_that_follow_one_another():
    rng = np.random.default_rng(0)
    for name, unit, lines in (("gwq2", 16, 1), ("gwq3", 32, 3)):
        parts = plain_parts(name)
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
    parts = plain_parts("gwq2", 1)
    parts[3][0, 4] = 3
    data = pack_tiles(TYPES["gwq2"], *parts, cols=3)
    assert dequantize(TYPES["gwq2"], data, (1, 3)).tolist() == [[12, 0, 0]]


def test_weight_by_hand():
    table, row_scales, scales, codes = plain_parts("gwq4")
    table[5], row_scales[2], codes[2, 20] = -7, -0.5, 5
    scales[2] = [3, -31, 2, 1]
    assert dequantize(
        TYPES["gwq4"], pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes), (16, 64)
    )[2, 20] == -0.5 * (-31 * -7)


def test_outliers_are_added():
    table, row_scales, scales, codes = plain_parts("gwq4")
    codes[1, 9] = 3
    data = pack_tiles(TYPES["gwq4"], table, row_scales, scales, codes)
    outliers = pack_outliers([1, 4], [9, 63], np.float16([0.25, -2]), (16, 64))
    expected = np.zeros((16, 64), np.float32)
    expected[1, 9], expected[4, 63] = 3.25, -2
    assert np.array_equal(dequantize(TYPES["gwq4"], data, (16, 64), outliers), expected)
