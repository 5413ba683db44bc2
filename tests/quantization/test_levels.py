"""ggml types of levels (Q4_0, IQ4_NL): their blocks, codes under the curvature, corrections."""

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.ggml_types import decode_ggml, encode_ggml, pack_codes
from gwq_export.format.types import LEVELS, TYPES
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.deltas import corrections
from gwq_export.quantization.encoder import encode
from tests.support.layer import layer, output_error

each_level_type = pytest.mark.parametrize(
    "type", [TYPES[name] for name in LEVELS], ids=list(LEVELS)
)


def test_a_block_by_hand():
    for name, at in (("q4_0", 0.5 * (15 - 8)), ("iq4_nl", 0.5 * 113)):
        codes = np.zeros((1, 32), np.uint8)
        codes[0, 3], codes[0, 16 + 3], codes[0, 31] = 15, 2, 8
        data = pack_codes(TYPES[name], np.float16([0.5]), codes)
        assert data[:2].tobytes() == b"\x00\x38"
        assert (data[2], data[2 + 3], data[2 + 15]) == (0, 0x2F, 0x80)
        assert decode_ggml(TYPES[name], data, 1, 32)[0, 3] == at


@each_level_type
def test_gguf_decodes_the_same(type):
    gguf = pytest.importorskip("gguf")
    weight = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    weight[0, :32] = 0
    data = encode_ggml(type, weight)
    kind = gguf.GGMLQuantizationType(type.id)
    assert np.array_equal(
        decode_ggml(type, data, 40, 96), gguf.quants.dequantize(data.reshape(40, -1), kind)
    )
    if type.name == "q4_0":
        assert np.array_equal(data.reshape(40, -1), gguf.quants.quantize(weight, kind))
    # half the widest step of the table, which the largest weight scales
    largest = np.abs(weight).reshape(-1, 32).max(1)
    error = np.abs(decode_ggml(type, data, 40, 96) - weight).reshape(-1, 32).max(1)
    assert (error <= largest * np.diff(type.levels).max() / -type.levels[0] * 1.01).all()


def test_what_cannot_be_held_is_refused():
    with pytest.raises(GwqError, match="multiple of 32, got 40"):
        encode_ggml(TYPES["q4_0"], np.ones((2, 40), np.float32))
    with pytest.raises(GwqError, match="too large for FP16"):
        encode_ggml(TYPES["q4_0"], np.full((1, 32), 1e6, np.float32))


@each_level_type
def test_each_step_lowers_the_output_error(type, monkeypatch):
    from gwq_export.quantization import encoder

    weight, h, rows = layer(96, 352)
    curvature = Curvature(h)

    def run(**options):
        found = encode(weight, type, type.levels, curvature=curvature, row_weight=rows, **options)
        held = decode_ggml(type, pack_codes(type, found.scales, found.codes), *weight.shape)
        assert np.array_equal(held, found.values)
        return output_error(weight, held, curvature.matrix[:352, :352], rows)

    plain = output_error(
        weight,
        decode_ggml(type, encode_ggml(type, weight), *weight.shape),
        curvature.matrix[:352, :352],
        rows,
    )
    fitted = run(feedback=False)
    with monkeypatch.context() as m:
        m.setattr(encoder.GgmlCodes, "refit", lambda self, h: None)
        fed, swept = run(sweeps=0), run(sweeps=1)
    assert fitted < 0.97 * plain
    assert fed < 0.8 * fitted
    assert swept < 0.95 * fed
    assert run(sweeps=1) < swept


@each_level_type
def test_scales_follow_the_columns_that_count(type):
    weight, _, _ = layer(16, 32)
    column_weight = np.where(np.arange(32) < 4, 100, 1).astype(np.float32)
    found, plain = (
        encode(weight, type, type.levels, curvature=c, feedback=False)
        for c in (Curvature(np.diag(column_weight)), None)
    )
    error = [((e.values - weight) ** 2)[:, :4].sum() for e in (found, plain)]
    assert error[0] < 0.8 * error[1]


def test_corrections_take_most_of_what_they_can():
    """Half of the deltas at random, or values that ignore each other, gain less."""
    type = TYPES["q4_0"]
    (weight, h, rows) = layer(64, 96)
    curvature = Curvature(h)
    coded = encode(weight, type, type.levels, curvature=curvature, row_weight=rows, sweeps=1).values
    row, col, value = corrections(weight, coded, curvature, rows, 300)
    assert len(row) == 300 and value.dtype == np.float16 and (np.diff(row * 96 + col) > 0).all()

    def error(row, col, value):
        changed = coded.copy()
        changed[row, col] += value
        return output_error(weight, changed, curvature.matrix[:96, :96], rows)

    found, before = error(row, col, value), error([], [], [])
    # the weights as they were, whatever their errors stood in for
    restored = error(row, col, (weight - coded)[row, col])
    rng = np.random.default_rng(0)
    elsewhere = np.divmod(np.sort(rng.permutation(weight.size)[:300]), 96)
    best_single = error(
        *elsewhere,
        -(curvature.matrix[:96, :96] @ (coded - weight).T / np.diag(curvature.matrix)[:96, None]).T[
            elsewhere
        ],
    )
    assert found < 0.8 * before and found < restored and found < best_single
