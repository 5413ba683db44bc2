"""The encoder around the native search: scales, error feedback, curvature."""

import numpy as np
import pytest

from gwq_export.format.decoding import dequantize
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import BLOCK, TYPES, ffi, padded_rows
from gwq_export.native.library import Pool
from gwq_export.quantization.curvature import Curvature, Curvatures
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.lanes import from_lanes, to_lanes
from gwq_export.quantization.recipe import TABLES
from tests.support.layer import layer, output_error

TILES = [t for t in TYPES.values() if t.bits]


each_type = pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)


def file_values(type, e, shape):
    return dequantize(
        type,
        pack_tiles(type, e.table, e.row_scales, e.scales, e.codes, e.exponent, shape[1]),
        shape,
    )


@each_type
@pytest.mark.parametrize("table", ["trellis", "grid"])
def test_each_step_lowers_the_output_error(type, table, monkeypatch):
    from gwq_export.quantization import encoder

    weight, h, rows = layer(96, 320)
    curvature = Curvature(h)
    entries = TABLES[table][type.name]

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
    assert all(a <= b * (1 + 1e-4) for a, b in zip(fitted, unfitted, strict=True))
    assert fitted[0] < unfitted[0]  # FP16 rounds row scales


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
        got = file_values(type, e, shape)
        rest = ~outlier if held else slice(None)
        assert e.values.shape == shape
        assert e.codes.shape == (padded_rows(shape[0]), -(-shape[1] // BLOCK) * BLOCK)
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
    assert lanes.shape == (192, 192)
    assert np.array_equal(lanes[5], np.r_[weight[:, 5], np.zeros(192 - 130, np.float32)])
    assert np.array_equal(from_lanes(lanes, 130)[:130], weight)
    assert not from_lanes(lanes, 130)[130:].any()


def test_curvature_factors_the_inverse():
    _, h, _ = layer(1, 100)
    c = Curvature(h)
    assert np.allclose(c.factor, np.triu(c.factor)) and c.matrix.shape == (128, 128)
    assert np.allclose(c.factor.T.astype(float) @ c.factor @ c.matrix, np.eye(128), atol=1e-3)
    shared = Curvatures()
    found = [{"hessian": h}, {"hessian": h}, {"hessian": h.copy()}, {"rows": h}]
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
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    found = []
    hessian = (few.T @ few / len(few)).astype(np.float32)
    for tokens in (None, len(few)):
        e = encode(
            weight, TYPES["gwq4"], TABLES["trellis"]["gwq4"], curvature=Curvature(hessian, tokens)
        )
        found.append((((e.values - weight) @ many.T) ** 2).mean())
    assert found[1] < 0.8 * found[0], found
