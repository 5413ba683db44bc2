"""Products in every instruction set, against numpy: exact, or within what rounding can do.

GWQ_LIBRARY=/path/to/libgwq.so tests another build, GWQ_SIMDE_LIBRARY another SIMDe build.
"""

import functools

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gwq_export.bench.cases import MATRIX_TYPES, TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import ffi
from gwq_export.native.library import F32, Pool, pointer
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS as GWQ_FEW
from tests.support.kernel_cases import (
    SHAPES,
    SPARSE_TYPES,
    TOKENS,
    Case,
    Loaded,
    activations,
    guarded,
    is_cuda,
    make,
    many,
    none,
    patterns,
    quantize,
    random,
    same_bits,
    seen_by_outliers,
    width_fits,
)

# Float32 sums of up to 1024 terms round to about 1e-7 of sum|w x| (9e-8 for 4096 terms in one
# chain, less with partial sums). A tile's dense sums are integers over 64 columns, exact in
# float32, so that fewer terms are left; the row's scale and the outliers' own sum add three
# roundings of 6e-8. 4e-7 leaves room for both, and no wrong term fits in.
BOUND = 4e-7


def has_cpu_scratch(lib):
    """Skip where scratch is laid out otherwise (tests/native/test_cuda.py looks at that)."""
    if is_cuda(lib):
        pytest.skip("the scratch of the CPU's library")


def scratch_of(lib, n, cols):
    """64-aligned work space of exactly the size asked for."""
    size = lib.gwq_scratch_bytes(n, cols)
    buffer = np.zeros(size + 64, np.uint8)
    return buffer[-buffer.ctypes.data % 64 :][:size]


def matmul(lib, pool, matrices, x, scratch=None):
    """[y (n, rows)] of matrices that share x, everything at the end of its mapping."""
    n, cols = x.shape
    x = guarded(x)
    ys = [guarded(np.full((n, m.rows), np.nan, np.float32)) for m in matrices]
    scratch = scratch_of(lib, n, cols) if scratch is None else scratch
    m = ffi.new("gwq_matrix *[]", [m.struct for m in matrices])
    y = ffi.new("float *[]", [pointer(y) for y in ys])
    assert (
        lib.gwq_matmul(
            pool, m, len(matrices), pointer(x), n, y, pointer(scratch, "void *"), len(scratch)
        )
        == 0
    )
    return ys


@functools.cache
def cached(type_name, rows, cols, pattern):
    """A case and its reference result, shared by the instruction sets."""
    case = make(type_name, rows, cols, pattern)
    x = activations(max(TOKENS), cols)
    return case, [expect(case, x, codes16) for codes16 in (False, True)]


CODES16 = ("avx512", "avx512vbmi")  # instruction sets that multiply outliers by codes of 16 bits


def expect(case, x, codes16=False):
    """(y, sum|w x|) in float64, with the activations the kernels see."""
    dense = case.dense.astype(float)
    exact = case.sparse.astype(float)
    x = x.astype(float)
    if not case.type.bits:
        return x @ (dense + exact).T, np.abs(x) @ (np.abs(dense) + np.abs(exact)).T
    q, scale, _ = quantize(x.astype(np.float32))
    seen = (np.repeat(scale, fmt.BLOCK, 1).astype(float) * q)[:, : x.shape[1]]
    if codes16:
        x = seen_by_outliers(x.astype(np.float32))
    return seen @ dense.T + x @ exact.T, np.abs(seen) @ np.abs(dense).T + np.abs(x) @ np.abs(
        exact
    ).T


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_matmul(lib, pool, type_name, shape):
    if not width_fits(type_name, shape[1]):
        pytest.skip("a ggml type of whole blocks")
    for i, pattern in enumerate(patterns(type_name)):
        case, expected = cached(type_name, *shape, pattern)
        matrix = Loaded(lib, case)
        x = activations(max(TOKENS), shape[1])
        isa = ffi.string(lib.gwq_isa()).decode()
        # CUDA multiplies more of them by FP16 numbers (tests/native/test_cuda_gemm.py)
        some = TOKENS[:5] if is_cuda(lib) else TOKENS
        for n in some if i == 0 or pattern.__name__ == "random" else some[i % 2 :: 4]:
            (got,) = matmul(lib, pool(1 + i % 3), [matrix], x[:n])
            y, size = expected[isa in CODES16]
            assert (np.abs(got - y[:n]) <= BOUND * size[:n]).all(), (pattern.__name__, n)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_threads_do_not_change_a_bit(lib, pool, n):
    """Matrices of several types and sizes in one call, so that a thread's share ends in any of
    them.
    """
    cases = [
        make(t, rows, 576, random)
        for t, rows in (
            ("gwq4", 200),
            ("gwq2", 33),
            ("gwq3", 120),
            ("f16", 77),
            ("q8_0", 50),
            ("q4_0", 90),
        )
    ]
    matrices = [Loaded(lib, c) for c in cases]
    x = activations(n, 576)
    first = matmul(lib, pool(1), matrices, x)
    for threads in range(2, 9):
        for a, b in zip(first, matmul(lib, pool(threads), matrices, x), strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("pattern", [none, random, many], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(33, 129), (100, 576), (48, 1024), (17, 897)])
