"""Attention by the CUDA library over native/cuda/shim.h, with heads of all lengths."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gwq_export.format.types import ffi
from gwq_export.native.library import lib, pointer
from tests.support.kernel_cases import activations, guarded


@pytest.fixture
def cuda(select):
    return select("cuda")


@pytest.mark.parametrize("type", [0, 1, 8])
@pytest.mark.parametrize("dim", [128, 160, 256, 288, 512])
def test_heads_of_any_length(cuda, dim, type):
    """Kernels differ by what a thread adds up of a head; the CPU's have one length."""
    n, start, heads, kv_heads = 2, 140, 4, 2
    q = guarded(activations(n * heads, dim))
    results = []
    for library in (lib(), cuda):
        caches = [np.zeros((start + n) * kv_heads * dim * 4, np.uint8) for _ in range(2)]
        for seed, cache in enumerate(caches):
            x = activations((start + n) * kv_heads, dim, seed + 1)
            status = library.gwq_cache(pointer(x), x.size, type, pointer(cache, "void *"), 0)
            assert status == 0
        keys, values = (pointer(cache, "void *") for cache in caches)
        shape = n, start, heads, kv_heads, dim
        out = np.full((n * heads, dim), np.nan, np.float32)
        scratch = np.zeros(library.gwq_attention_bytes(n, heads, dim), np.uint8)
        for memory in (ffi.NULL, pointer(scratch, "void *")):
            status = library.gwq_attention(
                ffi.NULL, pointer(q), keys, values, type, *shape, 0.05, 0, 0, pointer(out), memory
            )
            assert status == 0
            results.append(out.copy())
    for other in results[1:]:
        assert_allclose(other, results[0], rtol=2e-5, atol=2e-6)
    status = cuda.gwq_attention(
        ffi.NULL, pointer(q), keys, values, 0, 1, 0, 1, 1, 513, 1, 0, 0, pointer(out), ffi.NULL
    )
    assert status == cuda.GWQ_E_ARGUMENT
