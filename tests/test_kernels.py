"""Every instruction set against numpy: exact where arithmetic is exact, bounded by arithmetic where it is not.

GWQ_LIBRARY=/path/to/libgwq.so tests another build, GWQ_SIMDE_LIBRARY another SIMDe build.
"""

import functools
import itertools
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PATTERNS, SHAPES, SPARSE_TYPES, TOKENS, Case, activations, guarded, make, quantize, random
from numpy.testing import assert_allclose, assert_array_equal

from gwq_export import format as fmt
from gwq_export.bench.cases import MATRIX_TYPES, TILE_TYPES
from gwq_export.format import ffi
from gwq_export.native import isas, pointer
from gwq_export.tiles import pack_tiles

NATIVE = Path(__file__).parents[1] / "native"
LIBRARY = os.environ.get("GWQ_LIBRARY", Path(__file__).parents[1] / "gwq_export" / "libgwq.so")
ISAS = ["scalar", "avx2", "avx512", "avx512-simde"]
# Float32 sums of up to 1024 terms round to about 1e-7 of sum|w x| (9e-8 for 4096 terms in one chain, less with
# partial sums). A tile's dense sums are integers over 64 columns, exact in float32, so that fewer terms are left; the
# row's scale and the outliers' own sum add three roundings of 6e-8. 4e-7 leaves room for both, and no wrong term fits in.
BOUND = 4e-7


def simde_library(tmp_path_factory):
    if "GWQ_SIMDE_LIBRARY" in os.environ:
        return os.environ["GWQ_SIMDE_LIBRARY"]
    sys.path.insert(0, str(NATIVE))
    import build

    return build.build(out=tmp_path_factory.mktemp("simde"), simde=True)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """name -> library; the SIMDe one runs the AVX-512 code on any x86 CPU."""
    opened = {}

    def library(isa):
        if isa.endswith("-simde") and not os.path.exists("/usr/include/simde/x86/avx512.h"):
            pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
        key = isa.endswith("-simde")
        if key not in opened:
            opened[key] = ffi.dlopen(str(simde_library(tmp_path_factory) if key else LIBRARY))
        return opened[key]

    return library


@pytest.fixture(scope="session")
def select(libraries):
    """Choose an instruction set and return its library; skips when this machine lacks it."""

    def choose(isa):
        lib, name = libraries(isa), isa.removesuffix("-simde")
        if name not in isas(lib):
            pytest.skip(f"this machine has no {name}")
        assert lib.gwq_isa_select(name.encode()) == 0
        return lib

    return choose


@pytest.fixture(scope="module", params=ISAS)
def lib(request, select):
    select(request.param)

    class Selected:
        """Selects again before each call: another test may have chosen another instruction set meanwhile."""

        def __getattr__(self, name):
            return getattr(select(request.param), name)

    return Selected()


@pytest.fixture(scope="module")
def pool(lib):
    pools = {}

    def get(threads):
        if threads not in pools:
            out = ffi.new("gwq_pool **")
            assert lib.gwq_pool_new(threads, out) == 0
            pools[threads] = out[0]
        return pools[threads]

    yield get
    for p in pools.values():
        lib.gwq_pool_free(p)


class Loaded:
    """A case in guarded memory, as a gwq_matrix."""

    def __init__(self, lib, case):
        self.data, self.rows, self.cols = guarded(case.data), *case.shape
        m = self.struct = ffi.new("gwq_matrix *")
        m.type, m.rows, m.cols = case.type.id, *case.shape
        m.data, m.data_bytes = pointer(self.data, "void *"), self.data.nbytes
        if case.outliers is not None:
            self.table = guarded(case.outliers[0]), guarded(case.outliers[1])
            m.outliers, m.outlier_bytes = pointer(self.table[0], "uint8_t *"), self.table[0].nbytes
            m.offsets, m.offset_bytes = pointer(self.table[1], "uint8_t *"), self.table[1].nbytes
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
    x, ys = guarded(x), [guarded(np.full((n, m.rows), np.nan, np.float32)) for m in matrices]
    scratch = scratch_of(lib, n, cols) if scratch is None else scratch
    m, y = ffi.new("gwq_matrix *[]", [m.struct for m in matrices]), ffi.new("float *[]", [pointer(y) for y in ys])
    assert lib.gwq_matmul(pool, m, len(matrices), pointer(x), n, y, pointer(scratch, "void *"), len(scratch)) == 0
    return ys


@functools.cache
def cached(type_name, rows, cols, pattern):
    """A case and its reference result, shared by the instruction sets."""
    case = make(type_name, rows, cols, pattern)
    return case, case.full, *expect(case, activations(max(TOKENS), cols))


