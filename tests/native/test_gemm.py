"""Products of float matrices (gwq_multiply)."""

import ctypes
import ctypes.util
import itertools

import numpy as np
import pytest
import torch

from gwq_export.compute.products import NARROW, multiply
from gwq_export.format.types import ffi
from gwq_export.native import library as native
from gwq_export.native.library import lib, pointer
from tests.support.kernel_cases import guarded

DEPTH = 192  # terms of a run
SIZES = [1, 5, 6, 12, 13, 31, 32, 33, 65, 385]  # around tiles of every instruction set
DEPTHS = [1, 191, 192, 193, 383, 384, 385, 577]  # around runs


def call(m, n, k, a, b, out, add=0):
    """gwq_multiply of arrays (m, k) and (k, n) of any strides; returns its status."""
    p = ffi.new("gwq_multiplication *")
    p.m, p.n, p.k = m, n, k
    for name, array in (("a", a), ("b", b)):
        setattr(p, name, pointer(array))
        row, column = (s // 4 for s in array.strides)
        setattr(p, f"{name}_row", row)
        setattr(p, f"{name}_column", column)
    p.out, p.out_row, p.add = pointer(out), out.strides[0] // 4, add
    return lib().gwq_multiply(p)


def runs(k):
    """The terms of a sum over k, run by run."""
    length = DEPTH if k > 2 * DEPTH else k // 2 if k > DEPTH else k
    return [range(a, min(a + length, k)) for a in range(0, k, length)]


def one_sum(a, b, start=None):
    """A sum of products as gwq.h has it, with the C library's fused multiply-add."""
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    total = start
    for run in runs(len(a)):
        part = 0.0
        for k in run:
            part = fmaf(a[k], b[k], part)
        total = np.float32(part) if total is None else np.float32(total) + np.float32(part)
    return total


def matrix(rng, rows, columns, across):
    """A random matrix whose rows, or with `across` whose columns, lie side by side."""
    if across:
        return rng.standard_normal((columns, rows)).astype(np.float32).T
    return rng.standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture(params=native.isas())
def isa(request):
    chosen = native.isa()
    assert lib().gwq_isa_select(request.param.encode()) == 0
    yield request.param
    lib().gwq_isa_select(chosen.encode())


def test_sums_are_taken_in_the_order_of_the_header(isa):
    rng = np.random.default_rng(0)
    for (m, n), k in itertools.product([(1, 1), (13, 33), (40, 70)], DEPTHS):
        a, b = matrix(rng, m, k, k % 2), matrix(rng, k, n, k % 3 == 0)
        for add in (0, 1):
            out = matrix(rng, m, n, False)
            start = out.copy()
            assert call(m, n, k, a, b, out, add) == 0
            for i, j in [(0, 0), (m - 1, n - 1), (m // 2, n // 2)]:
                assert out[i, j] == one_sum(a[i], b[:, j], start[i, j] if add else None)


def test_same_bits_everywhere(isa):
    """Whatever the instruction set, the place in the result, and how the factors lie."""
    rng = np.random.default_rng(1)
    chosen = lib()
    for m, n in itertools.product(SIZES, SIZES):
        k = DEPTHS[(m + n) % len(DEPTHS)]
        a, b = matrix(rng, m, k, False), matrix(rng, k, n, False)
        expected = np.empty((m, n), np.float32)
        chosen.gwq_isa_select(b"scalar")
        call(m, n, k, a, b, expected)
        chosen.gwq_isa_select(isa.encode())
        for left, right in itertools.product((a, np.asfortranarray(a)), (b, np.asfortranarray(b))):
            out = np.full((m, n), np.nan, np.float32)
            assert call(m, n, k, left, right, out) == 0
            assert np.array_equal(out, expected)


def test_memory_is_respected(isa):
    """No number beyond the result or between its rows, and no factor changed."""
    rng = np.random.default_rng(2)
    for m, n, k in [(1, 1, 1), (13, 31, 5), (12, 32, 192), (7, 65, 200), (386, 34, 9)]:
        a, b = guarded(matrix(rng, m, k, False)), guarded(matrix(rng, k, n, False))
        before = a.copy(), b.copy()
        wide = np.full((m, n + 3), 7, np.float32)
        out = guarded(wide)
        assert call(m, n, k, a, b, out[:, :n]) == 0
        assert (out[:, n:] == 7).all() and np.array_equal(a, before[0])
        assert np.array_equal(b, before[1])
        np.testing.assert_allclose(out[:, :n], a.astype(float) @ b, rtol=0, atol=1e-4)


def test_bad_arguments_are_refused():
    out = np.zeros((2, 2), np.float32)
    elements = ffi.typeof("enum gwq_status").elements
    for m, n, k in [(0, 2, 2), (2, 0, 2), (2, 2, 0), (2, 3, 2), (1 << 31, 2, 2)]:
        assert elements[call(m, n, k, out, out, out.copy())] == "GWQ_E_SHAPE"
    assert elements[lib().gwq_multiply(ffi.NULL)] == "GWQ_E_ARGUMENT"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, NARROW - 1, NARROW, 40])
def test_multiply_is_the_product(dtype, n):
    """In every case that is left to torch, too."""
    torch.manual_seed(0)
    a, b = torch.randn(50, 30, dtype=dtype).T, torch.randn(50, n, dtype=dtype)
    out = torch.ones(30, n, dtype=dtype)
    expected = a.double() @ b.double()
    for found in (multiply(a, b), multiply(a, b, out, add=True) - 1):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.double() - 1, expected, rtol=0, atol=1e-4)
