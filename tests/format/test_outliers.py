"""Side-tables of outliers against hand-made bytes and their own inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format.outliers import outlier_bytes, pack_outliers, unpack_outliers
from gwq_export.format.types import TILE


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


def test_full_rows_are_limits():
    cols = np.arange(255)
    records, offsets = pack_outliers(np.zeros(255, int), cols, np.ones(255), (1, TILE))
    assert np.array_equal(unpack_outliers(records, offsets, (1, TILE))[1], cols)
    with pytest.raises(GwqError, match="255"):
        pack_outliers(np.zeros(256, int), np.arange(256), np.ones(256), (1, TILE))


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
