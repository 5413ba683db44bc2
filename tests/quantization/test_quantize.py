"""Outlier choice and the bytes of one tensor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format.decoding import dequantize, levels
from gwq_export.format.outliers import unpack_outliers
from gwq_export.format.tiles import check_tiles
from gwq_export.format.types import EXPONENT_AT, TYPES
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import TABLES, Recipe
from gwq_export.quantization.saliency import SALIENCY, select
from tests.support.layer import outputs

TILES = [t for t in TYPES.values() if t.bits]

PAPER = {"saliency": "grad", "table": "grid", "curvature": False, "feedback": False, "sweeps": 0}


def statistics(weight, rng):
    """Every statistic of a matrix, by random inputs and gradients."""
    rows, cols = weight.shape
    g = rng.normal(size=weight.shape).astype(np.float32)
    x = (
        rng.normal(size=(2 * cols, cols))
        @ (np.eye(cols) + rng.normal(size=(cols, cols)) / cols**0.5)
    ).astype(np.float32)
    return {
        "abs": np.abs(g),
        "mean": g,
        "square": g * g,
        "rows": rng.random(rows, np.float32),
        "outputs": outputs(rows, rng),
        "hessian": x.T @ x / len(x),
    }


def decode(recipe, weight, parts):
    table = (parts[1], parts[2].view(np.int32)) if len(parts) == 3 else None
    return dequantize(recipe.type, parts[0], weight.shape, table)


def coded(recipe, weight, stats):
    return decode(recipe, weight, quantize(weight, stats, recipe))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    cols=st.integers(1, 300),
    name=st.sampled_from([t.name for t in TILES]),
    outliers=st.sampled_from([0, 0.01, 0.1, 0.5]),
    saliency=st.sampled_from(list(SALIENCY)),
    table=st.sampled_from(list(TABLES)),
    curvature=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, cols, name, outliers, saliency, table, curvature, seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, cols)).astype(np.float32)
    recipe = Recipe(TYPES[name], outliers, saliency, table, curvature, seed=seed)
    stats = statistics(weight, rng)
    stats = {s: stats[s] for s in recipe.statistics}  # reads no others
    parts = quantize(weight, stats, recipe)
    sizes = [
        TYPES[kind].nbytes(*shape) if len(shape) == 2 else TYPES[kind].nbytes(1, *shape)
        for _, kind, shape in recipe.tensors("w", weight.shape)
    ]
    assert [p.nbytes for p in parts] == sizes  # known from the shape before any weight was read
    got = decode(recipe, weight, parts)
    assert np.isfinite(got).all()
    table = (parts[1], parts[2].view(np.int32)) if len(parts) == 3 else None
    if table:
        row, col, value = unpack_outliers(*table, weight.shape)
        assert len(row) == recipe.outlier_count(weight.shape)
        if not curvature:  # then nothing but the weight is wanted there
            dense = dequantize(recipe.type, parts[0], weight.shape)[row, col]
            exponent = parts[0][EXPONENT_AT].view(np.int8)
            added = np.ldexp(weight[row, col] - dense, -exponent)
            assert np.array_equal(value, added.astype(np.float16))
            error = np.ldexp(got[row, col] - weight[row, col], -exponent)
            assert (np.abs(error) <= 2.0**-11 * np.abs(added) + 1e-3).all()
    check_tiles(recipe.type, parts[0], weight.shape, table)
    assert all(
        np.array_equal(a, b) for a, b in zip(parts, quantize(weight, stats, recipe), strict=True)
    )


@pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)
def test_outliers_are_the_most_salient_and_exact_on_a_grid(type):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 512)).astype(np.float32)
    stats = statistics(weight, rng)
    recipe = Recipe(type, 0.01, **PAPER)
    top = np.sort(np.argsort(-stats["abs"], axis=None)[: recipe.outlier_count(weight.shape)])
    parts = quantize(weight, stats, recipe)
    got = decode(recipe, weight, parts).reshape(-1)
    dense = dequantize(type, parts[0], weight.shape).reshape(-1)
    assert np.array_equal(got[top], weight.reshape(-1)[top].astype(np.float16).astype(np.float32))
    assert not dense[top].any()
    assert np.array_equal(np.delete(got, top), np.delete(dense, top))
    assert np.array_equal(select(stats["abs"], len(top)), top)


def test_outliers_hold_what_the_encoder_wanted():
    """With error feedback that is not the weight alone.

    The default rule picks by rows x hessian x weight^2.
    """
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(48, 320)).astype(np.float32)
    stats = statistics(weight, rng)
    mask = np.zeros(weight.shape, bool)
    mask.reshape(-1)[
        np.argsort(-(stats["rows"][:, None] * np.diag(stats["hessian"]) * weight**2), axis=None)[
            :154
        ]
    ] = True
    for type in TILES:
        recipe = Recipe(type, 154.0 / mask.size, outputs=True)
        parts = quantize(weight, stats, recipe)
        row, col, value = unpack_outliers(parts[1], parts[2].view(np.int32), weight.shape)
        assert np.array_equal(np.argwhere(mask), np.stack([row, col], 1))
        options = {
            "curvature": Curvature(stats["hessian"]),
            "outputs": stats["outputs"],
            "row_weight": stats["rows"],
            "outlier": mask,
            "sweeps": 1,
        }
        e = encode(weight, type, TABLES["trellis"][type.name], **options)
        dense = dequantize(type, parts[0], weight.shape)
        added = np.ldexp(e.values - dense, -e.exponent)
        assert np.array_equal(value, added[mask].astype(np.float16))
        assert (
            np.abs(decode(recipe, weight, parts) - e.values).max() < 2e-3 * np.abs(e.values).max()
        )


def test_full_rows_give_way():
    score = np.zeros((16, 512), np.float32)
    score[3] = 2
    score[5, :10] = 1
    chosen = select(score, 515)
    counts = np.bincount(chosen // 512 * 2 + chosen % 512 // 256)
    assert len(chosen) == 515 and counts.max() == 255
    assert set(range(5 * 512, 5 * 512 + 5)) <= set(chosen) or (chosen // 512 == 5).sum() == 5


def test_scales_ignore_outliers():
    """One huge weight per block, kept as an outlier, must not spoil the scale of its neighbours."""
    rng = np.random.default_rng(1)
    weight = rng.standard_t(4, size=(64, 512)).astype(np.float32)
    stats = statistics(weight, rng)
    stats["hessian"] = np.diag(np.diag(stats["hessian"]))
    rest = np.ones(weight.shape, bool)
    rest[:, ::64] = False
    for t in TILES:
        for options in (PAPER, {"curvature": True}):
            errors = []
            for spike in (2, 1000):
                spiked = weight.copy()
                spiked[:, ::64] = spike
                # so that those are kept by the default rule
                stats["hessian"][::64, ::64] = np.eye(8) * 1e6
                recipe = Recipe(t, 1 / 64, **options | {"saliency": "hessian"})
                got = coded(recipe, spiked, stats)
                assert np.abs(got[:, ::64] - spike).max() <= 1e-3 * spike + 0.01
                errors.append(((got - spiked)[rest] ** 2).mean())
            assert errors[1] == pytest.approx(errors[0], rel=0.02), (t.name, options)


def test_tables():
    """On Gaussian weights the trellis beats independent levels, and these beat a uniform grid."""
    weight = np.random.default_rng(3).normal(size=(128, 1024)).astype(np.float32)
    for t in TILES:
        error = {
            name: ((coded(Recipe(t, table=name, curvature=False), weight, {}) - weight) ** 2).mean()
            for name in TABLES
        }
        # the 64 entries of gwq6 are always a grid, the 32 of gwq5 nearly
        assert error["scalar"] < {6: 1.001, 5: 0.985}.get(t.bits, 0.97) * error["grid"], error
        assert error["trellis"] < (0.98 if t.history else 1.001) * error["scalar"], (t.name, error)
        for name, entries in TABLES.items():
            entries = np.array(entries[t.name])
            assert entries.shape == (16,) and entries.min() >= -32 and entries.max() <= 31
            by_window = levels(t, entries)
            # under outliers
            assert name != "grid" or (by_window.reshape(-1, 1 << t.bits) == 0).all(0).sum() == 1
            assert t.history or len(set(by_window)) == 1 << t.bits


def test_importance_moves_the_error():
    """Columns of large inputs are coded better than by the unweighted fit, with and without error
    feedback.
    """
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(64, 512)).astype(np.float32)
    stats = {"rows": np.ones(64, np.float32)}
    importance = np.where(rng.random(512) < 0.1, 100.0, 0.01).astype(np.float32)
    stats["hessian"] = np.diag(importance)
    plain = (
        importance * (coded(Recipe(TYPES["gwq3"], curvature=False), weight, stats) - weight) ** 2
    ).sum()
    for feedback in (False, True):
        assert (
            importance
            * (coded(Recipe(TYPES["gwq3"], feedback=feedback), weight, stats) - weight) ** 2
        ).sum() < 0.8 * plain


def test_edge_values():
    for t in TILES:
        for recipe in (Recipe(t, **PAPER), Recipe(t, table="scalar", curvature=False), Recipe(t)):
            for value in (0.0, 1e-18, 3e-6, 6e4, 1e9, -1.0):
                weight = np.full((3, 70), value, np.float32)
                got = coded(
                    recipe,
                    weight,
                    {"hessian": np.eye(70, dtype=np.float32), "rows": np.ones(3, np.float32)},
                )
                assert np.isfinite(got).all(), (t.name, recipe, value)
                assert np.abs(got - weight).max() <= 0.15 * abs(value), (t.name, recipe, value)
    with pytest.raises(GwqError, match="too large for gwq4"):
        quantize(
            np.float32([[1e13, 1.0]]), {}, Recipe(TYPES["gwq4"], 0.5, "magnitude", curvature=False)
        )
    with pytest.raises(GwqError, match="too large for gwq4"):
        quantize(np.float32([[np.nan, 1.0]]), {}, Recipe(TYPES["gwq4"], curvature=False))