@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_a_few_tokens_give_what_each_gives(lib, pool, type_name, shape, pattern):
    """To the bit, as decoding several at once must not change a text."""
    if not width_fits(type_name, shape[1]):
        pytest.skip("a ggml type of whole blocks")
    if pattern is not none and type_name not in SPARSE_TYPES:
        pytest.skip("a type without outliers")
    matrix = Loaded(lib, cached(type_name, *shape, pattern)[0])
    x = activations(GWQ_FEW, shape[1])
    ones = [matmul(lib, pool(1), [matrix], x[i : i + 1])[0][0] for i in range(GWQ_FEW)]
    for n in range(2, GWQ_FEW + 1):
        (y,) = matmul(lib, pool(2), [matrix], x[:n])
        for i in range(n):
            same_bits(y[i], ones[i])


@pytest.mark.parametrize("n", [1, 2, 5, 16])
@pytest.mark.parametrize("type_name", TILE_TYPES)
def test_extremes_do_not_overflow(lib, pool, type_name, n):
    """Largest entries, scales and activations, their signs equal or not: the worst cases of 16-bit
    and of 32-bit sums.
    """
    type = fmt.TYPES[type_name]
    rng = np.random.default_rng(0)
    code = np.arange(16) & ((1 << type.bits) - 1)  # of a window
    table = np.where(code, fmt.ENTRY_MAX, fmt.ENTRY_MIN).astype(np.int8)
    top = 15 if type.bits == 5 else (1 << type.bits) - 1  # codes from 16 on mirror the table
    # columns of the largest entry, else the smallest
    for some in (np.zeros(256, bool), np.ones(256, bool), rng.random(256) < 0.5):
        codes = np.broadcast_to(np.where(some, top, 0).astype(np.uint8), (16, 256))
        for scale in (-32, 31):
            scales = np.full((16, 256 // type.sub), scale, np.int8)
            case = Case(
                type, (16, 256), pack_tiles(type, table, np.ones(16, np.float16), scales, codes)
            )
            for sign in (
                np.where(some, 1, -1),
                np.where(some, -1, 1),
                np.tile([1, 1, -1, -1], 64),
                np.tile([1, -1], 128),
            ):
                (y,) = matmul(
                    lib,
                    pool(1),
                    [Loaded(lib, case)],
                    np.tile(np.float32(127) * sign, (n, 1)).astype(np.float32),
                )
                want = 127 * scale * np.where(some, fmt.ENTRY_MAX, fmt.ENTRY_MIN) @ sign
                assert (np.abs(y - want) <= BOUND * 256 * 127 * 1024).all()


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("type_name", TILE_TYPES)
def test_a_massive_channel_leaves_the_others_their_digits(lib, pool, type_name, n):
    """One number of thousands among ones: its block's int8 codes would all be 0 but its own."""
    case = make(type_name, 600, 333, random)
    matrix = Loaded(lib, case)
    quiet = activations(n, 333)
    quiet[[0, -1], 100] = quiet[[0, -1], 332] = 0  # the last block is a narrow one
    loud = quiet.copy()
    loud[0, 100], loud[-1, 332] = 5000, -70000
    (y,), (calm,) = matmul(lib, pool(1), [matrix], loud), matmul(lib, pool(1), [matrix], quiet)
    dense = case.dense.astype(float)
    exact = case.sparse.astype(float)
    others = y - (loud - quiet).astype(float) @ (dense + exact).T
    want = quiet.astype(float) @ (dense + exact).T
    error, usual = (
        np.sqrt(np.mean((got - want) ** 2, 1) / np.mean(want**2, 1)) for got in (others, calm)
    )
    assert (usual < 0.02).all() and (error < 0.03).all()
    same_bits(y[1:-1], calm[1:-1])
    for threads in (2, 5):
        same_bits(matmul(lib, pool(threads), [matrix], loud)[0], y)


def test_a_massive_channel_takes_no_second_look_where_codes_hold_all(lib, pool):
    """A lone number, infinity and NaN: what the codes say is all there is to say."""
    has_cpu_scratch(lib)
    case = make("gwq4", 40, 128, random)
    x = np.zeros((5, 128), np.float32)
    x[0, 7] = 12345.678
    x[1, 70] = np.inf
    x[2, 70] = np.nan
    x[3, :64] = 1
    x[4, :2] = (1000, 1)
    scratch = scratch_of(lib, *x.shape)
    matmul(lib, pool(1), [Loaded(lib, case)], x, scratch)
    # which tokens have second codes, before 64 bytes of slack
    assert scratch[-128:-64][:5].tolist() == [0, 0, 0, 0, 1]


def quantize_inputs():
    rng = np.random.default_rng(5)
    x = [activations(4, cols) for cols in (1, 63, 64, 65, 200)]
    # halves: round to nearest even
    x.append(rng.integers(-254, 255, (3, 128)).astype(np.float32) / 2)
    wild = rng.standard_normal((6, 130)).astype(np.float32)
    wild[0] = 0
    wild[1, 5] = np.nan
    wild[2, 70] = np.inf
    wild[3] *= np.float32(1e-39)  # subnormal; 1/scale overflows
    wild[4] = np.clip(wild[4], -1, 1) * np.float32(3e38)
    wild[5, 3] = 1e30
    return [*x, wild]


def test_quantize_is_exact(lib, pool):
    """The activations left in the scratch buffer: q, scale, bias, each on a 64-byte boundary."""
    has_cpu_scratch(lib)
    for x in quantize_inputs():
        n, cols = x.shape
        scratch = scratch_of(lib, n, cols)
        matmul(lib, pool(1), [Loaded(lib, make("gwq4", 1, cols))], x, scratch)
        q, scale, bias = quantize(x)
        at = q.size
        assert_array_equal(scratch[:at].view(np.int8).reshape(q.shape), q)
        same_bits(scratch[at:][: scale.nbytes].view(np.float32).reshape(scale.shape), scale)
        at += -(-scale.nbytes // 64) * 64
        assert_array_equal(scratch[at:][: bias.nbytes].view(np.int16).reshape(bias.shape), bias)


@pytest.mark.parametrize("biased", [False, True])
def test_one_matrix_for_several(biased):
    """Split computes what a Linear of its parts does, bits and all."""
    widths = (5, 9, 2)
    cols = 12
    n = 3
    weight = activations(sum(widths), cols)
    bias = activations(1, sum(widths), 1)[0]
    x = F32(activations(n, cols, 2))

    def matrix(rows):
        return Matrix(
            "m", fmt.TYPES["f32"], rows.shape, np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        )

    edges = np.cumsum(widths)[:-1]
    parts, biases = np.split(weight, edges), np.split(bias, edges)
    apart = Linear([matrix(p) for p in parts], [F32(b) for b in biases] if biased else None)
    ops = Ops(Pool(2))
    results = []
    for linear in (apart, Split(matrix(weight), widths, F32(bias) if biased else None)):
        ys = [F32((n, w)) for w in widths]
        linear(ops, x.ptr, n, *(y.ptr for y in ys))
        results.append([y.array for y in ys])
    for a, b in zip(*results, strict=True):
        assert_array_equal(a, b)
