"""What only the CUDA library has, run on the host over native/cuda/shim.h.

tests/native/test_matrix.py, test_matmul.py, test_ops.py and test_attention.py test its kernels
beside those of the CPU's instruction sets.
"""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gwq_export.bench.cases import TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.types import ffi
from gwq_export.native.library import lib, pointer
from native.build import HEADERS, INCLUDE_FLAGS
from native.build_cuda import HOST_FLAGS, HOST_WARNINGS, TSAN
from tests.native.test_matmul import matmul, quantize_inputs, scratch_of
from tests.support.kernel_cases import (
    Loaded,
    activations,
    guarded,
    make,
    many,
    none,
    quantize,
    random,
    same_bits,
)
from tests.support.paths import NATIVE

CODES = np.dtype(
    [("q", np.int8, fmt.BLOCK), ("start", np.int32, 4), ("scale", np.float32, 2), ("pad", "V8")]
)
# Place in a block's codes -> column, as native/cuda/layout.h says of each 16
ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
ORDER = (16 * np.arange(4)[:, None] + ORDER).ravel()
# Sources of kernels; the others are what the host does
KERNELS = ("attention", "best", "choice", "codes", "gemm", "gemv", "halves", "ops", "repack")
KERNELS += ("rows", "rows_gemm", "rows_gemv")
MISSING = {"gwq_encode", "gwq_multiply"}  # what serves export
MISSING |= {"gwq_map_watch", "gwq_map_faults", "gwq_map_forget"}  # what the host's library does


@pytest.fixture
def cuda(select):
    return select("cuda")


