"""Feedback from rows to rows: that of the formula, and worth its while."""

from dataclasses import replace

import numpy as np
import pytest

from gwq_export.arch.layout import Arrangement
from gwq_export.compute.threads import cpus
from gwq_export.format.decoding import dequantize
from gwq_export.format.types import LEVELS, TYPES
from gwq_export.quantization import feedback
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.loss_model import Sample
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import TABLES, Recipe
from tests.support.layer import layer, outputs

TYPES_WITH_CODES = [t for t in TYPES.values() if t.bits or t.levels]
each_type = pytest.mark.parametrize("type", TYPES_WITH_CODES, ids=lambda t: t.name)


def table_of(type):
    return LEVELS.get(type.name) or TABLES["trellis"][type.name]


def regularized(g):
    """What G is taken for, as `row_parts` has it."""
    own = np.diag(np.diag(g))
    mean = np.trace(g) / len(g)
    return 0.65 * g + 0.35 * own + 0.1 * mean * np.eye(len(g))


def cost(g, error, h):
    return np.sum((g @ error) * (error @ h))


@each_type
@pytest.mark.parametrize("width", [1024, 128])
def test_rows_make_up_for_the_errors_of_others(type, width):
    weight, h, _ = layer(300, 192)
    g = outputs(300, np.random.default_rng(1), width)
    whole = np.zeros((300, 300))
    for first in range(0, 300, width):
        n = min(width, 300 - first)
        whole[first : first + n, first : first + n] = g[first : first + n, :n]
    options = {"curvature": Curvature(h), "sweeps": 1}
    alone, together = (
        encode(weight, type, table_of(type), outputs=o, **options) for o in (None, g)
    )
    assert cost(whole, together.values - weight, h) < 0.85 * cost(whole, alone.values - weight, h)
    assert together.codes.shape == alone.codes.shape
    assert together.scales.shape == alone.scales.shape


def test_gains_are_the_best_answer_to_an_error():
    """With e the errors of some rows, the others' best answer is -G_oo^-1 G_oe e."""
    g = outputs(150, np.random.default_rng(2)).astype(np.float64)
    damped = regularized(g)
    done = np.zeros(0, int)
    seen = []
    for rows, later, gain, _ in feedback.row_parts(g.astype(np.float32)):
        assert len(rows) <= 64 and np.array_equal(
            np.sort(later), np.setdiff1d(range(150), [*done, *rows])
        )
        best = (
            -np.linalg.solve(damped[np.ix_(later, later)], damped[np.ix_(later, rows)])
            if len(later)
            else np.zeros((0, len(rows)))
        )
        assert np.allclose(gain.T, best, atol=1e-4)
        done = np.concatenate([done, rows])
        seen.append(len(rows))
    assert np.array_equal(np.sort(done), np.arange(150)) and seen == [50, 50, 50]


@pytest.mark.parametrize("width", [150, 100])
def test_costs_are_what_compensated_errors_cost(width):
    """Independent errors, and the answers of later rows, under what is believed of G."""
    g = outputs(150, np.random.default_rng(2), width)
    left = feedback.row_costs(g)
    for first in range(0, 150, width):
        here = slice(first, min(150, first + width))
        own = g[here, : here.stop - first].astype(np.float64)
        believed = 0.65 * own + 0.35 * np.diag(np.diag(own))
        answers = np.eye(len(own))
        for rows, later, gain, _ in feedback.row_parts(g[here]):
            answers[np.ix_(later, rows)] = gain.T
        cost = np.einsum("ki,kl,li->i", answers, believed, answers)
        assert np.allclose(left[here] * np.diag(own), cost, rtol=1e-3, atol=1e-6)
    assert left.mean() < 0.9


@pytest.mark.parametrize("name", ["gwq3", "gwq4"])
def test_predictions_know_of_it(name):
    weight, h, _ = layer(300, 192)
    g = outputs(300, np.random.default_rng(1))
    statistics = {"hessian": h, "rows": np.diag(g).copy(), "outputs": g}
    recipe = Recipe(TYPES[name], sweeps=0, outputs=True)
    predicted = Sample(weight, statistics).loss(recipe)
    stored = quantize(weight, statistics, recipe)
    error = (dequantize(recipe.type, stored[0], weight.shape) - weight).astype(np.float64)
    believed = 0.65 * g + 0.35 * np.diag(np.diag(g))
    assert predicted == pytest.approx(cost(believed, error, h) / 2, rel=0.1)
    assert predicted < 0.9 * Sample(weight, statistics).loss(replace(recipe, outputs=False))


def test_one_group_of_uncorrelated_rows_is_coded_as_without():
    weight, h, _ = layer(60, 128)
    type = TYPES["gwq3"]
    options = {"curvature": Curvature(h), "sweeps": 1}
    g = np.diag(np.random.default_rng(0).uniform(0.5, 2, 60)).astype(np.float32)
    a, b = (encode(weight, type, table_of(type), outputs=o, **options) for o in (None, g))
    assert np.array_equal(a.values, b.values) and np.array_equal(a.codes[:60], b.codes[:60])


@pytest.mark.parametrize("name", ["gwq3", "gwq4", "iq4_nl"])
def test_same_values_for_any_number_of_threads(name):
    weight, h, _ = layer(200, 192)
    g = outputs(200, np.random.default_rng(3), 64)
    options = {"curvature": Curvature(h), "outputs": g}
    found = []
    for threads in (1, 2, 3):
        with cpus(threads):
            found.append(encode(weight, TYPES[name], table_of(TYPES[name]), **options))
    assert all(np.array_equal(found[0].values, e.values) for e in found[1:])


@pytest.mark.parametrize("split, swap", [((4, 2, 8), (1, 2)), ((2, 4, 8), (0, 1))])
@pytest.mark.parametrize("width", [64, 16])
def test_products_move_with_their_rows(split, swap, width):
    """Within groups; what leaves its group is lost."""
    g = outputs(64, np.random.default_rng(4), width)
    arrange = Arrangement(split=split, swap=swap)
    order = arrange.weight(np.arange(64))
    moved = arrange.statistics({"outputs": g})["outputs"]
    assert moved.shape == g.shape and moved.dtype == np.float32
    for i in range(64):
        for j in range(64):
            if i // width != j // width:
                continue
            a, b = order[i], order[j]
            expected = g[a, b % width] if a // width == b // width else 0
            assert moved[i, j % width] == expected
