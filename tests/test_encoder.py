"""The native search for codes, and the encoder around it."""

from itertools import product

import numpy as np
import pytest
from kernel_cases import guarded

from gwq_export.format.tiles import dequantize, pack_tiles, windows
from gwq_export.format.types import BLOCK, RING, TYPES, ffi, padded_rows
from gwq_export.native import library as native
from gwq_export.native.library import Pool, lib, pointer
from gwq_export.quantization.curvature import Curvature, Curvatures
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.lanes import from_lanes, to_lanes
from gwq_export.quantization.recipe import TABLES

TILES = [t for t in TYPES.values() if t.bits]
each_type = pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)
KINDS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


def problem(type, columns=BLOCK, rings=16, seed=0, **more):
    """Arguments of gwq_encode by name: random weights in lanes (columns, 8, rings), their scales,
    and room for the results.
    """
    rng, shape = np.random.default_rng(seed), (columns, RING, rings)
    table = np.array(TABLES["trellis"][type.name], np.float32)
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


# --- gwq_encode -------------------------------------------------------------------------------------------------------


@each_type
@pytest.mark.parametrize("fit", [0, 1])
def test_same_bits_everywhere(type, fit):
    """On every instruction set, with any number of threads."""
    chosen, found = native.isa(), []
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
            arrays["value"][:], arrays["code"][:] = np.nan, 255
            before = {k: a.copy() for k, a in arrays.items()}
            arrays = {k: guarded(a) for k, a in arrays.items()}
            assert call(type, arrays, fit) == 0
            results = {
                "value",
                "code",
                *(["scale"] * fit),
                *(["target"] if "feedback" in arrays else []),
            }
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
    mine, every = (
        error(type, arrays, arrays["code"][None])[0],
        np.repeat(arrays["code"][None], 8**4, 0),
    )
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
    """As the same columns coded one by one, the error added to the later ones by hand, in float32."""
    for before in (False, True):
        arrays = everything(type, type.sub)
        if not before:
            arrays["before"] = None
        one, t = {k: a.copy() for k, a in arrays.items() if a is not None}, arrays["target"].copy()
        assert call(type, arrays, 0) == 0
        for c in range(type.sub):
            column = {
                k: np.ascontiguousarray(one[k][c : c + 1]) for k in ("outlier", "code", "value")
            }
            column |= {k: one[k] for k in ("table", "row_scale", "row_weight", "scale")} | {
                "target": t[c : c + 1].copy()
            }
            assert call(type, column, 0) == 0
            assert np.array_equal(column["value"][0], arrays["value"][c]) and np.array_equal(
                column["code"][0], arrays["code"][c]
            )
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

    least, uniform = loss(arrays), []
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
    for id in (0, 8, -1, TYPES["gwq4"].id + 1):
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
            assert (
                arrays["code"].max() < 1 << type.bits
                and np.abs(arrays["scale"].astype(int)).max() <= 32
            )


# --- encode -----------------------------------------------------------------------------------------------------------


def layer(rows, cols, seed=0):
    """Weights, the Hessian of correlated inputs and row weights."""
    rng = np.random.default_rng([seed, rows, cols])
    x = rng.normal(size=(4 * cols, 8)) @ rng.normal(size=(8, cols)) + rng.normal(
        size=(4 * cols, cols)
    ) * rng.uniform(0.2, 2, cols)
    h = (x.T @ x / len(x)).astype(np.float32)
    return (
        rng.normal(size=(rows, cols)).astype(np.float32),
        h,
        rng.uniform(0.1, 2, rows).astype(np.float32),
    )


def output_error(weight, values, h, row_weight):
    e = (values - weight).astype(np.float64)
    return (((e @ h) * e).sum(1) * (row_weight / row_weight.mean() + 0.1)).sum()


def file_values(type, e, shape):
    return dequantize(type, pack_tiles(type, e.table, e.row_scales, e.scales, e.codes), shape)


@each_type
@pytest.mark.parametrize("table", ["trellis", "grid"])
def test_each_step_lowers_the_output_error(type, table, monkeypatch):
    from gwq_export.quantization import encoder

    weight, h, rows = layer(96, 320)
    curvature, entries = Curvature(h), TABLES[table][type.name]

    def run(**options):
        return output_error(
            weight,
            encode(weight, type, entries, row_weight=rows, **options).values,
            curvature.matrix[:320, :320],
            rows,
        )

    plain = run(curvature=curvature, feedback=False)
    with monkeypatch.context() as m:
        m.setattr(encoder.TileCodes, "refit", lambda self, h: None)
        unfitted = [run(curvature=curvature, sweeps=sweeps) for sweeps in (0, 1, 2)]
    fitted = [run(curvature=curvature, sweeps=sweeps) for sweeps in (0, 1, 2)]
    assert unfitted[0] < 0.8 * plain  # error feedback
    assert unfitted[1] < 0.99 * unfitted[0] and unfitted[2] <= unfitted[1]  # coordinate descent
    assert (
        all(a <= b * (1 + 1e-4) for a, b in zip(fitted, unfitted, strict=True))
        and fitted[0] < unfitted[0]
    )  # FP16 rounds row scales


