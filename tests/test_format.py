"""The specification against hand-made bytes and its own inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format import (
    BLOCK,
    TILE,
    TYPES,
    decode_stock,
    dequantize,
    encode_stock,
    outlier_bytes,
    pack_outliers,
    pack_tiles,
    tensor_type,
    unpack_outliers,
    unpack_tiles,
)  # fmt: skip

TILES = [t for t in TYPES.values() if t.bits]


def test_sizes_are_those_of_the_design():
    assert {t.name: t.unit_bytes for t in TILES} == {"gwq2": 18, "gwq3": 26, "gwq4": 34}
    assert TYPES["gwq4"].id == int.from_bytes(b"GWQ4", "little")
    assert TYPES["gwq4"].nbytes(4096, 4096) * 8 == 4.25 * 4096 * 4096
    assert TYPES["gwq3"].nbytes(17, 65) == 32 * 2 * 26
    assert TYPES["q8_0"].nbytes(3, 64) == 3 * 68


def test_one_block_by_hand():
    """Bytes written out by hand from gwq_format.h: row 0 holds the codes 1 2 3 ... in its first columns."""
    rows, cols = 16, 64
    for name, first in [("gwq4", [0x51, 0x62, 0x73, 0x84]), ("gwq2", [0x21, 0xF6])]:
        codes = np.full((rows, cols), TYPES[name].zero, np.uint8)
        if name == "gwq4":
            codes[0, :8] = [1, 2, 3, 4, 5, 6, 7, 8]
        else:  # byte i holds columns i, 4+i, 8+i, 12+i
            codes[0, [0, 4, 8, 12, 1, 5, 9, 13]] = [1, 0, 2, 0, 2, 1, 3, 3]
        data = pack_tiles(TYPES[name], np.ones((rows, 1), np.float16), codes)
        assert data[:2].tobytes() == np.float16(1).tobytes()
        assert list(data[32 : 32 + len(first)]) == first
    codes = np.full((rows, cols), 4, np.uint8)
    codes[0, 0:32:4] = [1, 2, 3, 4, 5, 6, 7, 0]
    data = pack_tiles(TYPES["gwq3"], np.ones((rows, 1), np.float16), codes)
    assert [data[32], data[96], data[160]] == [0xD1, 0x23, 0x75]


def test_tile_order_by_hand():
    """Block b of row group g starts where the drawing in gwq_format.h says, in full and in narrow tiles."""
    t, shape = TYPES["gwq4"], (32, 6 * BLOCK)
    scales = np.arange(32 * 6, dtype=np.float16).reshape(32, 6)
    data = pack_tiles(t, scales, np.full(shape, 8, np.uint8))
    group = 6 * 16 * 34
    assert np.array_equal(data[: 4 * 32].view(np.float16).reshape(4, 16), scales[:16, :4].T)  # full tile: 4 scale lines first
    narrow = group + 4 * 16 * 34
    assert np.array_equal(data[narrow : narrow + 2 * 32].view(np.float16).reshape(2, 16), scales[16:, 4:].T)


def test_side_table_by_hand():
    """Row 0 has columns 5 and 200, row 3 column 17: level 0 lists rows 0 and 3, level 1 row 0 again."""
    records, offsets = pack_outliers([0, 3, 0], [200, 17, 5], np.array([2.0, 3.0, 1.0]), (16, 256))
    counts = [2, 0, 0, 1] + [0] * 12
    values = np.array([1.0, 3.0, 2.0], np.float16).tobytes()
    assert records.tobytes() == bytes(counts) + values + bytes([5, 17, 200])
    assert list(offsets) == [0, 25]
    assert outlier_bytes(16, 256, 3) == (25, 2)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 600))


@settings(max_examples=80, deadline=None)
@given(
    shape=shapes, name=st.sampled_from([t.name for t in TILES]), fraction=st.sampled_from([0, 0.01, 0.2]), seed=st.integers(0, 2**32 - 1)
)
def test_round_trip(shape, name, fraction, seed):
    t, rng = TYPES[name], np.random.default_rng(seed)
    codes = rng.integers(0, 1 << t.bits, shape).astype(np.uint8)
    scales = rng.normal(size=(shape[0], -(-shape[1] // BLOCK))).astype(np.float16)
    row, col = np.nonzero(rng.random(shape) < fraction)
    value = rng.normal(size=len(row)).astype(np.float16)
    data = pack_tiles(t, scales, codes)
    assert data.size == t.nbytes(*shape)
    for got, expected in zip(unpack_tiles(t, data, *shape), (scales, codes), strict=True):
        assert np.array_equal(got, expected)
    order = rng.permutation(len(row))
    table = pack_outliers(row[order], col[order], value[order], shape)
    assert (table[0].size, table[1].size) == outlier_bytes(*shape, len(row))
    for got, expected in zip(unpack_outliers(*table, shape), (row, col, value), strict=True):
        assert np.array_equal(got, expected)
    expected = np.repeat(scales.astype(np.float32), BLOCK, 1)[:, : shape[1]] * (codes.astype(np.float32) - t.zero)
    expected[row, col] = value
    assert np.array_equal(dequantize(t, data, shape, table).view(np.uint32), expected.view(np.uint32))


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
        assert (row < shape[0]).all() and (col < shape[1]).all() and len(set(zip(row, col, strict=True))) == len(row)


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
        data = encode_stock(TYPES[name], w)
        expected = gguf.quants.dequantize(data.reshape(7, -1), gguf.GGMLQuantizationType[kind]) if name[0] != "f" else None
        got = decode_stock(TYPES[name], data, 7, 96)
        if expected is not None:
            assert np.array_equal(got, expected)
        assert np.abs(got - w).max() <= {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2}[name]


def test_sentences():
    with pytest.raises(GwqError, match="choose one of f32"):
        tensor_type("q9")
    with pytest.raises(GwqError, match="multiple of 32"):
        TYPES["q8_0"].nbytes(4, 40)
    with pytest.raises(GwqError, match="too large for FP16"):
        encode_stock(TYPES["f16"], np.float32([[1e6]]))
