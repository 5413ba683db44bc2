"""The golden files of format version 2, by everything that can read them: equal to the bit."""

import ast
import struct
from pathlib import Path

import numpy as np
import pytest

import gwq_export
from gwq_export.format.types import FORMAT_VERSION, TYPES
from gwq_export.native import library as native
from gwq_export.native.library import Pool
from gwq_export.native.matrix import Matrix
from tests.support import golden_decoder
from tests.support.paths import DATA

GOLDEN = DATA / "golden"
NAMES = ["gwq6", "gwq5", "gwq4", "gwq3", "gwq2"]


def expected(name):
    """{tensor: uint32 (rows, cols)}, the bits of the float32 weights."""
    bits = np.fromfile(GOLDEN / f"{name}.f32", "<u4")
    shapes = {"w.weight": (21, 330), "v.weight": (8, 112)}
    first = 21 * 330
    assert len(bits) == first + 8 * 112
    return {
        "w.weight": bits[:first].reshape(shapes["w.weight"]),
        "v.weight": bits[first:].reshape(shapes["v.weight"]),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_written_from_the_document(name):
    for tensor, want in expected(name).items():
        rows, cols, values = golden_decoder.decode(GOLDEN / f"{name}.gguf", tensor)
        assert (rows, cols) == want.shape
        assert struct.pack(f"<{rows * cols}f", *values) == want.tobytes()


def test_that_reader_is_independent_and_short():
    text = Path(golden_decoder.__file__).read_text()
    nodes = list(ast.walk(ast.parse(text)))
    modules = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert modules <= {"itertools", "struct", "sys", "math"}
    assert sum(bool(line.strip()) for line in text.splitlines()) < 130


@pytest.mark.parametrize("type", NAMES)
def test_experts(type):
    """A tensor of three matrices, by every reader: each matrix is one like any other."""
    shape = 3, 19, 70
    order = [t.name for t in TYPES.values() if t.bits]
    weights = np.fromfile(GOLDEN / "experts.f32", "<u4").reshape(len(order), *shape)
    want = weights[order.index(type)]
    tensor = gwq_export.open_gguf(GOLDEN / "experts.gguf").tensors[f"{type}.weight"]
    tensor.check()
    assert tensor.outlier_count == 120 and np.array_equal(tensor.dequantize().view(np.uint32), want)
    for j, t in enumerate(tensor.matrices()):
        rows, cols, values = golden_decoder.decode(GOLDEN / "experts.gguf", f"{type}.weight", j)
        assert struct.pack(f"<{rows * cols}f", *values) == want[j].tobytes()
        assert np.array_equal(
            Matrix(t.name, t.type, t.shape, t.data, t.outliers).dequantize(Pool(1)).view(np.uint32),
            want[j],
        )


@pytest.mark.parametrize("name", NAMES)
def test_this_reader(name):
    reader = gwq_export.open_gguf(GOLDEN / f"{name}.gguf")
    reader.check()
    assert reader.metadata["gwq.format_version"] == FORMAT_VERSION == 2
    for tensor, want in expected(name).items():
        assert np.array_equal(reader.tensors[tensor].dequantize().view(np.uint32), want)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", native.isas())
def test_every_instruction_set(name, isa):
    lib = native.lib()
    before = native.isa()
    try:
        assert lib.gwq_isa_select(isa.encode()) == 0
        for tensor, want in expected(name).items():
            t = gwq_export.open_gguf(GOLDEN / f"{name}.gguf").tensors[tensor]
            assert np.array_equal(
                Matrix(t.name, t.type, t.shape, t.data, t.outliers)
                .dequantize(Pool(2))
                .view(np.uint32),
                want,
            )
    finally:
        lib.gwq_isa_select(before.encode())
