"""Ops that are the same on every instruction set, against numpy in double precision; bad arguments
are refused.
"""

import numpy as np
import pytest
from kernel_cases import activations, guarded
from numpy.testing import assert_allclose, assert_array_equal

from gwq_export.format.types import TYPES, ffi
from gwq_export.native.library import F32, NULL, Pool, lib, pointer
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.native.ops import Ops

SIZES = [(1, 1), (2, 7), (3, 64), (5, 65), (40, 576)]  # the last is worth several threads
POOL = Pool(2)


@pytest.mark.parametrize("n,dim", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_layernorm(n, dim, biased):
    x, weight, bias = (
        guarded(3 + activations(n, dim)),
        guarded(activations(1, dim, 1)[0]),
        guarded(activations(1, dim, 2)[0]),
    )
    wide = x.astype(float)
    center = wide - wide.mean(1, keepdims=True)
    want = center / np.sqrt((center**2).mean(1, keepdims=True) + 1e-5) * weight + (
        bias if biased else 0
    )
    out = guarded(np.empty_like(x))
    args = pointer(weight), pointer(bias) if biased else NULL, 1e-5, n, dim
    assert lib().gwq_layernorm(POOL.ptr, pointer(x), *args, pointer(out)) == 0
    assert_allclose(out, want, rtol=2e-5, atol=2e-6)
    assert lib().gwq_layernorm(POOL.ptr, pointer(x), *args, pointer(x)) == 0  # in place
    assert_array_equal(x, out)


@pytest.mark.parametrize("n,dim", SIZES)
def test_scale(n, dim):
    x = guarded(activations(n, dim))
    want = x * np.float32(0.7)
    assert lib().gwq_scale(pointer(x), n, dim, 0.7) == 0
    assert_array_equal(x, want)


def test_copy_of_columns():
    x, out = guarded(activations(4, 10)), guarded(np.empty((4, 3), np.float32))
    assert lib().gwq_copy(pointer(x[:, 5:]), 10, 4, 3, pointer(out)) == 0
    assert_array_equal(out, x[:, 5:8])


@pytest.mark.parametrize("biased", [False, True])
def test_one_matrix_for_several(biased):
    """Split computes what a Linear of its parts does, bits and all."""
    widths, cols, n = (5, 9, 2), 12, 3
    weight, bias, x = (
        activations(sum(widths), cols),
        activations(1, sum(widths), 1)[0],
        F32(activations(n, cols, 2)),
    )

    def matrix(rows):
        return Matrix(
            "m", TYPES["f32"], rows.shape, np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        )

    edges = np.cumsum(widths)[:-1]
    parts, biases = np.split(weight, edges), np.split(bias, edges)
    apart = Linear([matrix(p) for p in parts], [F32(b) for b in biases] if biased else None)
    ops, results = Ops(POOL), []
    for linear in (apart, Split(matrix(weight), widths, F32(bias) if biased else None)):
        ys = [F32((n, w)) for w in widths]
        linear(ops, x.ptr, n, *(y.ptr for y in ys))
        results.append([y.array for y in ys])
    for a, b in zip(*results, strict=True):
        assert_array_equal(a, b)


BAD = {  # op -> arguments after the pool, where it takes one; X and Y are arrays (2, 8)
    "layernorm": ["X 0 0 1e-5 2 8 Y", "0 X 0 1e-5 2 8 Y", "X X 0 1e-5 -1 8 Y", "X X 0 1e-5 2 0 Y"],
    "rmsnorm": ["X 0 1e-5 2 8 Y"],
    "activate": ["X 0 2 8 0", "X Y 2 8 7", "0 Y 2 8 1"],
    "softcap": ["X 2 8 0.0", "X 2 8 nan", "0 2 8 1.0"],
    "rope": [
        "X 0 Y 2 1 8 8 0",
        "X Y Y 2 1 8 10 0",
        "X Y Y 2 1 8 5 0",
        "X Y Y 2 1 8 0 0",
        "X Y Y 2 1 8 8 2",
    ],
    "scale": ["0 2 8 1.0", "X -2 8 1.0"],
    "add": ["X 0 2 8 1.0 0"],
    "copy": ["X 7 2 8 Y", "0 8 2 8 Y"],
}


@pytest.mark.parametrize("op, arguments", [(op, arguments) for op in BAD for arguments in BAD[op]])
def test_bad_arguments_are_refused(op, arguments):
    x, y = guarded(activations(2, 8)), guarded(activations(2, 8))
    before = x.copy()
    function = getattr(lib(), f"gwq_{op}")
    kinds = [kind.cname for kind in ffi.typeof(function).args]
    words = ["P", *arguments.split()] if kinds[0] == "gwq_pool *" else arguments.split()
    named = {"P": POOL.ptr, "X": pointer(x), "Y": pointer(y), "0": NULL}
    values = [
        named[w] if "*" in kind else float(w) if kind == "float" else int(w)
        for w, kind in zip(words, kinds, strict=True)
    ]
    assert function(*values) == lib().GWQ_E_ARGUMENT
    assert_array_equal(x, before)