def expect(case, x):
    """(y, sum|w x|) in float64, with the activations the kernels see."""
    dense, exact, x = case.dense.astype(float), case.sparse.astype(float), x.astype(float)
    if not case.type.bits:
        return x @ (dense + exact).T, np.abs(x) @ (np.abs(dense) + np.abs(exact)).T
    q, scale, _ = quantize(x.astype(np.float32))
    seen = (np.repeat(scale, fmt.BLOCK, 1).astype(float) * q)[:, : x.shape[1]]
    return seen @ dense.T + x @ exact.T, np.abs(seen) @ np.abs(dense).T + np.abs(x) @ np.abs(exact).T


def same_bits(a, b):
    assert_array_equal(np.asarray(a, np.float32).view(np.uint32), np.asarray(b, np.float32).view(np.uint32))


def width_fits(type_name, cols):
    return cols % fmt.TYPES[type_name].unit == 0 or fmt.TYPES[type_name].bits


def patterns(type_name):
    return PATTERNS if type_name in SPARSE_TYPES else PATTERNS[:1]


# --- matrices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_dequantize_is_exact(lib, pool, type_name):
    for rows, cols in SHAPES:
        if width_fits(type_name, cols):
            for pattern in patterns(type_name):
                case, full, *_ = cached(type_name, rows, cols, pattern)
                same_bits(Loaded(lib, case).dequantize(lib, pool(2)), full)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MATRIX_TYPES), st.integers(1, 70), st.integers(1, 600), st.sampled_from(PATTERNS), st.integers(0, 2**32 - 1)
)  # fmt: skip
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
        pytest.skip("a stock type of whole blocks")
    for i, pattern in enumerate(patterns(type_name)):
        case, _, y, size = cached(type_name, *shape, pattern)
        matrix, x = Loaded(lib, case), activations(max(TOKENS), shape[1])
        for n in TOKENS if i == 0 or pattern.__name__ == "random" else TOKENS[i % 2 :: 4]:
            (got,) = matmul(lib, pool(1 + i % 3), [matrix], x[:n])
            assert (np.abs(got - y[:n]) <= BOUND * size[:n]).all(), (pattern.__name__, n)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_threads_do_not_change_a_bit(lib, pool, n):
    """Matrices of several types and sizes in one call, so that a thread's share ends in any of them."""
    cases = [
        make(t, rows, 576, random) for t, rows in (("gwq4", 200), ("gwq2", 33), ("gwq3", 120), ("f16", 77), ("q8_0", 50), ("q4_0", 90))
    ]
    matrices, x = [Loaded(lib, c) for c in cases], activations(n, 576)
    first = matmul(lib, pool(1), matrices, x)
    for threads in range(2, 9):
        for a, b in zip(first, matmul(lib, pool(threads), matrices, x), strict=True):
            same_bits(a, b)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
