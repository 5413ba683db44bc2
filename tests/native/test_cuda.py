"""What only the CUDA library has, run on the host over native/cuda/shim.h.

tests/native/test_matrix.py, test_matmul.py, test_ops.py and test_attention.py test its kernels
beside those of the CPU's instruction sets; test_cuda_best.py, test_cuda_gemm.py, test_cuda_heads.py
and test_cuda_program.py what the CPU has otherwise, test_cuda_races.py how threads wait.
"""

import ctypes
import re
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gwq_export.bench.cases import TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.types import ffi
from gwq_export.native.library import pointer
from native.build import HEADERS
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

# half a block, as native/cuda/layout.h has it
CODES = np.dtype([("q", np.int8, 32), ("start", np.int32, 2), ("scale", np.float32, 2)])
# Place in a block's codes -> column, as native/cuda/layout.h says of each 16
ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
ORDER = (16 * np.arange(2)[:, None] + ORDER).ravel()
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
        "gwq_shim_driver",
        "gwq_shim_integrated",
    }


def codes_of(lib, x):
    """(codes, second codes), each a CODES array (n, blocks, 2), of activations x (n, cols)."""
    n, cols = x.shape
    scratch = np.zeros(lib.gwq_scratch_bytes(n, cols) + 256, np.uint8)
    scratch = scratch[-scratch.ctypes.data % 256 :]
    matmul(lib, ffi.NULL, [Loaded(lib, make("gwq4", 1, cols))], x, scratch)
    padded = -(-cols // 128) * 128
    at = -(-4 * n * padded // 256) * 256
    blocks = padded // fmt.BLOCK
    both = scratch[at:][: 4 * n * blocks * CODES.itemsize].view(CODES).reshape(2, n, blocks, 2)
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
        assert_array_equal(codes["q"], q.reshape(n, blocks, 2, 32)[..., ORDER])
        same_bits(codes["scale"][..., 0], np.repeat(scale[..., None], 2, 2))
        assert_array_equal(codes["start"], bias.astype(int).sum(2).reshape(n, blocks, 2, 2))


def test_second_codes_are_of_massive_blocks_alone(cuda):
    x = np.zeros((6, 128), np.float32)
    x[0, 7] = 12345.678  # its code holds it all
    x[1, 70] = np.inf
    x[2, 70] = np.nan
    x[3, :64] = 1
    x[4, :2] = (1000, 1)
    x[5, 64:66] = (-70000, 3)
    first, second = codes_of(cuda, x)
    both = [[token, block, half] for token, block in ((4, 0), (5, 1)) for half in (0, 1)]
    assert np.argwhere(first["scale"][..., 1]).tolist() == both
    for token, block, _ in both[::2]:
        codes, scale = first[token, block]["q"], first[token, block]["scale"][0]
        rest = x[token, 64 * block :][:64] - scale[0] * codes[:, np.argsort(ORDER)].ravel()
        q, want, _ = quantize(rest[None])
        same_bits(scale[1], want[0, 0])
        assert_array_equal(second[token, block]["q"], q.reshape(2, 32)[:, ORDER])
        assert not second[token, block]["scale"][:, 1].any()
        second[token, block] = np.zeros((), CODES)
    for field in CODES.names:  # of all others there is nothing to be added
        assert not second[field].any()


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
    assert ffi.string(found.bus) == b"0000:3b:00.0"
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


def test_more_tokens_than_a_grid_has_rows(cuda):
    """65535 blocks in all but a grid's first dimension."""
    n = 65536 + 2
    matrix = Loaded(cuda, make("f32", 2, 32))
    x = activations(n, 32)
    (y,) = matmul(cuda, ffi.NULL, [matrix], x)
    for token in (0, 65535, n - 1):
        same_bits(matmul(cuda, ffi.NULL, [matrix], x[token : token + 1])[0][0], y[token])


def test_the_widest_matrix(cuda):
    """Nothing is read of one that is wider."""
    cols = ffi.typeof("enum gwq_cuda_limits").relements["GWQ_CUDA_WIDEST"]
    data = np.zeros(2 * (cols + 1), np.uint8)
    host, out = ffi.new("gwq_matrix *"), ffi.new("uint64_t *")
    host.type, host.rows, host.data = fmt.TYPES["f16"].id, 1, pointer(data, "void *")
    for more, status in ((0, cuda.GWQ_OK), (1, cuda.GWQ_E_SHAPE)):
        host.cols, host.data_bytes = cols + more, 2 * (cols + more)
        assert cuda.gwq_cuda_upload_bytes(host, out) == status
    assert cuda.gwq_cuda_upload(host, ffi.new("gwq_matrix *"), ffi.NULL) == cuda.GWQ_E_SHAPE
