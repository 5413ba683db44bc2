"""Outlier choice, scale fit and the bytes of one tensor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format import TYPES, check_tiles, dequantize, unpack_outliers
from gwq_export.quantize import SALIENCY, Recipe, quantize, select

TILES = [t for t in TYPES.values() if t.bits]


def statistics(weight, rng):
    g = np.abs(rng.normal(size=weight.shape)).astype(np.float32)
    return {"abs": g, "mean": g - 1, "square": g * g}


def decode(recipe, weight, parts):
    table = (parts[1], parts[2].view(np.int32)) if len(parts) == 3 else None
    return dequantize(recipe.type, parts[0], weight.shape, table)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 50), cols=st.integers(1, 300), name=st.sampled_from([t.name for t in TILES]),
       outliers=st.sampled_from([0, 0.01, 0.1, 0.5]), saliency=st.sampled_from(list(SALIENCY)), seed=st.integers(0, 99))  # fmt: skip
def test_any_shape(rows, cols, name, outliers, saliency, seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, cols)).astype(np.float32)
    recipe, stats = Recipe(TYPES[name], outliers, saliency, seed=seed), statistics(weight, rng)
    parts = quantize(weight, stats, recipe)
    sizes = [
        TYPES[kind].nbytes(*shape) if len(shape) == 2 else TYPES[kind].nbytes(1, *shape)
        for _, kind, shape in recipe.tensors("w", weight.shape)
    ]
    assert [p.nbytes for p in parts] == sizes  # known from the shape before any weight was read
    got = decode(recipe, weight, parts)
    if len(parts) == 3:
        row, col, value = unpack_outliers(parts[1], parts[2].view(np.int32), weight.shape)
        assert len(row) == recipe.outlier_count(weight.shape)
        assert np.array_equal(value, weight[row, col].astype(np.float16)) and np.array_equal(got[row, col], value.astype(np.float32))
    check_tiles(recipe.type, parts[0], weight.shape, (parts[1], parts[2].view(np.int32)) if len(parts) == 3 else None)
    assert all(np.array_equal(a, b) for a, b in zip(parts, quantize(weight, stats, recipe), strict=True))


def test_outliers_are_the_most_salient_and_exact():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 512)).astype(np.float32)
    stats = statistics(weight, rng)
    recipe = Recipe(TYPES["gwq2"], 0.01, "grad")
    top = np.sort(np.argsort(-stats["abs"], axis=None)[: recipe.outlier_count(weight.shape)])
    got = decode(recipe, weight, quantize(weight, stats, recipe)).reshape(-1)
    assert np.array_equal(got[top], weight.reshape(-1)[top].astype(np.float16).astype(np.float32))
    assert np.array_equal(select(stats["abs"], len(top)), top)


def test_full_rows_give_way():
    score = np.zeros((16, 512), np.float32)
    score[3] = 2
    score[5, :10] = 1
    chosen = select(score, 515)
    counts = np.bincount(chosen // 512 * 2 + chosen % 512 // 256)
    assert len(chosen) == 515 and counts.max() == 255
    assert set(range(5 * 512, 5 * 512 + 5)) <= set(chosen) or (chosen // 512 == 5).sum() == 5


def test_scale_search_beats_absmax_and_ignores_outliers():
    rng = np.random.default_rng(1)
    weight = rng.standard_t(4, size=(64, 1024)).astype(np.float32)
    for t in TILES:
        plain = Recipe(t, 0.0, weighted=False)
        error = ((decode(plain, weight, quantize(weight, {}, plain)) - weight) ** 2).mean()
        blocks = weight.reshape(-1, 64)
        d = (np.abs(blocks).max(1, keepdims=True) / (t.zero - 0.5)).astype(np.float16).astype(np.float32)
        absmax = np.clip(np.rint(blocks / d), -t.zero, t.zero - 1) * d
        assert error < 0.9 * ((absmax - blocks) ** 2).mean()
    # one huge weight per block, kept as an outlier, must not spoil the scale of its neighbours
    rest = np.ones(weight.shape, bool)
    rest[:, ::64] = False
    errors = []
    for spike in (0, 1000):
        spiked = weight.copy()
        spiked[:, ::64] = spike
        recipe = Recipe(TYPES["gwq4"], 1 / 64 if spike else 0, "magnitude", weighted=False)
        got = decode(recipe, spiked, quantize(spiked, {}, recipe))
        assert (got[:, ::64] == spike).all()
        errors.append(((got - spiked)[rest] ** 2).mean())
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_importance_moves_the_error():
    """Weights that matter are coded better than by the unweighted fit."""
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(64, 1024)).astype(np.float32)
    square = np.where(rng.random(weight.shape) < 0.1, 100.0, 0.01).astype(np.float32)
    errors = []
    for weighted in (False, True):
        recipe = Recipe(TYPES["gwq3"], 0.0, weighted=weighted)
        got = decode(recipe, weight, quantize(weight, {"square": square}, recipe))
        errors.append((square * (got - weight) ** 2).sum())
    assert errors[1] < 0.8 * errors[0]


def test_weights_without_gradient_keep_their_value():
    """Rows that calibration never touched (unseen tokens) and single dead weights are rounded, not lost."""
    weight = np.random.default_rng(4).normal(size=(32, 256)).astype(np.float32)
    square = np.ones_like(weight)
    square[:16] = 0
    square[16:, ::2] = 0
    recipe, plain = Recipe(TYPES["gwq4"], 0.0), Recipe(TYPES["gwq4"], 0.0, weighted=False)
    got = decode(recipe, weight, quantize(weight, {"square": square}, recipe))
    unweighted = decode(plain, weight, quantize(weight, {}, plain))
    assert np.array_equal(got[:16], unweighted[:16])
    assert ((got - weight) ** 2)[16:, ::2].mean() < 2 * ((unweighted - weight) ** 2)[16:, ::2].mean()


def test_edge_values():
    for t in TILES:
        recipe = Recipe(t, 0.0, weighted=False)
        for value in (0.0, 1e-30, 6e4, -1.0):
            weight = np.full((3, 70), value, np.float32)
            got = decode(recipe, weight, quantize(weight, {}, recipe))
            assert np.isfinite(got).all() and np.abs(got - weight).max() <= 1e-3 * abs(value) + 1e-7
    with pytest.raises(GwqError, match="too large for FP16"):
        quantize(np.float32([[1e6, 1.0]]), {}, Recipe(TYPES["gwq4"], 0.5, "magnitude", weighted=False))
