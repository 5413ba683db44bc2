"""The native search for codes (gwq_encode) in rings: the codes of a ring are the best ones."""

from itertools import product

import numpy as np
import pytest

from gwq_export.format.decoding import ring_order
from gwq_export.format.types import TYPES
from tests.support.encoding import call, error, problem


def ring_problem(type, held):
    """One unit of columns whose rings are to be found; columns do not count alike."""
    rng = np.random.default_rng(5)
    arrays = problem(type, type.line_columns, seed=4)
    arrays["row_scale"] *= 50
    arrays["column_cost"] = rng.uniform(0.1, 2, type.line_columns).astype(np.float32)
    if held:
        arrays["outlier"] = (rng.random(arrays["target"].shape) < 0.3).astype(np.uint8)
    return arrays


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("name", "free"), [("gwq2", 6), ("gwq3", 4)])
def test_rings_have_the_least_error(name, free, held):
    """Against all codes of some neighbours in a ring, the others holding what they were given: none
    of those does better, wherever in the ring they begin.
    """
    type = TYPES[name]
    arrays = ring_problem(type, held)
    assert call(type, arrays, 0) == 0
    weight = arrays["column_cost"][:, None]
    mine = error(type, arrays, arrays["code"][None], weight)[0].sum(0)
    every = np.array(list(product(range(1 << type.bits), repeat=free)), np.uint8)[:, :, None]
    order = ring_order(type, type.line_columns)
    for first in range(type.ring):
        columns = order[(first + np.arange(free)) % type.ring]
        codes = np.repeat(arrays["code"][None], len(every), 0)
        codes[:, columns] = every
        assert (mine <= error(type, arrays, codes, weight).sum(1).min(0) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["gwq2", "gwq3"])
def test_rings_against_every_code(name):
    """Against all codes of a whole ring, by way of the states that its end can have."""
    type = TYPES[name]
    arrays = ring_problem(type, False)
    assert call(type, arrays, 0) == 0
    weight = arrays["column_cost"][:, None]
    mine = error(type, arrays, arrays["code"][None], weight)[0]
    s = arrays["row_scale"] * np.repeat(arrays["scale"], type.sub, 0)[: type.line_columns]
    value = s[..., None] * arrays["table"].astype(np.float64)
    cost = (value - arrays["target"][..., None]) ** 2 * weight[..., None]
    cost *= arrays["row_weight"][:, None]  # (columns, rows, windows)
    states, codes = 1 << type.history, 1 << type.bits
    for ring in ring_order(type, type.line_columns).reshape(-1, type.ring):
        total = None  # (rows, first code's state, state that the next code must have)
        for column in ring:
            step = np.full((cost.shape[1], states, states), np.inf)
            for code, after in product(range(codes), range(states)):
                at = step[:, code % states, after]
                step[:, code % states, after] = np.minimum(
                    at, cost[column, :, code | after << type.bits]
                )
            total = step if total is None else (total[..., None] + step[:, None]).min(2)
        least = np.diagonal(total, axis1=1, axis2=2).min(1)
        assert np.allclose(mine[ring].sum(0), least, rtol=1e-5)


@pytest.mark.parametrize("name", ["gwq2", "gwq3"])
def test_columns_that_do_not_count_leave_the_others_any_window(name):
    type = TYPES[name]
    arrays = ring_problem(type, False)
    counts = ring_order(type, type.line_columns)[::2]
    arrays["column_cost"][:] = 0
    arrays["column_cost"][counts] = 1
    assert call(type, arrays, 0) == 0
    s = (arrays["row_scale"] * np.repeat(arrays["scale"], type.sub, 0)[: type.line_columns])[counts]
    best = np.abs(s[..., None] * arrays["table"] - arrays["target"][counts][..., None]).min(-1)
    assert np.allclose(np.abs(arrays["value"] - arrays["target"])[counts], best, atol=1e-6)


@pytest.mark.parametrize("name", ["gwq2", "gwq3"])
def test_feedback_inside_a_ring_helps(name):
    """Codes that are chosen with the feedback among them cost less than those chosen without."""
    type = TYPES[name]
    arrays = ring_problem(type, False)
    rng = np.random.default_rng(1)
    n = type.line_columns
    x = rng.normal(size=(2 * n, n)) + rng.normal(size=(2 * n, 1))
    h = x.T @ x / len(x)
    arrays["before"] = arrays["target"].copy()
    arrays["feedback"] = (-h / np.diag(h)).astype(np.float32)
    arrays["column_cost"] = np.diag(h).astype(np.float32)
    blind = {k: a.copy() for k, a in arrays.items()} | {"feedback": None}
    original = arrays["target"].copy()

    def loss(a):
        e = a["value"].astype(np.float64) - original
        return ((h @ e) * e).sum(0)

    assert call(type, arrays, 0) == 0 and call(type, blind, 0) == 0
    assert loss(arrays).sum() < 0.9 * loss(blind).sum()
