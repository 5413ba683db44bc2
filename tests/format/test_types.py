"""Tensor types: what they take, and ggml's own against the gguf package."""

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.ggml_types import decode_ggml, encode_ggml
from gwq_export.format.types import TYPES, tensor_type

TILES = [t for t in TYPES.values() if t.bits]


def test_sizes_are_those_of_the_header():
    assert {t.name: (t.bits, t.history, t.sub, t.unit_bytes) for t in TILES} == {
        "gwq2": (2, 2, 32, 280),
        "gwq3": (3, 1, 32, 408),
        "gwq4": (4, 0, 16, 560),
        "gwq5": (5, 0, 16, 688),
        "gwq6": (6, 0, 16, 816),
    }
    assert TYPES["gwq4"].id == int.from_bytes(b"GWQ4", "little")
    # table and zeros: a line
    assert TYPES["gwq4"].nbytes(4096, 4096) * 8 == 4.375 * 4096 * 4096 + 8 * (2 * 4096 + 64)
    # 32 + 2 * 32, up to 128; a short block of 32 columns: 16 bytes of scales, 3 lines
    assert TYPES["gwq3"].nbytes(17, 65) == 128 + 2 * (408 + 16 + 3 * 64)
    assert TYPES["gwq2"].nbytes(24 * 16 - 8, 1) == 32 + 768 + 32 + 24 * (16 + 64)


def test_sizes_of_short_blocks():
    """Lines of the columns that are there, in steps of 16 or 32; scales of their sub-blocks."""
    found = {
        t.name: [t.group_bytes(cols) for cols in (1, 16, 17, 33, 48, 49, 64, 96)] for t in TILES
    }
    assert found == {
        "gwq2": [80, 80, 144, 216, 216, 280, 280, 424],
        "gwq3": [208, 208, 208, 408, 408, 408, 408, 616],
        "gwq4": [144, 144, 288, 432, 432, 560, 560, 848],
        "gwq5": [352, 352, 352, 688, 688, 688, 688, 1040],
        "gwq6": [208, 208, 416, 624, 624, 816, 816, 1232],
    }


def test_sizes_of_other_types():
    assert TYPES["q8_0"].nbytes(3, 64) == 3 * 68


def test_stock_types_equal_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    w = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    w[0] = 0
    for name, kind in [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")]:
        data = encode_ggml(TYPES[name], w)
        expected = (
            gguf.quants.dequantize(data.reshape(7, -1), gguf.GGMLQuantizationType[kind])
            if name[0] != "f"
            else None
        )
        got = decode_ggml(TYPES[name], data, 7, 96)
        if expected is not None:
            assert np.array_equal(got, expected)
        assert np.abs(got - w).max() <= {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2}[name]


def test_sentences():
    with pytest.raises(GwqError, match="choose one of f32"):
        tensor_type("q9")
    with pytest.raises(GwqError, match="multiple of 32"):
        TYPES["q8_0"].nbytes(4, 40)
    with pytest.raises(GwqError, match="too large for FP16"):
        encode_ggml(TYPES["f16"], np.float32([[1e6]]))
