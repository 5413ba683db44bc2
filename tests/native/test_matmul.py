"""Matrices in every instruction set, against numpy: exact, or within what rounding can do.

GWQ_LIBRARY=/path/to/libgwq.so tests another build, GWQ_SIMDE_LIBRARY another SIMDe build.
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from gwq_export.bench.cases import MATRIX_TYPES, TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import ffi
from gwq_export.native.library import F32, Pool, pointer
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.native.ops import Ops
from tests.support.kernel_cases import (
    PATTERNS,
    SHAPES,
    SPARSE_TYPES,
    TOKENS,
    Case,
    activations,
    guarded,
    make,
    quantize,
    random,
    same_bits,
)
from tests.support.paths import ISAS

# Float32 sums of up to 1024 terms round to about 1e-7 of sum|w x| (9e-8 for 4096 terms in one
# chain, less with partial sums). A tile's dense sums are integers over 64 columns, exact in
# float32, so that fewer terms are left; the row's scale and the outliers' own sum add three
# roundings of 6e-8. 4e-7 leaves room for both, and no wrong term fits in.
BOUND = 4e-7


class Loaded:
    """A case in guarded memory, as a gwq_matrix."""

    def __init__(self, lib, case):
        self.data, self.rows, self.cols = guarded(case.data), *case.shape
        m = self.struct = ffi.new("gwq_matrix *")
        m.type, m.rows, m.cols = case.type.id, *case.shape
        m.data = pointer(self.data, "void *")
        m.data_bytes = self.data.nbytes
        if case.outliers is not None:
            self.table = guarded(case.outliers[0]), guarded(case.outliers[1])
            m.outliers = pointer(self.table[0], "uint8_t *")
            m.outlier_bytes = self.table[0].nbytes
            m.offsets = pointer(self.table[1], "uint8_t *")
            m.offset_bytes = self.table[1].nbytes
        assert lib.gwq_matrix_check(m) == 0

    def dequantize(self, lib, pool):
        out = guarded(np.full((self.rows, self.cols), np.nan, np.float32))
        assert lib.gwq_dequantize(pool, self.struct, 0, self.rows, pointer(out)) == 0
        return out


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
    return case, case.full, *expect(case, activations(max(TOKENS), cols))


def expect(case, x):
    """(y, sum|w x|) in float64, with the activations the kernels see."""
    dense = case.dense.astype(float)
    exact = case.sparse.astype(float)
    x = x.astype(float)
    if not case.type.bits:
        return x @ (dense + exact).T, np.abs(x) @ (np.abs(dense) + np.abs(exact)).T
    q, scale, _ = quantize(x.astype(np.float32))
    seen = (np.repeat(scale, fmt.BLOCK, 1).astype(float) * q)[:, : x.shape[1]]
    return seen @ dense.T + x @ exact.T, np.abs(seen) @ np.abs(dense).T + np.abs(x) @ np.abs(
        exact
    ).T


def width_fits(type_name, cols):
    return cols % fmt.TYPES[type_name].unit == 0 or fmt.TYPES[type_name].bits


def patterns(type_name):
    return PATTERNS if type_name in SPARSE_TYPES else PATTERNS[:1]


# --- matrices ---


@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_dequantize_is_exact(lib, pool, type_name):
    for rows, cols in SHAPES:
        if width_fits(type_name, cols):
            for pattern in patterns(type_name):
                case, full, *_ = cached(type_name, rows, cols, pattern)
                same_bits(Loaded(lib, case).dequantize(lib, pool(2)), full)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MATRIX_TYPES),
    st.integers(1, 70),
    st.integers(1, 600),
    st.sampled_from(PATTERNS),
    st.integers(0, 2**32 - 1),
)
def test_every_isa_dequantizes_to_the_same_bits(select, type_name, rows, cols, pattern, seed):
    if not width_fits(type_name, cols):
        cols = -(-cols // 32) * 32
    case = make(type_name, rows, cols, pattern if type_name in SPARSE_TYPES else PATTERNS[0], seed)
    for isa in ISAS:
        try:
            lib = select(isa)
        except pytest.skip.Exception:
            continue
        same_bits(Loaded(lib, case).dequantize(lib, ffi.NULL), case.full)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_matmul(lib, pool, type_name, shape):
    if not width_fits(type_name, shape[1]):
        pytest.skip("a ggml type of whole blocks")
    for i, pattern in enumerate(patterns(type_name)):
        case, _, y, size = cached(type_name, *shape, pattern)
        matrix = Loaded(lib, case)
        x = activations(max(TOKENS), shape[1])
        for n in TOKENS if i == 0 or pattern.__name__ == "random" else TOKENS[i % 2 :: 4]:
            (got,) = matmul(lib, pool(1 + i % 3), [matrix], x[:n])
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


def status(lib, **changes):
    """gwq_matrix_check of a good gwq3 matrix of 20 x 100 with `changes` to it."""
    loaded = Loaded(lib, make("gwq3", 20, 100, random))
    table = changes.pop("table", {})
    for at, entry in table.items():
        loaded.data[at] = entry & 255
    for name, value in changes.items():
        setattr(loaded.struct, name, getattr(loaded.struct, name) + value)
    return ffi.typeof("enum gwq_status").elements[lib.gwq_matrix_check(loaded.struct)]


def test_damaged_matrices_are_refused(lib):
    assert status(lib) == status(lib, table={0: -32, 15: 31}) == "GWQ_OK"
    for at in range(fmt.TABLE):
        assert (
            status(lib, table={at: 32})
            == status(lib, table={at: -33})
            == status(lib, table={at: -128})
            == "GWQ_E_TABLE"
        )
    assert status(lib, table={fmt.EXPONENT_AT: 64}) == "GWQ_OK"
    for exponent in (65, -65, -128):
        assert status(lib, table={fmt.EXPONENT_AT: exponent}) == "GWQ_E_EXPONENT"
    assert (
        status(lib, data_bytes=-1)
        == status(lib, data_bytes=1)
        == status(lib, rows=16)
        == status(lib, cols=64)
        == "GWQ_E_SIZE"
    )
    assert status(lib, rows=-20) == status(lib, cols=-100) == "GWQ_E_SHAPE"
    assert status(lib, outlier_bytes=-1) == status(lib, offset_bytes=4) == "GWQ_E_OFFSETS"


def test_sizes_are_those_of_python(lib):
    for type in (fmt.TYPES[name] for name in TILE_TYPES):
        for rows, cols in [*SHAPES, (151936, 896), (2**31 - 1, 64)]:
            assert lib.gwq_matrix_bytes(type.id, rows, cols) == type.nbytes(rows, cols)
    assert lib.gwq_matrix_bytes(fmt.TYPES["gwq4"].id, 2**31 - 1, 2**31 - 1) == fmt.TYPES[
        "gwq4"
    ].nbytes(2**31 - 1, 2**31 - 1)


def test_embedding_rows(lib):
    """Rows by number, in any order and repeatedly."""
    for type_name in MATRIX_TYPES:
        case = make(type_name, 50, 96, random)
        ids = np.array([49, 0, 17, 17, 31, 48], np.int32)
        group = guarded(np.empty((fmt.ROWS, 96), np.float32))
        out = guarded(np.empty((len(ids), 96), np.float32))
        m = Loaded(lib, case)
        assert (
            lib.gwq_embed(
                m.struct, pointer(ids, "int32_t *"), len(ids), pointer(group), pointer(out)
            )
            == 0
        )
        same_bits(out, case.full[ids])


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
