"""The native search for codes (gwq_encode)."""

from itertools import product

import numpy as np
import pytest

from gwq_export.format.tiles import windows
from gwq_export.format.types import BLOCK, RING, TYPES, ffi
from gwq_export.native import library as native
from gwq_export.native.library import Pool, lib, pointer
from gwq_export.quantization.recipe import TABLES
from gwq_export.quantization.tile_codes import native_table
from tests.support.kernel_cases import guarded

TILES = [t for t in TYPES.values() if t.bits]


each_type = pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)


KINDS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


def problem(type, columns=BLOCK, rings=16, seed=0, **more):
    """Arguments of gwq_encode by name: random weights in lanes (columns, 8, rings), their scales,
    and room for the results.
    """
    rng = np.random.default_rng(seed)
    shape = (columns, RING, rings)
    table, _ = native_table(type, TABLES["trellis"][type.name])
    return {
        "table": table,
        "row_scale": rng.uniform(0.0005, 0.002, (RING, rings))
        .astype(np.float16)
        .astype(np.float32),
        "row_weight": rng.uniform(0.1, 3, (RING, rings)).astype(np.float32),
        "column_weight": rng.uniform(0, 2, columns).astype(np.float32),
        "target": rng.normal(size=shape).astype(np.float32),
        "scale": rng.integers(-32, 32, (-(-columns // type.sub), RING, rings)).astype(np.int8),
        "code": np.zeros(shape, np.uint8),
        "value": np.zeros(shape, np.float32),
    } | more


def call(kind, arrays, fit, pool=ffi.NULL, **fields):
    """Status of gwq_encode; its results are in the arrays."""
    e = ffi.new("gwq_encoding *")
    columns, _, rings = arrays["target"].shape
    for name, value in {"type": kind.id, "columns": columns, "rings": rings, "fit": fit}.items():
        setattr(e, name, value)
    for name, array in arrays.items():
        setattr(e, name, ffi.NULL if array is None else pointer(array, KINDS[array.dtype.name]))
    for name, value in fields.items():
        setattr(e, name, value)
    return lib().gwq_encode(pool, e)


def everything(type, columns, rings=16, seed=0):
    """A problem with held-out weights, feedback and values before."""
    rng = np.random.default_rng([9, seed])
    arrays = problem(type, columns, rings, seed)
    shape = arrays["target"].shape
    arrays["outlier"] = (rng.random(shape) < 0.05).astype(np.uint8)
    arrays["feedback"] = (rng.normal(size=(columns, columns)) / columns).astype(np.float32)
    arrays["before"] = (arrays["target"] + 0.1 * rng.normal(size=shape)).astype(np.float32)
    return arrays


def decoded(type, a):
    """Values of codes and scales, by the format's arithmetic."""
    columns, _, rings = a["target"].shape
    codes = a["code"].transpose(2, 1, 0).reshape(-1, columns)
    entry = a["table"][windows(type, codes)].reshape(rings, RING, columns).transpose(2, 1, 0)
    return a["row_scale"] * (np.repeat(a["scale"], type.sub, 0)[:columns] * entry)


@each_type
@pytest.mark.parametrize("fit", [0, 1])
def test_same_bits_everywhere(type, fit):
    """On every instruction set, with any number of threads."""
    chosen = native.isa()
    found = []
    for isa, threads in [*((i, 1) for i in native.isas()), (chosen, 2), (chosen, 5)]:
        for columns in (64, 37, 1):
            arrays = everything(type, columns, 40)
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
        for arrays in (everything(type, columns, 8), problem(type, columns, 8)):
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
    arrays = everything(type, 48)
    assert call(type, arrays, fit) == 0
    held = arrays["outlier"] == 1
    assert np.array_equal(arrays["value"][~held], decoded(type, arrays)[~held])
    assert np.array_equal(arrays["value"][held], arrays["target"][held])


def error(type, a, codes):
    """Weighted squared errors (candidates, columns, rings) of codes (candidates, columns, 8,
    rings), in float64.
    """
    n, columns, _, rings = codes.shape
    flat = codes.transpose(0, 3, 2, 1).reshape(-1, columns)
    entry = a["table"][windows(type, flat)].reshape(n, rings, RING, columns).transpose(0, 3, 2, 1)
    value = a["row_scale"] * (
        np.repeat(a["scale"], type.sub, 0)[:columns] * entry.astype(np.float64)
    )
    weight = a["row_weight"] * (1.0 if a.get("outlier") is None else 1.0 - a["outlier"])
    return ((value - a["target"]) ** 2 * weight).sum(2)


@pytest.mark.parametrize("held", [False, True])
def test_two_bits_have_the_least_error(held):
    """Against all 4^8 codes of a ring."""
    type = TYPES["gwq2"]
    arrays = problem(type, 3, 8, seed=4)
    arrays["row_scale"] *= 50
    if held:
        arrays["outlier"] = (np.random.default_rng(5).random((3, 8, 8)) < 0.3).astype(np.uint8)
    assert call(type, arrays, 0) == 0
    every = np.array(list(product(range(4), repeat=RING)), np.uint8)[:, None, :, None]
    least = np.full((3, 8), np.inf)
    for part in np.array_split(every, 16):
        least = np.minimum(
            least, error(type, arrays, np.broadcast_to(part, (len(part), 3, RING, 8))).min(0)
        )
    mine = error(type, arrays, arrays["code"][None])[0]
    assert (mine <= least * (1 + 1e-5) + 1e-9).all() and (mine >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("free", [range(4), range(4, 8), (6, 7, 0, 1), (0, 2, 4, 6)])
def test_three_bits_have_the_least_error(free):
    """Against all codes of four rows of a ring, the others holding what they were given: none of
    those does better.
    """
    type = TYPES["gwq3"]
    arrays = problem(type, 2, 8, seed=6)
    arrays["row_scale"] *= 50
    assert call(type, arrays, 0) == 0
    mine = error(type, arrays, arrays["code"][None])[0]
    every = np.repeat(arrays["code"][None], 8**4, 0)
    every[:, :, list(free)] = np.array(list(product(range(8), repeat=4)), np.uint8)[
        :, None, :, None
    ]
    assert (mine <= error(type, arrays, every).min(0) * (1 + 1e-5) + 1e-9).all()


def test_rows_whose_neighbours_do_not_count_take_any_window():
    type = TYPES["gwq3"]
    arrays = problem(type, 2, 8, seed=6)
    arrays["row_scale"] *= 50
    arrays["row_weight"][1::2] = 1e-20
    assert call(type, arrays, 0) == 0
    s = (arrays["row_scale"] * np.repeat(arrays["scale"], type.sub, 0)[:2])[:, ::2]
    best = np.abs(s[..., None] * arrays["table"] - arrays["target"][:, ::2, :, None]).min(-1)
    assert np.allclose(np.abs(arrays["value"] - arrays["target"])[:, ::2], best, atol=1e-6)


def test_four_bits_take_the_nearest():
    type = TYPES["gwq4"]
    arrays = problem(type, 20, 8)
    arrays["row_scale"] *= 50
    assert call(type, arrays, 0) == 0
    s = arrays["row_scale"] * np.repeat(arrays["scale"], type.sub, 0)[:20]
    distance = np.abs(s[..., None] * arrays["table"] - arrays["target"][..., None])
    assert np.allclose(np.abs(arrays["value"] - arrays["target"]), distance.min(-1), atol=1e-6)


@each_type
def test_feedback_hands_the_error_on(type):
    """As columns coded one by one, with the error added to later ones by hand, in float32."""
    for before in (False, True):
        arrays = everything(type, type.sub)
        if not before:
            arrays["before"] = None
        one = {k: a.copy() for k, a in arrays.items() if a is not None}
        t = arrays["target"].copy()
        assert call(type, arrays, 0) == 0
        for c in range(type.sub):
            column = {
                k: np.ascontiguousarray(one[k][c : c + 1]) for k in ("outlier", "code", "value")
            }
            column |= {k: one[k] for k in ("table", "row_scale", "row_weight", "scale")} | {
                "target": t[c : c + 1].copy()
            }
            assert call(type, column, 0) == 0
            assert np.array_equal(column["value"][0], arrays["value"][c])
            assert np.array_equal(column["code"][0], arrays["code"][c])
            e = column["value"][0] - (one["before"][c] if before else t[c])
            t[c + 1 :] += e * one["feedback"][c, c + 1 :, None, None]
        assert np.array_equal(t, arrays["target"])


@each_type
def test_fitted_scales_are_good(type):
    """Little worse than the best of all 64, found one after another; weights held out and columns
    of weight 0 do not count.
    """
    arrays = problem(type, type.sub, 8, seed=3, column_weight=np.ones(type.sub, np.float32))
    arrays["row_scale"][:] = np.abs(arrays["target"]).max(0) / (31 * 28)
    arrays["outlier"] = np.zeros(arrays["target"].shape, np.uint8)
    arrays["outlier"][5], arrays["column_weight"][7] = 1, 0
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
    for at in product((0,), range(RING), (0, 3)):  # no other scale of one row is much better
        base = {k: a.copy() for k, a in arrays.items()}
        assert call(type, base, 0) == 0 and np.array_equal(base["code"], arrays["code"])
        others = []
        for scale in range(-32, 32):
            base["scale"][at] = scale
            assert call(type, base, 0) == 0
            others.append(error(type, base, base["code"][None])[0][counted, at[2]].sum())
        assert error(type, arrays, arrays["code"][None])[0][counted, at[2]].sum() < 1.25 * min(
            others
        )


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
        {"rings": 0},
        {"rings": 12},
        {"rings": -8},
        {"rings": 1 << 40},
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
        for name in ("target", "row_scale", "row_weight", "column_weight", "feedback"):
            arrays = everything(type, 32)
            arrays[name].reshape(-1)[::7] = bad
            assert call(type, arrays, 1) == 0
            assert arrays["code"].max() < 1 << type.bits
            assert np.abs(arrays["scale"].astype(int)).max() <= 32