@each_type
@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (17, 65), (40, 100), (63, 257), (130, 192)])
@pytest.mark.parametrize("held", [False, True])
def test_the_bytes_hold_the_values(type, shape, held):
    weight, h, rows = layer(*shape)
    outlier = np.random.default_rng(3).random(shape) < 0.03 if held else None
    for options in (
        {},
        {"curvature": Curvature(h), "row_weight": rows, "sweeps": 1},
        {"curvature": Curvature(h), "feedback": False},
    ):
        e = encode(weight, type, TABLES["trellis"][type.name], outlier=outlier, **options)
        got, rest = file_values(type, e, shape), ~outlier if held else slice(None)
        assert e.values.shape == shape and e.codes.shape == (
            padded_rows(shape[0]),
            -(-shape[1] // BLOCK) * BLOCK,
        )
        assert np.allclose(got[rest], e.values[rest], rtol=1e-6, atol=1e-12)
        if held and not options:
            assert np.array_equal(e.values[outlier], weight[outlier])


@each_type
def test_calibration_that_says_nothing(type):
    """Rows without gradient and inputs that are always zero: their weights are coded as well as
    any.
    """
    weight, h, rows = layer(48, 200)
    table = TABLES["trellis"][type.name]
    h[:, 64:130] = h[64:130] = 0
    rows[:20] = 0
    e = encode(weight, type, table, curvature=Curvature(h), row_weight=rows, sweeps=1)
    plain = ((encode(weight, type, table).values - weight) ** 2).mean()
    square = (file_values(type, e, weight.shape) - weight) ** 2
    assert np.isfinite(square).all()
    assert square[:, 64:130].mean() < 1.5 * plain and square[:20, 64:130].mean() < 2 * plain
    assert square[:20].mean() < 3 * square[20:].mean()
    for nothing in (
        encode(weight, type, table, curvature=Curvature(h * 0), row_weight=rows * 0, sweeps=1),
        encode(
            weight, type, table, curvature=Curvature(h * 1e-30), row_weight=rows * 1e-30, sweeps=1
        ),
    ):
        assert ((file_values(type, nothing, weight.shape) - weight) ** 2).mean() < 2.5 * plain


def test_pool_and_lanes():
    weight, h, rows = layer(130, 192)
    type, table = TYPES["gwq3"], TABLES["trellis"]["gwq3"]
    a, b = (
        encode(weight, type, table, curvature=Curvature(h), row_weight=rows, pool=p)
        for p in (ffi.NULL, Pool(2).ptr)
    )
    assert np.array_equal(a.codes, b.codes) and np.array_equal(a.values, b.values)
    lanes = to_lanes(weight)
    assert lanes.shape == (192, RING, 24) and np.array_equal(
        lanes[5, 3], np.r_[weight[3::8, 5], np.zeros(24 - 16, np.float32)]
    )
    assert (
        np.array_equal(from_lanes(lanes, 130)[:130], weight)
        and not from_lanes(lanes, 130)[130:].any()
    )


def test_curvature_factors_the_inverse():
    _, h, _ = layer(1, 100)
    c = Curvature(h)
    assert np.allclose(c.factor, np.triu(c.factor)) and c.matrix.shape == (128, 128)
    assert np.allclose(c.factor.T.astype(float) @ c.factor @ c.matrix, np.eye(128), atol=1e-3)
    shared, found = (
        Curvatures(),
        [{"hessian": h}, {"hessian": h}, {"hessian": h.copy()}, {"rows": h}],
    )
    a, b, other, none = (shared.put(f) for f in found)
    assert a["hessian"] is b["hessian"] is not other["hessian"] and none is found[3]
    told = Curvatures(1000)
    for tokens, stands in ((50, 50), (None, 1000)):
        assert np.array_equal(
            told.put({"hessian": h.copy()}, tokens)["hessian"].matrix, Curvature(h, stands).matrix
        )


def test_few_tokens_are_not_taken_at_their_word():
    """A Hessian of fewer tokens than columns: the error on other inputs is lower when it is told
    how few they were.
    """
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(128, 128)) * np.exp(rng.normal(size=128) / 2)
    few, many = rng.normal(size=(64, 128)) @ mix, rng.normal(size=(8000, 128)) @ mix
    weight, found = rng.normal(size=(64, 128)).astype(np.float32), []
    hessian = (few.T @ few / len(few)).astype(np.float32)
    for tokens in (None, len(few)):
        e = encode(
            weight, TYPES["gwq4"], TABLES["trellis"]["gwq4"], curvature=Curvature(hessian, tokens)
        )
        found.append((((e.values - weight) @ many.T) ** 2).mean())
    assert found[1] < 0.8 * found[0], found