@pytest.mark.parametrize("type_name", TILE_TYPES)
def test_extremes_do_not_overflow(lib, pool, type_name, n):
    """Largest entries, scales and activations, their signs equal or not: the worst cases of 16-bit and of 32-bit sums."""
    type, rng = fmt.TYPES[type_name], np.random.default_rng(0)
    table = np.full(16, fmt.ENTRY_MAX, np.int8)
    table[0] = fmt.ENTRY_MIN
    for some in (np.zeros(256, bool), np.ones(256, bool), rng.random(256) < 0.5):  # columns of the largest entry, else the smallest
        codes = np.broadcast_to(np.where(some, (1 << type.bits) - 1, 0).astype(np.uint8), (16, 256))
        for scale in (-32, 31):
            scales = np.full((16, 256 // type.sub), scale, np.int8)
            case = Case(type, (16, 256), pack_tiles(type, table, np.ones(16, np.float16), scales, codes))
            for sign in (np.where(some, 1, -1), np.where(some, -1, 1), np.tile([1, 1, -1, -1], 64), np.tile([1, -1], 128)):
                (y,) = matmul(lib, pool(1), [Loaded(lib, case)], np.tile(np.float32(127) * sign, (n, 1)).astype(np.float32))
                want = 127 * scale * np.where(some, fmt.ENTRY_MAX, fmt.ENTRY_MIN) @ sign
                assert (np.abs(y - want) <= BOUND * 256 * 127 * 1024).all()


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("type_name", TILE_TYPES)
def test_a_massive_channel_leaves_the_others_their_digits(lib, pool, type_name, n):
    """One number of thousands among ones: its block's int8 codes would all be 0 but its own."""
    case = make(type_name, 600, 333, random)
    matrix, quiet = Loaded(lib, case), activations(n, 333)
    quiet[[0, -1], 100] = quiet[[0, -1], 332] = 0  # the last block is a narrow one
    loud = quiet.copy()
    loud[0, 100], loud[-1, 332] = 5000, -70000
    (y,), (calm,) = matmul(lib, pool(1), [matrix], loud), matmul(lib, pool(1), [matrix], quiet)
    dense, exact = case.dense.astype(float), case.sparse.astype(float)
    others = y - (loud - quiet).astype(float) @ (dense + exact).T
    want = quiet.astype(float) @ (dense + exact).T
    error, usual = (np.sqrt(np.mean((got - want) ** 2, 1) / np.mean(want**2, 1)) for got in (others, calm))
    assert (usual < 0.02).all() and (error < 0.03).all()
    same_bits(y[1:-1], calm[1:-1])
    for threads in (2, 5):
        same_bits(matmul(lib, pool(threads), [matrix], loud)[0], y)


def test_a_massive_channel_takes_no_second_look_where_codes_hold_all(lib, pool):
    """A lone number, infinity and NaN: what the codes say is all there is to say."""
    case = make("gwq4", 40, 128, random)
    x = np.zeros((5, 128), np.float32)
    x[0, 7], x[1, 70], x[2, 70], x[3, :64], x[4, :2] = 12345.678, np.inf, np.nan, 1, (1000, 1)
    scratch = scratch_of(lib, *x.shape)
    matmul(lib, pool(1), [Loaded(lib, case)], x, scratch)
    assert scratch[-128:-64][:5].tolist() == [0, 0, 0, 0, 1]  # which tokens have second codes, before 64 bytes of slack


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
        assert status(lib, table={at: 32}) == status(lib, table={at: -33}) == status(lib, table={at: -128}) == "GWQ_E_TABLE"
    assert status(lib, data_bytes=-1) == status(lib, data_bytes=1) == status(lib, rows=16) == status(lib, cols=64) == "GWQ_E_SIZE"
    assert status(lib, rows=-20) == status(lib, cols=-100) == "GWQ_E_SHAPE"
    assert status(lib, outlier_bytes=-1) == status(lib, offset_bytes=4) == "GWQ_E_OFFSETS"


def test_sizes_are_those_of_python(lib):
    for type in (fmt.TYPES[name] for name in TILE_TYPES):
        for rows, cols in [*SHAPES, (151936, 896), (2**31 - 1, 64)]:
            assert lib.gwq_matrix_bytes(type.id, rows, cols) == type.nbytes(rows, cols)
    assert lib.gwq_matrix_bytes(fmt.TYPES["gwq4"].id, 2**31 - 1, 2**31 - 1) == fmt.TYPES["gwq4"].nbytes(2**31 - 1, 2**31 - 1)


def test_embedding_rows(lib):
    """Rows by number, in any order and repeatedly."""
    for type_name in MATRIX_TYPES:
        case = make(type_name, 50, 96, random)
        ids = np.array([49, 0, 17, 17, 31, 48], np.int32)
        group, out = guarded(np.empty((fmt.ROWS, 96), np.float32)), guarded(np.empty((len(ids), 96), np.float32))
        m = Loaded(lib, case)
        assert lib.gwq_embed(m.struct, pointer(ids, "int32_t *"), len(ids), pointer(group), pointer(out)) == 0
        same_bits(out, case.full[ids])


def quantize_inputs():
    rng = np.random.default_rng(5)
    x = [activations(4, cols) for cols in (1, 63, 64, 65, 200)]
    x.append(rng.integers(-254, 255, (3, 128)).astype(np.float32) / 2)  # halves: round to nearest even
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


# --- the other ops --------------------------------------------------------------------------------------------------

SIZES = [(1, 1), (2, 7), (3, 8), (2, 9), (1, 31), (5, 64), (2, 65), (40, 576)]


@pytest.mark.parametrize("n,dim", SIZES)
def test_rmsnorm(lib, pool, n, dim):
    x, weight = guarded(activations(n, dim)), guarded(activations(1, dim, 1)[0])
    wide = x.astype(float)
    want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    out = guarded(np.empty_like(x))
    assert lib.gwq_rmsnorm(pool(2), pointer(x), pointer(weight), 1e-5, n, dim, pointer(out)) == 0
    assert_allclose(out, want, rtol=1e-6)
    assert lib.gwq_rmsnorm(pool(2), pointer(x), pointer(weight), 1e-5, n, dim, pointer(x)) == 0  # in place
    same_bits(x, out)


@pytest.mark.parametrize("n,dim", SIZES)
def test_silu(lib, pool, n, dim):
    gate, up = guarded(6 * activations(n, dim)), guarded(activations(n, dim, 1))
    wide = gate.astype(float)
    assert lib.gwq_activate(pool(2), pointer(gate), pointer(up), n, dim, lib.GWQ_SILU) == 0
    assert_allclose(gate, wide / (1 + np.exp(-wide)) * up, rtol=6e-7)  # exp, add, divide, multiply


def test_silu_of_large_and_small_values(lib, pool):
    x = np.concatenate([s * np.logspace(-40, 38, 4001) for s in (-1, 1)]).astype(np.float32)
    gate, up = guarded(np.append(x, np.float32(0))), guarded(np.ones(len(x) + 1, np.float32))
    with np.errstate(over="ignore"):
        wide = gate.astype(float)
        want = wide / (1 + np.exp(-wide))
    assert lib.gwq_activate(pool(1), pointer(gate), pointer(up), 1, len(gate), lib.GWQ_SILU) == 0
    assert_allclose(gate, want, rtol=6e-7, atol=2e-36)  # below e^-87 the true value does not matter


ERFC = np.vectorize(math.erfc, otypes=[float])
GELU = {
    "GWQ_GELU": lambda x: 0.5 * x * ERFC(-x / math.sqrt(2)),
    "GWQ_GELU_TANH": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", GELU)
@pytest.mark.parametrize("n,dim", SIZES)
@pytest.mark.parametrize("gated", [False, True])
def test_gelu(lib, pool, name, n, dim, gated):
    x, up = guarded(6 * activations(n, dim)), guarded(activations(n, dim, 1))
    want = GELU[name](x.astype(float)) * (up if gated else 1)
    assert lib.gwq_activate(pool(2), pointer(x), pointer(up) if gated else ffi.NULL, n, dim, getattr(lib, name)) == 0
    assert_allclose(x, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", GELU)
def test_gelu_of_large_values(lib, pool, name):
    x = guarded(np.array([-3e38, -1e13, -200, 0, 200, 1e13, 3e38], np.float32))
    want = np.where(x > 0, x, 0)
    assert lib.gwq_activate(pool(2), pointer(x), ffi.NULL, 1, len(x), getattr(lib, name)) == 0
    assert_array_equal(x, want)


@pytest.mark.parametrize("n,dim", SIZES)
def test_softcap(lib, pool, n, dim):
    x = guarded((np.logspace(-5, 3, n * dim) * np.where(np.arange(n * dim) % 3, 1, -1)).astype(np.float32).reshape(n, dim))
    want = 30 * np.tanh(x.astype(float) / 30)
    assert lib.gwq_softcap(pool(2), pointer(x), n, dim, 30) == 0
    assert_allclose(x, want, rtol=1e-6)


@pytest.mark.parametrize("style", ["PAIRS", "HALVES"])
@pytest.mark.parametrize("dim, rotated", [(16, 16), (16, 6), (15, 14)])
def test_rope(lib, pool, style, dim, rotated):
    n, heads, half = 5, 3, rotated // 2
    x, angle = guarded(activations(n * heads, dim)), np.random.default_rng(1).random((n, half))
    cos, sin = guarded(np.cos(angle).astype(np.float32)), guarded(np.sin(angle).astype(np.float32))
    wide = x.reshape(n, heads, dim).astype(float)
    first, second = (slice(0, rotated, 2), slice(1, rotated, 2)) if style == "PAIRS" else (slice(0, half), slice(half, rotated))
    want = wide.copy()
    want[..., first] = wide[..., first] * cos[:, None] - wide[..., second] * sin[:, None]
    want[..., second] = wide[..., first] * sin[:, None] + wide[..., second] * cos[:, None]
    style = getattr(lib, f"GWQ_ROPE_{style}")
    assert lib.gwq_rope(pool(2), pointer(x), pointer(cos), pointer(sin), n, heads, dim, rotated, style) == 0
    assert_allclose(x.reshape(n, heads, dim), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("broadcast", [0, 1])
def test_add(lib, broadcast):
    x, y = guarded(activations(3, 37)), guarded(activations(1 if broadcast else 3, 37, 1))
    for scale in (np.float32(1), np.float32(0.3)):
        want = x + scale * y
        assert lib.gwq_add(pointer(x), pointer(y), 3, 37, scale, broadcast) == 0
        same_bits(x, want)


def kv_cache(lib, x, type):
    """(a KV cache of the numbers x, guarded; what it holds, float)."""
    size, unit = fmt.TYPES[type].unit_bytes, fmt.TYPES[type].unit
    out = guarded(np.empty(x.size // unit * size, np.uint8))
    assert lib.gwq_cache(pointer(x), x.size, fmt.TYPES[type].id, pointer(out, "void *"), 0) == 0
    if type == "q8_0":
        blocks = out.reshape(-1, 34)
        return out, (blocks[:, :2].copy().view(np.float16).astype(float) * blocks[:, 2:].view(np.int8)).reshape(x.shape)
    return out, out.view({"f16": np.float16, "f32": np.float32}[type]).reshape(x.shape).astype(float)


@pytest.mark.parametrize("type,dim", [*itertools.product(["f16", "f32"], [7, 8, 64]), ("q8_0", 32), ("q8_0", 96)])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("softcap", [0, 0.5])
@pytest.mark.parametrize("n,start,window", [(1, 0, 0), (1, 70, 0), (9, 0, 0), (33, 40, 0), (33, 40, 1), (20, 50, 33), (3, 5, 100)])
def test_attention(lib, pool, n, start, window, softcap, heads, kv_heads, dim, type):
    q = guarded(activations(n * heads, dim).reshape(n, heads, dim))
    (kept_k, k), (kept_v, v) = (kv_cache(lib, activations((start + n) * kv_heads, dim, s).reshape(-1, kv_heads, dim), type) for s in (1, 2))
    key, query = np.arange(start + n), start + np.arange(n)[:, None]
    seen = (key <= query) & ((key > query - window) | (window == 0))
    score = np.einsum("nhd,mhd->hnm", q.astype(float), np.repeat(k, heads // kv_heads, 1)) * 0.125
    score = softcap * np.tanh(score / softcap) if softcap else score
    p = np.exp(np.where(seen, score, -np.inf) - np.where(seen, score, -np.inf).max(2, keepdims=True))
    want = np.einsum("hnm,mhd->nhd", p / p.sum(2, keepdims=True), np.repeat(v, heads // kv_heads, 1))
    out = guarded(np.empty_like(q))
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
    assert lib.gwq_attention(pool(2), *args) == 0
    assert_allclose(out, want, rtol=2e-5, atol=2e-6)


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
    """Q8_0: the largest of 32 numbers gets 127, the others the nearest code; the same bytes whatever computes them."""
    x = (activations(1, 32 * 40) * np.repeat(10.0 ** np.arange(-4, 4), 160)).astype(np.float32)
    x[0, :32] = 0
    assert np.count_nonzero(np.abs(x.reshape(-1, 32)).max(1)) > 30
    out, held = kv_cache(lib, guarded(x), "q8_0")
    blocks, codes = x.reshape(-1, 32).astype(float), out.reshape(-1, 34)[:, 2:].view(np.int8)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    assert_array_equal(np.abs(codes).max(1), np.where(scale[:, 0] > 0, 127, 0))
    assert (np.abs(codes * scale - blocks) <= 0.5001 * scale).all()
    assert_array_equal(out.reshape(-1, 34)[:, :2].copy().view(np.float16), scale.astype(np.float32).astype(np.float16))
    assert np.abs(held - x).max() < 0.0045 * np.abs(x).max()


def test_cached_codes_of_what_is_not_a_number(lib):
    x = np.ones((4, 32), np.float32)
    x[0, 3], x[1, 3], x[2, 3] = np.nan, np.inf, -1e38
    out, held = kv_cache(lib, guarded(x), "q8_0")
    assert np.isnan(held[0]).any()
    assert held[1, 3] == 127 * 65504 and held[2, 3] == -127 * 65504 and not held[1:3, 4:].any()
    assert_allclose(held[3], 1, rtol=1e-3)
    for count, first in ((31, 0), (32, 1)):
        assert lib.gwq_cache(pointer(x), count, 8, pointer(out, "void *"), first) == lib.GWQ_E_ARGUMENT
    q = guarded(activations(1, 40))
    args = (pointer(out, "void *"), pointer(out, "void *"), 8, 1, 0, 1, 1, 40, 1, 0, 0, pointer(q))
    assert lib.gwq_attention(ffi.NULL, pointer(q), *args) == lib.GWQ_E_TYPE


def test_read_sums_every_byte(lib, pool):
    data = guarded(np.random.default_rng(1).integers(0, 2**64, 8192 + 5, np.uint64, endpoint=False))
    want = int(data.sum(dtype=np.uint64))
    for streams in range(1, 9):
        for threads, ahead in ((1, 0), (2, 2048)):
            total = ffi.new("uint64_t *")
            assert lib.gwq_read(pool(threads), pointer(data, "void *"), data.nbytes, streams, ahead, total) == 0
            assert total[0] == want
