"""Allocation: the choice among options against an exact solver, and the predicted losses."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export import GwqError
from gwq_export.format.decoding import dequantize
from gwq_export.format.types import TYPES
from gwq_export.pipeline.options import ExportOptions
from gwq_export.pipeline.plan import file_bytes
from gwq_export.pipeline.presets import budget_bytes
from gwq_export.quantization.allocate import Choice, allocate, hull
from gwq_export.quantization.loss_model import OFFERED, Sample, choices
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe


def random_options(rng, matrices):
    """Ascending Choices with falling losses, not convex."""
    out = []
    for _ in range(matrices):
        n = rng.integers(1, 9)
        nbytes = np.sort(rng.choice(1000, n, replace=False)) + 100
        loss = -np.sort(-rng.exponential(size=n))
        out.append([Choice(None, int(b), float(x)) for b, x in zip(nbytes, loss, strict=True)])
    return out


def best_loss(options, budget):
    """By scipy's mixed-integer solver: one option of every matrix, bytes within the budget."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    flat = [c for o in options for c in o]
    one = np.zeros((len(options), len(flat)))
    for i, o in enumerate(options):
        first = sum(map(len, options[:i]))
        one[i, first : first + len(o)] = 1
    constraints = [
        LinearConstraint(one, 1, 1),
        LinearConstraint(np.array([[c.nbytes for c in flat]]), 0, budget),
    ]
    found = milp(
        [c.loss for c in flat],
        constraints=constraints,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
    )
    return found.fun if found.success else None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), matrices=st.integers(1, 30), share=st.floats(0, 1))
def test_close_to_the_exact_optimum(seed, matrices, share):
    rng = np.random.default_rng(seed)
    options = random_options(rng, matrices)
    least, most = (sum(o[i].nbytes for o in options) for i in (0, -1))
    budget = int(least + share * (most - least)) - (seed % 7 == 0)
    shuffled = [[o[i] for i in rng.permutation(len(o))] for o in options]  # in any order
    picked = allocate(shuffled, budget)
    best = best_loss(options, budget)
    if picked is None:
        assert best is None
        return
    assert sum(c.nbytes for c in picked) <= budget
    assert all(c in o for c, o in zip(picked, options, strict=True))
    loss = sum(c.loss for c in picked)
    # greedy along the hulls misses the optimum by at most one step of one matrix
    step = max((a.loss - b.loss for o in options for a, b in pairwise(hull(o))), default=0)
    assert best - 1e-9 <= loss <= best + step + 1e-9


def test_few_matrices_are_no_worse_than_all_alike():
    """Steps along the hulls leave one of the two at its smallest choice."""
    recipes = [Recipe(TYPES[name]) for name in ("gwq3", "iq4_nl", "gwq4")]
    options = [
        [Choice(r, b, x) for r, b, x in zip(recipes, (300, 390, 400), losses, strict=True)]
        for losses in ((100.0, 31.0, 20.0), (101.0, 30.0, 21.0))
    ]
    assert [c.recipe.type.name for c in allocate(options, 780)] == ["iq4_nl", "iq4_nl"]
    assert [c.recipe.type.name for c in allocate(options, 790)] == ["gwq4", "iq4_nl"]
    assert [c.recipe.type.name for c in allocate(options, 779)] == ["gwq4", "gwq3"]


def test_a_hull_has_no_dents():
    c = [Choice(None, b, x) for b, x in [(0, 10.0), (1, 9.5), (2, 4.0), (3, 3.9), (4, 1.0)]]
    assert [h.nbytes for h in hull(c)] == [0, 2, 4]


def test_budget_of_words():
    assert budget_bytes(ExportOptions(type="gwq4"), 8) is None
    assert budget_bytes(ExportOptions(bpw=4.5), 16) == budget_bytes(ExportOptions(), 16) == 9
    sizes = {"640MiB": 640 << 20, "1.5 GB": 15 * 10**8, "12k": 12000, 777: 777, "2gib": 2 << 30}
    assert {s: budget_bytes(ExportOptions(size=s), 1) for s in sizes} == sizes
    for bpw, size in [
        (0, None),
        (-1, None),
        (float("nan"), None),
        (None, "x"),
        (None, "-5"),
        (None, "1TB"),
        (3, "1G"),
        (None, "1.2.3M"),
    ]:
        with pytest.raises(GwqError, match=r"--bpw|--size"):
            budget_bytes(ExportOptions(bpw=bpw, size=size), 100)


def test_prediction_of_a_matrix():
    """The predicted loss is the second-order loss of what quantize does, within a fifth, from a
    sample of the rows.
    """
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(320, 320)) * np.exp(rng.normal(size=320) / 4)
    x = rng.normal(size=(4000, 320)) @ mix
    weight = (rng.standard_t(5, size=(1600, 320)) * np.exp(rng.normal(size=(1600, 1)) / 3)).astype(
        np.float32
    )
    statistics = {
        "hessian": (x.T @ x / len(x)).astype(np.float32),
        "rows": rng.exponential(size=1600).astype(np.float32),
    }
    sample = Sample(weight, statistics)
    assert len(sample.rows) < 400
    for name, fraction in [("gwq4", 0.0), ("gwq3", 0.0025), ("gwq2", 0.01)]:
        # a sweep takes some more off, how much depends on the model
        recipe = Recipe(TYPES[name], fraction, sweeps=0)
        parts = quantize(weight, statistics, recipe)
        side = (parts[1], parts[2].view(np.int32)) if fraction else None
        error = (dequantize(recipe.type, parts[0], weight.shape, side) - weight).astype(np.float64)
        loss = ((error @ statistics["hessian"] * error).sum(1) * statistics["rows"]).sum() / 2
        assert sample.loss(recipe) == pytest.approx(loss, rel=0.2), name
    assert sample.loss(Recipe(TYPES["f16"])) < 1e-3 * sample.loss(Recipe(TYPES["gwq4"]))
    assert [
        c.recipe.type.name
        for c in choices(
            sample, Recipe(TYPES["gwq4"]), lambda r: file_bytes("w", weight.shape, r), OFFERED
        )
    ][-1] == "f16"


@pytest.mark.parametrize(
    "largest, cols, left",
    [
        (65503.0, 64, ["gwq4", "q8_0", "f16"]),
        (65520.0, 64, ["gwq4", "q8_0"]),
        (9e6, 64, ["gwq4"]),
        (1e12, 64, ["gwq4"]),
        (2e12, 64, []),
        (2e12, 72, []),
    ],
)
def test_types_that_cannot_hold_a_weight_are_no_choice(largest, cols, left):
    """Also where the weight is in a row that the sample leaves out."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1024, cols)).astype(np.float32)
    found = {
        "hessian": np.eye(cols, dtype=np.float32),
        "rows": np.where(np.arange(1024) == 77, 0, 1).astype(np.float32),
    }
    weight[77, 5] = -largest
    sample = Sample(weight, found)
    recipe = Recipe(TYPES["gwq4"])
    assert 77 not in sample.rows

    def offer():
        types = dict.fromkeys(("gwq4", "q8_0", "f16"), (0.0,))
        found = choices(sample, recipe, lambda r: 1, types)
        return [c.recipe.type.name for c in found]

    if left:
        assert offer() == left
        for kind in left:  # which can be made
            quantize(weight[72:80], {}, Recipe(TYPES[kind], curvature=False))
    else:
        with pytest.raises(GwqError, match=r"too large for gwq4: .*--tensor-type NAME=bf16"):
            offer()