def test_all_of_the_abi_is_exported(cuda_library):
    command = ["nm", "-D", "--defined-only", cuda_library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    headers = "".join((NATIVE / "include" / name).read_text() for name in HEADERS)
    declared = set(re.findall(r"^\w[\w *]*?\b(gwq_\w+)\(", headers, flags=re.M))
    assert declared - exported == MISSING
    assert {name for name in exported if name.startswith("gwq_")} - declared == {
        "gwq_shim_reverse",
        "gwq_shim_memory",
        "gwq_shim_machine",
        "gwq_shim_room",
    }


def codes_of(lib, x):
    """(codes, second codes), each a CODES array (n, blocks), of activations x (n, cols)."""
    n, cols = x.shape
    scratch = np.zeros(lib.gwq_scratch_bytes(n, cols) + 256, np.uint8)
    scratch = scratch[-scratch.ctypes.data % 256 :]
    matmul(lib, ffi.NULL, [Loaded(lib, make("gwq4", 1, cols))], x, scratch)
    padded = -(-cols // 128) * 128
    at = -(-4 * n * padded // 256) * 256
    blocks = padded // fmt.BLOCK
    both = scratch[at:][: 2 * n * blocks * CODES.itemsize].view(CODES).reshape(2, n, blocks)
    floats = scratch[: 4 * n * padded].view(np.float32).reshape(n, padded)
    same_bits(floats[:, :cols], x)
    assert not floats[:, cols:].any()
    return both


def test_codes_are_those_of_the_cpu(cuda):
    """And their sums, which the CPU has twice, of half as many columns each."""
    for x in quantize_inputs():
        q, scale, bias = quantize(x)
        n, blocks = scale.shape
        codes = codes_of(cuda, x)[0]
        assert not codes[:, blocks:]["q"].any() and not codes[:, blocks:]["scale"].any()
        codes = codes[:, :blocks]
        assert_array_equal(codes["q"], q.reshape(n, blocks, fmt.BLOCK)[..., ORDER])
        same_bits(codes["scale"][..., 0], scale)
        assert_array_equal(codes["start"], bias.astype(int).sum(2).reshape(n, blocks, 4))


def test_second_codes_are_of_massive_blocks_alone(cuda):
    x = np.zeros((6, 128), np.float32)
    x[0, 7] = 12345.678  # its code holds it all
    x[1, 70] = np.inf
    x[2, 70] = np.nan
    x[3, :64] = 1
    x[4, :2] = (1000, 1)
    x[5, 64:66] = (-70000, 3)
    first, second = codes_of(cuda, x)
    assert np.argwhere(first["scale"][..., 1]).tolist() == [[4, 0], [5, 1]]
    for token, block in ((4, 0), (5, 1)):
        codes, scale = first[token, block]["q"], first[token, block]["scale"]
        rest = x[token, 64 * block :][:64] - scale[0] * codes[np.argsort(ORDER)]
        q, want, _ = quantize(rest[None])
        same_bits(scale[1], want[0, 0])
        assert_array_equal(second[token, block]["q"], q[0][ORDER])


@pytest.mark.parametrize("pattern", [none, random, many], ids=lambda f: f.__name__)
@pytest.mark.parametrize("type_name", [*TILE_TYPES, "f16", "q8_0"])
def test_the_order_of_threads_changes_no_bit(cuda, shim, type_name, pattern):
    x = activations(5, 576)
    x[1, 100] = 9000  # massive
    results = []
    for backward in (0, 1):
        shim.gwq_shim_reverse(backward)
        matrix = Loaded(cuda, make(type_name, 90, 576, pattern))
        results.append((matrix.dequantize(cuda, ffi.NULL), *matmul(cuda, ffi.NULL, [matrix], x)))
    for a, b in zip(*results, strict=True):
        same_bits(a, b)


def test_no_memory_is_said(cuda, shim):
    loaded = Loaded(cuda, make("gwq4", 64, 256, random))
    out = ffi.new("gwq_matrix *")
    p = ffi.new("void **")
    for room in (0, 100, 9000, 12000, 19000):  # where one allocation after the other fails
        shim.gwq_shim_memory(ctypes.c_size_t(room))
        assert cuda.gwq_cuda_alloc(room + 1, p) == cuda.GWQ_E_MEMORY
        status = cuda.gwq_cuda_upload(loaded.host, out, ffi.NULL)
        assert status == (cuda.GWQ_E_MEMORY if room < 19000 else cuda.GWQ_OK), room
        assert ffi.string(cuda.gwq_cuda_error())
    cuda.gwq_cuda_forget(out)
    assert out.data == ffi.NULL


def test_only_uploaded_matrices_are_taken(cuda):
    loaded = Loaded(cuda, make("gwq4", 16, 64))
    y = guarded(np.zeros((16, 64), np.float32))
    assert cuda.gwq_dequantize(ffi.NULL, loaded.host, 0, 16, pointer(y)) == cuda.GWQ_E_ARGUMENT
    loaded.host.data_bytes -= 1
    out = ffi.new("gwq_matrix *")
    assert cuda.gwq_cuda_upload(loaded.host, out, ffi.NULL) == cuda.GWQ_E_SIZE
    assert not y.any()


@pytest.mark.parametrize("cols", [65536, 65537])
def test_outliers_of_the_widest_matrix(cuda, cols):
    case = make("gwq2", 3, cols, random)
    host = ffi.new("gwq_matrix *")
    host.type, host.rows, host.cols = case.type.id, 3, cols
    host.data, host.data_bytes = pointer(case.data, "void *"), case.data.nbytes
    records, offsets = case.outliers
    host.outliers, host.outlier_bytes = pointer(records, "uint8_t *"), records.nbytes
    host.offsets, host.offset_bytes = pointer(offsets, "uint8_t *"), offsets.nbytes
    out = ffi.new("gwq_matrix *")
    if cols > ffi.typeof("enum gwq_cuda_limits").relements["GWQ_CUDA_COLUMNS"]:
        assert cuda.gwq_cuda_upload(host, out, ffi.NULL) == cuda.GWQ_E_COLUMN
    else:
        same_bits(Loaded(cuda, case).dequantize(cuda, ffi.NULL), case.full)


def test_devices(cuda):
    assert cuda.gwq_cuda_devices() == 1
    found = ffi.new("gwq_cuda_device *")
    assert cuda.gwq_cuda_describe(0, found) == 0
    assert ffi.string(found.name) == b"host shim" and found.usable and found.bytes
    assert cuda.gwq_cuda_describe(1, found) == cuda.GWQ_E_INDEX
    assert cuda.gwq_cuda_open(0) == 0 and cuda.gwq_cuda_open(1) == cuda.GWQ_E_INDEX


def test_too_little_scratch_is_refused(cuda):
    matrix = Loaded(cuda, make("f16", 16, 64))
    x, y = guarded(activations(2, 64)), guarded(np.zeros((2, 16), np.float32))
    m, out = ffi.new("gwq_matrix *[]", [matrix.struct]), ffi.new("float *[]", [pointer(y)])
    scratch = scratch_of(cuda, 2, 64)
    for memory, size in ((pointer(scratch, "void *"), scratch.nbytes - 1), (ffi.NULL, 0)):
        status = cuda.gwq_matmul(ffi.NULL, m, 1, pointer(x), 2, out, memory, size)
        assert status == cuda.GWQ_E_SCRATCH


# --- the largest numbers, and what experts need ---


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


# --- synchronisation ---

RACE = NATIVE.parent / "tests" / "native" / "cuda_race.cpp"


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A program of kernels under ThreadSanitizer; the shim itself is not instrumented."""
    cxx = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if not cxx:
        pytest.skip("no C++ compiler (Debian: g++)")
    folder = tmp_path_factory.mktemp("race")
    plain = f"{HOST_FLAGS} {HOST_WARNINGS} {INCLUDE_FLAGS}".split()
    kernels = [NATIVE / "cuda" / f"{name}.cu" for name in KERNELS]
    shim = folder / "shim.o"
    for command in (
        [cxx, *plain, "-DGWQ_SHIM_TSAN", "-c", NATIVE / "cuda" / "shim.cpp", "-o", shim],
        [cxx, *plain, *TSAN.split(), RACE, *kernels, "-x", "none", shim, "-o", folder / "race"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if "cannot find" in done.stderr and "tsan" in done.stderr:
            pytest.skip("this compiler has no ThreadSanitizer")
        assert not done.returncode, done.stderr
    return folder / "race"


def under_tsan(program, *words):
    # addresses are laid out as old versions of ThreadSanitizer expect them
    prefix = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*prefix, program, *words], capture_output=True, text=True)


def test_no_two_threads_race(race):
    done = under_tsan(race)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-3000:]


@pytest.mark.parametrize("name", ["race", "late_race"])
def test_a_race_is_found(race, name):
    done = under_tsan(race, name)
    assert done.returncode and "data race" in done.stderr and f"{name}_kernel" in done.stderr


# --- long heads ---


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
