"""Attention and its cache, in every instruction set, against numpy in double precision."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gwq_export.format import types as fmt
from gwq_export.format.types import ffi
from gwq_export.native.library import pointer
from tests.support.kernel_cases import activations, guarded

FEW = ffi.typeof("enum gwq_program_limits").relements["GWQ_PROGRAM_TOKENS"]


def kv_cache(lib, x, type):
    """(a KV cache of the numbers x, guarded; what it holds, float)."""
    size, unit = fmt.TYPES[type].unit_bytes, fmt.TYPES[type].unit
    out = guarded(np.empty(x.size // unit * size, np.uint8))
    assert lib.gwq_cache(pointer(x), x.size, fmt.TYPES[type].id, pointer(out, "void *"), 0) == 0
    if type == "q8_0":
        blocks = out.reshape(-1, 34)
        return out, (
            blocks[:, :2].copy().view(np.float16).astype(float) * blocks[:, 2:].view(np.int8)
        ).reshape(x.shape)
    return out, out.view({"f16": np.float16, "f32": np.float32}[type]).reshape(x.shape).astype(
        float
    )


def by_tensor_cores(lib, n, dim, type):
    """Whether the CUDA library rounds queries and shares of the softmax to FP16."""
    fit = n > FEW and type != "f32" and dim % 8 == 0 and dim <= 128
    return fit and ffi.string(lib.gwq_isa()) == b"cuda"


def rounded(q):
    """Queries (..., dim) as FP16 numbers, after a power of two for each."""
    most = np.abs(q).max(-1, keepdims=True)
    power = 2.0 ** (np.floor(np.log2(np.maximum(most, 1e-30))) - 14)
    return (q / power).astype(np.float16) * power


@pytest.mark.parametrize(
    "type,dim",
    [
        *itertools.product(["f16", "f32"], [7, 8, 64]),
        *(("q8_0", 32), ("q8_0", 96), ("f16", 128), ("f16", 264)),
    ],
)
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("softcap", [0, 0.5])
@pytest.mark.parametrize(
    "n,start,window",
    [
        *((1, 0, 0), (1, 70, 0), (9, 0, 0), (33, 40, 0), (33, 40, 1), (20, 50, 33), (3, 5, 100)),
        *((1, 300, 0), (1, 4000, 0), (5, 700, 0), (4, 600, 260), (1, 999, 150), (2, 127, 0)),
    ],
)
def test_attention(lib, pool, n, start, window, softcap, heads, kv_heads, dim, type):
    q = guarded(activations(n * heads, dim).reshape(n, heads, dim))
    (kept_k, k), (kept_v, v) = (
        kv_cache(lib, activations((start + n) * kv_heads, dim, s).reshape(-1, kv_heads, dim), type)
        for s in (1, 2)
    )
    key = np.arange(start + n)
    query = start + np.arange(n)[:, None]
    seen = (key <= query) & ((key > query - window) | (window == 0))
    halves = by_tensor_cores(lib, n, dim, type)
    queries = q.astype(float)
    if halves:
        queries = rounded(queries)
        k, v = (x.astype(np.float16).astype(float) for x in (k, v))  # products of Q8_0's
    score = np.einsum("nhd,mhd->hnm", queries, np.repeat(k, heads // kv_heads, 1)) * 0.125
    score = softcap * np.tanh(score / softcap) if softcap else score
    p = np.exp(
        np.where(seen, score, -np.inf) - np.where(seen, score, -np.inf).max(2, keepdims=True)
    )
    p /= p.sum(2, keepdims=True)
    v = np.repeat(v, heads // kv_heads, 1)
    want = np.einsum("hnm,mhd->nhd", p, v)
    out = guarded(np.empty_like(q))
    close = {"rtol": 2e-5, "atol": 5e-6 if dim < 256 else 5e-5}  # a score has `dim` terms, rounded
    args = (
        pointer(q),
        pointer(kept_k, "void *"),
        pointer(kept_v, "void *"),
        fmt.TYPES[type].id,
        n,
        start,
        heads,
        kv_heads,
        dim,
        0.125,
        softcap,
        window,
        pointer(out),
    )
    assert lib.gwq_attention(pool(2), *args, ffi.NULL) == 0
    if halves:  # of the shares that are not subnormal each is at most 2^-11 of itself off
        most = np.einsum("hnm,mhd->nhd", p, np.abs(v))
        assert (np.abs(out - want) <= 2.0**-11 * most + close["atol"]).all()
    else:
        assert_allclose(out, want, **close)
    if size := lib.gwq_attention_bytes(n, heads, dim):
        scratch = guarded(np.empty(size, np.uint8))
        results = []
        for threads in (1, 2, 5):
            out[...] = np.nan
            assert lib.gwq_attention(pool(threads), *args, pointer(scratch, "void *")) == 0
            assert_allclose(out, want, **close)
            results.append(out.copy())
        assert all(np.array_equal(r, results[0]) for r in results)


@pytest.mark.parametrize("window", [0, 21])
@pytest.mark.parametrize("type,heads,kv_heads,dim", [("f16", 6, 2, 20), ("q8_0", 3, 3, 64)])
def test_company_changes_no_bit(lib, pool, type, heads, kv_heads, dim, window):
    """What a query of a prompt gets depends on none of the others, nor on the threads."""
    n, start = 70, 45
    q = guarded(activations(n * heads, dim).reshape(n, heads, dim))
    k, v = (
        kv_cache(lib, activations((start + n) * kv_heads, dim, s).reshape(-1, kv_heads, dim), type)
        for s in (1, 2)
    )
    caches = pointer(k[0], "void *"), pointer(v[0], "void *"), fmt.TYPES[type].id
    results = []
    for threads, cuts in ((1, [n]), (3, [7, 40, 50, n]), (2, [9, 16, n - 7, n])):
        out = guarded(np.full_like(q, np.nan))
        for first, last in itertools.pairwise([0, *cuts]):
            args = (last - first, start + first, heads, kv_heads, dim, 0.125, 0, window)
            part = pointer(out[first:last])
            assert (
                lib.gwq_attention(
                    pool(threads), pointer(q[first:last]), *caches, *args, part, ffi.NULL
                )
                == 0
            )
        results.append(out)
    assert all(np.array_equal(r, results[0]) for r in results)


def test_cached_halves_are_numpys(lib):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    between = [np.nextafter(every, np.float32(to)) for to in (-np.inf, np.inf)]
    ties = (every[:-1] + every[1:]) / 2
    beside = [np.nextafter(ties, np.float32(to)) for to in (-np.inf, np.inf)]
    x = np.concatenate([every, *between, ties, *beside, [1e5, -1e38, np.inf, -np.inf]])
    x = guarded(x.astype(np.float32))
    out = guarded(np.empty(x.shape, np.uint16))
    assert lib.gwq_cache(pointer(x), x.size - 3, 1, pointer(out, "void *"), 0) == 0
    assert lib.gwq_cache(pointer(x[-3:]), 3, 1, pointer(out, "void *"), x.size - 3) == 0
    np.testing.assert_array_equal(out, np.clip(x, -65504, 65504).astype(np.float16).view(np.uint16))


def test_cached_codes_are_nearest(lib):
    """Q8_0: the largest of 32 numbers gets 127, the others the nearest code; the same bytes
    whatever computes them.
    """
    x = (activations(1, 32 * 40) * np.repeat(10.0 ** np.arange(-4, 4), 160)).astype(np.float32)
    x[0, :32] = 0
    assert np.count_nonzero(np.abs(x.reshape(-1, 32)).max(1)) > 30
    out, held = kv_cache(lib, guarded(x), "q8_0")
    blocks = x.reshape(-1, 32).astype(float)
    codes = out.reshape(-1, 34)[:, 2:].view(np.int8)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    assert_array_equal(np.abs(codes).max(1), np.where(scale[:, 0] > 0, 127, 0))
    assert (np.abs(codes * scale - blocks) <= 0.5001 * scale).all()
    assert_array_equal(
        out.reshape(-1, 34)[:, :2].copy().view(np.float16),
        scale.astype(np.float32).astype(np.float16),
    )
    assert np.abs(held - x).max() < 0.0045 * np.abs(x).max()


def test_cached_codes_of_what_is_not_a_number(lib):
    x = np.ones((4, 32), np.float32)
    x[0, 3] = np.nan
    x[1, 3] = np.inf
    x[2, 3] = -1e38
    out, held = kv_cache(lib, guarded(x), "q8_0")
    assert np.isnan(held[0]).any()
    assert held[1, 3] == 127 * 65504 and held[2, 3] == -127 * 65504 and not held[1:3, 4:].any()
    assert_allclose(held[3], 1, rtol=1e-3)
    for count, first in ((31, 0), (32, 1)):
        assert (
            lib.gwq_cache(pointer(x), count, 8, pointer(out, "void *"), first) == lib.GWQ_E_ARGUMENT
        )
    q = guarded(activations(1, 40))
    cache = pointer(out, "void *")
    args = (cache, cache, 8, 1, 0, 1, 1, 40, 1, 0, 0, pointer(q), ffi.NULL)
    assert lib.gwq_attention(ffi.NULL, pointer(q), *args) == lib.GWQ_E_TYPE
