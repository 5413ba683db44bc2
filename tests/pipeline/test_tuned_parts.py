"""The numbers of a coded matrix: what they decode to, their bytes, and gradients by them."""

import numpy as np
import pytest
import torch

from gwq_export.format.decoding import dequantize, windows
from gwq_export.format.outliers import pack_outliers, unpack_outliers
from gwq_export.format.tiles import pack_tiles, unpack_tiles
from gwq_export.format.types import TYPES, padded_rows
from gwq_export.pipeline.tuned_parts import TunedMatrix
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe

TILES = [name for name, type in TYPES.items() if type.bits]
SHAPE = 37, 150


def coded(name, outliers, seed=0):
    """(weight, parts of a quantized random matrix)."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(4, SHAPE).astype(np.float32) / 50
    recipe = Recipe(
        TYPES[name], outliers=outliers, saliency="magnitude", curvature=False, feedback=False
    )
    return weight, quantize(weight, {}, recipe)


def decoded(name, parts):
    table = (parts[1], parts[2].view(np.int32)) if len(parts) > 1 else None
    return dequantize(TYPES[name], parts[0], SHAPE, table)


@pytest.mark.parametrize("outliers", [0.0, 0.01])
@pytest.mark.parametrize("name", TILES)
def test_as_they_are(name, outliers):
    _, parts = coded(name, outliers)
    matrix = TunedMatrix(TYPES[name], SHAPE, parts)
    assert np.array_equal(matrix.decode(matrix.first), decoded(name, parts))
    again = matrix.parts(matrix.first)
    assert all(map(np.array_equal, parts, again)) and len(parts) == len(again)


@pytest.mark.parametrize("outliers", [0.0, 0.01])
@pytest.mark.parametrize("name", TILES)
def test_the_file_decodes_to_what_was_tuned(name, outliers):
    _, parts = coded(name, outliers)
    matrix = TunedMatrix(TYPES[name], SHAPE, parts)
    rng = np.random.default_rng(1)
    moved = matrix.first + matrix.units * rng.normal(scale=2, size=len(matrix.first))
    moved = moved.astype(np.float32)
    tuned = matrix.parts(moved)
    assert [p.shape for p in tuned] == [p.shape for p in parts]
    assert np.array_equal(matrix.decode(moved), decoded(name, tuned))
    assert not np.array_equal(tuned[0], parts[0])
    type = TYPES[name]
    assert np.array_equal(
        unpack_tiles(type, tuned[0], *SHAPE)[3], unpack_tiles(type, parts[0], *SHAPE)[3]
    )


@pytest.mark.parametrize("name", TILES)
def test_gradients_are_those_of_torch(name):
    """By the numbers of the formula 2^e * (row * (scale * entry) + outlier)."""
    _, parts = coded(name, 0.01)
    type = TYPES[name]
    matrix = TunedMatrix(type, SHAPE, parts)
    rows, cols = SHAPE
    table, row_scales, scales, codes, exponent = unpack_tiles(type, parts[0], rows, cols)
    row, col, value = unpack_outliers(parts[1], parts[2].view(np.int32), SHAPE)
    subs = -(-cols // type.sub)
    numbers = [row_scales, scales[:rows, :subs], table, value]
    numbers = [torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in numbers]
    r, s, t, o = numbers
    index = torch.from_numpy(windows(type, codes)[:rows, :cols].astype(np.int64))
    spread = s.repeat_interleave(type.sub, 1)[:, :cols]
    entry = t[index % 16]
    if type.bits == 5:
        entry = torch.where(index < 16, entry, -1 - entry)
    if type.bits == 6:
        entry = index - 32 + 0 * entry
    dense = r[:, None] * (spread * entry)
    whole = dense.index_put((torch.from_numpy(row), torch.from_numpy(col)), o, accumulate=True)
    whole = whole * 2.0**exponent
    gradient = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    wanted = torch.autograd.grad(whole, numbers, torch.from_numpy(gradient).double())
    wanted = np.concatenate([g.numpy().ravel() for g in wanted])
    found = matrix.project(matrix.first, gradient)
    assert np.allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_small_steps_add_up():
    """A scale moves to the next integer after steps that are too small for it alone."""
    _, parts = coded("gwq3", 0.0)
    matrix = TunedMatrix(TYPES["gwq3"], SHAPE, parts)
    step = 0.02 * matrix.units
    once = matrix.decode((matrix.first + step).astype(np.float32))
    often = matrix.decode((matrix.first + 10 * step).astype(np.float32))
    assert np.abs(often - once).max() > 0.05 * np.abs(once).max()


def test_numbers_stay_in_range():
    type = TYPES["gwq2"]
    codes = np.zeros((padded_rows(16), 64), np.uint8)
    data = pack_tiles(
        type,
        np.full(16, 31, np.int8),
        np.full(16, 60000, np.float16),
        np.full((16, 64 // type.sub), -32, np.int8),
        codes,
    )
    side = pack_outliers(np.array([3]), np.array([5]), np.array([-65000], np.float16), (16, 64))
    parts = [data, *(a.view(np.uint8) for a in side)]
    matrix = TunedMatrix(type, (16, 64), parts)
    far = (matrix.first * 3).astype(np.float32)
    weights = matrix.decode(far)
    assert np.isfinite(weights).all()
    data, records, offsets = matrix.parts(far)
    table = records, offsets.view(np.int32)
    assert np.array_equal(weights, dequantize(type, data, (16, 64), table))
