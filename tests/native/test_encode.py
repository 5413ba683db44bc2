"""The native search for codes (gwq_encode)."""

from itertools import product

import numpy as np
import pytest

from gwq_export.format.decoding import ring_order, windows
from gwq_export.format.types import BLOCK, TYPES, ffi
from gwq_export.native import library as native
from gwq_export.native.library import Pool, lib, pointer
from gwq_export.quantization.encoder import coding_order
from gwq_export.quantization.recipe import TABLES
from gwq_export.quantization.tile_codes import native_table
from tests.support.kernel_cases import guarded

TILES = [t for t in TYPES.values() if t.bits]


each_type = pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)


KINDS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


def problem(type, columns=BLOCK, rows=128, seed=0, **more):
    """Arguments of gwq_encode by name: random weights (columns, rows), their scales, and room for
    the results.
    """
    rng = np.random.default_rng(seed)
    shape = (columns, rows)
    table, _ = native_table(type, TABLES["trellis"][type.name])
    return {
        "table": table,
        "row_scale": rng.uniform(0.0005, 0.002, rows).astype(np.float16).astype(np.float32),
        "row_weight": rng.uniform(0.1, 3, rows).astype(np.float32),
        "column_weight": rng.uniform(0, 2, columns).astype(np.float32),
        "target": rng.normal(size=shape).astype(np.float32),
        "scale": rng.integers(-32, 32, (-(-columns // type.sub), rows)).astype(np.int8),
        "code": np.zeros(shape, np.uint8),
        "value": np.zeros(shape, np.float32),
    } | more


def whole(type, columns):
    """`columns`, rounded up to whole rings."""
    unit = type.line_columns if type.history else 1
    return -(-columns // unit) * unit


def call(kind, arrays, fit, pool=ffi.NULL, **fields):
    """Status of gwq_encode; its results are in the arrays."""
    e = ffi.new("gwq_encoding *")
    columns, rows = arrays["target"].shape
    for name, value in {"type": kind.id, "columns": columns, "rows": rows, "fit": fit}.items():
        setattr(e, name, value)
    for name, array in arrays.items():
        setattr(e, name, ffi.NULL if array is None else pointer(array, KINDS[array.dtype.name]))
    for name, value in fields.items():
        setattr(e, name, value)
    return lib().gwq_encode(pool, e)


def everything(type, columns, rows=128, seed=0):
    """A problem with held-out weights, feedback and values before."""
    rng = np.random.default_rng([9, seed])
    arrays = problem(type, columns, rows, seed)
    shape = arrays["target"].shape
    arrays["outlier"] = (rng.random(shape) < 0.05).astype(np.uint8)
    arrays["feedback"] = (rng.normal(size=(columns, columns)) / columns).astype(np.float32)
    arrays["before"] = (arrays["target"] + 0.1 * rng.normal(size=shape)).astype(np.float32)
    arrays["column_cost"] = rng.uniform(0, 2, columns).astype(np.float32)
    return arrays


def decoded(type, a):
    """Values of codes and scales, by the format's arithmetic."""
    entry = a["table"][windows(type, a["code"].T)].T
    return a["row_scale"] * (np.repeat(a["scale"], type.sub, 0)[: len(entry)] * entry)


@each_type
@pytest.mark.parametrize("fit", [0, 1])
def test_same_bits_everywhere(type, fit):
    """On every instruction set, with any number of threads."""
    chosen = native.isa()
    found = []
    for isa, threads in [*((i, 1) for i in native.isas()), (chosen, 2), (chosen, 5)]:
        for columns in (64, 37, 1):
            arrays = everything(type, whole(type, columns), 320)
            try:
                assert lib().gwq_isa_select(isa.encode()) == 0
                assert call(type, arrays, fit, Pool(threads).ptr) == 0
            finally:
                lib().gwq_isa_select(chosen.encode())
            found.append([arrays[k].tobytes() for k in ("scale", "code", "value", "target")])
    assert all(f == found[i % 3] for i, f in enumerate(found))


@each_type
@pytest.mark.parametrize("fit", [0, 1])
def test_memory_is_respected(type, fit):
    """No byte beyond any array, none of an argument changed, and every result is written."""
    for columns in (64, 33, 16, 7, 1):
        columns = whole(type, columns)
        for arrays in (everything(type, columns, 64), problem(type, columns, 64)):
            arrays["value"][:] = np.nan
            arrays["code"][:] = 255
            before = {k: a.copy() for k, a in arrays.items()}
            arrays = {k: guarded(a) for k, a in arrays.items()}
            assert call(type, arrays, fit) == 0
            results = {"value", "code"}
            if fit:
                results.add("scale")
            if "feedback" in arrays:
                results.add("target")
            assert all(np.array_equal(arrays[k], before[k]) for k in set(arrays) - results)
            assert arrays["code"].max() < 1 << type.bits and np.isfinite(arrays["value"]).all()
            assert abs(arrays["scale"].astype(int)).max() <= 32


@each_type
@pytest.mark.parametrize("fit", [0, 1])
def test_values_are_what_the_codes_stand_for(type, fit):
    arrays = everything(type, whole(type, 48))
    assert call(type, arrays, fit) == 0
    held = arrays["outlier"] == 1
    assert np.array_equal(arrays["value"][~held], decoded(type, arrays)[~held])
    assert np.array_equal(arrays["value"][held], arrays["target"][held])


def error(type, a, codes, weight=1.0):
    """Weighted squared errors (candidates, columns, rows) of codes (candidates, columns, rows), in
    float64. weight: (columns, 1).
    """
    entry = a["table"][windows(type, codes.swapaxes(1, 2))].swapaxes(1, 2)
    value = a["row_scale"] * (
        np.repeat(a["scale"], type.sub, 0)[: codes.shape[1]] * entry.astype(np.float64)
    )
    weight = weight * a["row_weight"]
    if a.get("outlier") is not None:
        weight = weight * (1.0 - a["outlier"])
    return (value - a["target"]) ** 2 * weight


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


def test_four_bits_take_the_nearest():
    type = TYPES["gwq4"]
    arrays = problem(type, 20, 64)
    arrays["row_scale"] *= 50
    assert call(type, arrays, 0) == 0
    s = arrays["row_scale"] * np.repeat(arrays["scale"], type.sub, 0)[:20]
    distance = np.abs(s[..., None] * arrays["table"] - arrays["target"][..., None])
    assert np.allclose(np.abs(arrays["value"] - arrays["target"]), distance.min(-1), atol=1e-6)


@each_type
def test_feedback_hands_the_error_on(type):
    """As columns added by hand, one by one in the order of coding, in float32; without history each
    coded by itself.
    """
    for before in (False, True):
        arrays = everything(type, type.sub)
        if not before:
            arrays["before"] = None
        one = {k: a.copy() for k, a in arrays.items() if a is not None}
        t = arrays["target"].copy()
        assert call(type, arrays, 0) == 0
        order = coding_order(type, type.sub)
        for k, c in enumerate(order):
            column = {
                name: np.ascontiguousarray(one[name][c : c + 1])
                for name in ("outlier", "code", "value")
            }
            column |= {name: one[name] for name in ("table", "row_scale", "row_weight", "scale")}
            column["target"] = t[c : c + 1].copy()
            if not type.history:
                assert call(type, column, 0) == 0
                assert np.array_equal(column["value"][0], arrays["value"][c])
                assert np.array_equal(column["code"][0], arrays["code"][c])
            held = one["outlier"][c] == 1
            assert np.array_equal(arrays["value"][c, held], t[c, held])
            e = arrays["value"][c] - (one["before"][c] if before else t[c])
            t[order[k + 1 :]] += e * one["feedback"][c, order[k + 1 :], None]
        assert np.array_equal(t, arrays["target"])


@each_type
def test_fitted_scales_are_good(type):
    """Little worse than the best of all 64, found one after another; weights held out and columns
    of weight 0 do not count.
    """
    arrays = problem(type, type.sub, 64, seed=3, column_weight=np.ones(type.sub, np.float32))
    arrays["row_scale"][:] = np.abs(arrays["target"]).max(0) / (31 * 28)
    arrays["outlier"] = np.zeros(arrays["target"].shape, np.uint8)
    arrays["outlier"][5], arrays["column_weight"][7] = 1, 0
    arrays["column_cost"] = arrays["column_weight"]
    arrays["target"][5], arrays["target"][7] = 1e4, 3
    assert call(type, arrays, 1) == 0
    counted = np.delete(np.arange(type.sub), [5, 7])

    def loss(a):
        return error(type, a, a["code"][None])[0][counted].sum()

    least = loss(arrays)
    uniform = []
    for scale in range(-32, 32):  # the same for all rows: only an upper bound of what can be had
        other = {k: a.copy() for k, a in arrays.items()}
        other["scale"][:] = scale
        assert call(type, other, 0) == 0
        uniform.append(loss(other))
    assert least < min(uniform)
    mine, best = 0, 0
    for row in range(0, 64, 5):  # other scales of single rows are not much better on the whole
        base = {k: a.copy() for k, a in arrays.items()}
        assert call(type, base, 0) == 0 and np.array_equal(base["code"], arrays["code"])
        others = []
        for scale in range(-32, 32):
            base["scale"][0, row] = scale
            assert call(type, base, 0) == 0
            others.append(error(type, base, base["code"][None])[0][counted, row].sum())
        mine += error(type, arrays, arrays["code"][None])[0][counted, row].sum()
        best += min(others)
    assert mine < 1.25 * best


def test_bad_arguments_are_refused():
    type, status = TYPES["gwq3"], ffi.typeof("enum gwq_status").relements
    assert lib().gwq_encode(ffi.NULL, ffi.NULL) == status["GWQ_E_ARGUMENT"]
    for name in ("table", "row_scale", "row_weight", "target", "scale", "code", "value"):
        assert call(type, problem(type), 0, **{name: ffi.NULL}) == status["GWQ_E_ARGUMENT"], name
    assert call(type, problem(type, column_weight=None), 1) == status["GWQ_E_ARGUMENT"]
    assert call(type, problem(type, column_weight=None), 0) == 0
    for fields in (
        {"columns": 0},
        {"columns": 65},
        {"columns": -1},
        {"columns": 48},
        {"rows": 0},
        {"rows": 72},
        {"rows": -64},
        {"rows": 1 << 40},
    ):
        assert call(type, problem(type), 0, **fields) == status["GWQ_E_SHAPE"], fields
    for id in (0, 8, -1, TYPES["gwq6"].id + 1):
        assert call(type, problem(type), 0, type=id) == status["GWQ_E_TYPE"]
    for bad in (np.nan, np.inf, 1e9):
        arrays = problem(type)
        arrays["table"][9] = bad
        assert call(type, arrays, 0) == status["GWQ_E_TABLE"]


@each_type
def test_values_that_are_not_finite_do_no_harm(type):
    """Codes and scales stay in range, whatever the weights are."""
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        for name in (
            "target",
            "row_scale",
            "row_weight",
            "column_weight",
            "column_cost",
            "feedback",
        ):
            arrays = everything(type, 32)
            arrays[name].reshape(-1)[::7] = bad
            assert call(type, arrays, 1) == 0
            assert arrays["code"].max() < 1 << type.bits
            assert np.abs(arrays["scale"].astype(int)).max() <= 32
