"""The largest of many numbers, and rows of experts, by the CUDA library over native/cuda/shim.h."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gwq_export.native.library import lib, pointer
from tests.support.kernel_cases import activations, guarded, same_bits


@pytest.fixture
def cuda(select):
    return select("cuda")


def best_of(cuda, x, k):
    """(status, ids, values) of gwq_cuda_best, and the ids of gwq_top."""
    ids, values = np.full(k, -7, np.int32), np.full(k, np.nan, np.float32)
    status = cuda.gwq_cuda_best(pointer(x), x.size, k, pointer(ids, "int32_t *"), pointer(values))
    others = np.full(k, -7, np.int32)
    assert cuda.gwq_top(pointer(x), x.size, k, pointer(others, "int32_t *")) == status
    if status == cuda.GWQ_OK:
        assert_array_equal(ids, others)
    return status, ids, values


@pytest.mark.parametrize("n", [1, 2, 1000, 1024, 1025, 5000, 70001])
def test_the_largest_numbers_are_those_of_the_cpu(cuda, n):
    rng = np.random.default_rng(n)
    few = rng.integers(-3, 3, n).astype(np.float32)  # many equal ones
    few[rng.integers(0, n, n // 7)] = -0.0
    for x in (
        rng.standard_normal(n).astype(np.float32),
        few,
        np.arange(n, dtype=np.float32),
        -np.arange(n, dtype=np.float32),
        np.full(n, -np.finfo(np.float32).max, np.float32),
    ):
        x = guarded(x.reshape(1, -1)).ravel()
        for k in sorted({1, min(n, 40), min(n, 256), min(n, 257), min(n, 1100)}):
            status, ids, values = best_of(cuda, x, k)
            assert status == cuda.GWQ_OK
            want = np.empty(k, np.int32)
            assert lib().gwq_top(pointer(x), n, k, pointer(want, "int32_t *")) == 0
            assert_array_equal(ids, want)
            assert_array_equal(values, x[want])


def test_numbers_that_are_not_finite_have_no_largest(cuda):
    for wrong in (np.nan, np.inf, -np.inf):
        x = np.zeros(3000, np.float32)
        x[2500] = wrong
        assert best_of(cuda, x, 5)[0] == cuda.GWQ_E_FINITE
    assert best_of(cuda, np.zeros(3000, np.float32), 5)[0] == cuda.GWQ_OK
    x = np.zeros(4, np.float32)
    for k in (0, 5):
        assert best_of(cuda, x, k)[0] == cuda.GWQ_E_ARGUMENT


def test_rows_of_experts(cuda):
    """Gathered, and added up again in the order of the pairs."""
    rng = np.random.default_rng(0)
    n, used, dim = 7, 3, 70
    x, rows = activations(5, dim), rng.integers(0, 5, (n, used)).astype(np.int32)
    weights = rng.random((n, used), np.float32)
    work, out = np.empty(n * used, np.int32), np.empty((n, dim), np.float32)
    index, space = pointer(rows, "int32_t *"), pointer(work, "int32_t *")
    first = np.ascontiguousarray(rows[:, 0])
    of_first = pointer(first, "int32_t *")
    assert cuda.gwq_cuda_gather(pointer(x), 5, of_first, n, dim, space, pointer(out)) == 0
    same_bits(out, x[first])
    more = pointer(weights), n, used, dim, space, pointer(out)
    assert cuda.gwq_cuda_combine(pointer(x), 5, index, *more) == 0
    want = np.zeros((n, dim), np.float32)
    for j in range(used):
        want += weights[:, j, None] * x[rows[:, j]]
    same_bits(out, want)
    for wrong in (-1, 5):
        rows[3, 0] = first[3] = wrong
        assert cuda.gwq_cuda_combine(pointer(x), 5, index, *more) == cuda.GWQ_E_INDEX
        status = cuda.gwq_cuda_gather(pointer(x), 5, of_first, n, dim, space, pointer(out))
        assert status == cuda.GWQ_E_INDEX
