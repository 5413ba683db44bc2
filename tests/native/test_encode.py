"""The native search for codes (gwq_encode)."""

import numpy as np
import pytest

from gwq_export.format.types import TYPES, ffi
from gwq_export.native import library as native
from gwq_export.native.library import Pool, lib
from gwq_export.quantization.feedback import coding_order
from tests.support.encoding import call, decoded, each_type, error, everything, problem, whole
from tests.support.kernel_cases import guarded


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
def test_a_range_of_rows_is_encoded_as_among_all(type):
    """Nothing before or after it is touched."""
    alone = everything(type, whole(type, 64), 320)
    among = {name: array.copy() for name, array in alone.items()}
    untouched = {name: array.copy() for name, array in alone.items()}
    assert call(type, among, 1) == 0
    assert call(type, alone, 1, first=64, last=256) == 0
    for name in ("scale", "code", "value", "target"):
        assert np.array_equal(alone[name][:, 64:256], among[name][:, 64:256])
        for rows in (slice(0, 64), slice(256, None)):
            assert np.array_equal(alone[name][:, rows], untouched[name][:, rows])
    for first, last in [(-64, 64), (64, 64), (0, 384), (1, 64), (0, 63)]:
        status = call(type, alone, 1, first=first, last=last)
        assert ffi.typeof("enum gwq_status").elements[status] == "GWQ_E_SHAPE"


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
