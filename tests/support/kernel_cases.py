"""Matrices, shapes and outlier patterns of the kernel tests.

Their types are those that `gwq-bench --kernels` times.

Data must not be able to hide a swap: values are random or have the period 251, a prime that no
stride here divides.
"""

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.testing import assert_array_equal

from gwq_export.bench.cases import TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.decoding import dequantize
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.outliers import pack_outliers, unpack_outliers
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import ffi
from gwq_export.native.library import pointer

SPARSE_TYPES = [*TILE_TYPES, *fmt.LEVELS]  # those that files have side-tables of
# n-1, n, n+1 around the vector (8), row group (16), block (64) and tile (256); widths of real small
# models
SHAPES = [
    (1, 1),
    (15, 63),
    (16, 64),
    (17, 65),
    (31, 7),
    (33, 129),
    (48, 192),
    (16, 255),
    (64, 256),
    (65, 257),
    (16, 320),
    (100, 576),
    (5, 511),
    (82, 513),
    (17, 897),
    (144, 1024),
]
TOKENS = [1, 2, 3, 5, 6, 7, 8, 17, 47, 64, 12, 73]


def none(rng, rows, cols):
    return None


def empty(rng, rows, cols):
    """A side-table whose counts are all 0."""
    return np.zeros((rows, cols), bool)


def random(rng, rows, cols):
    return rng.random((rows, cols)) < 0.01


def many(rng, rows, cols):
    return rng.random((rows, cols)) < 0.12


def dense_row(rng, rows, cols):
    """One row with as many outliers per tile as a count can say."""
    mask = random(rng, rows, cols)
    mask[rows // 2] = True
    mask[rows // 2, 255 :: fmt.TILE] = False
    return mask


def dense_column(rng, rows, cols):
    mask = random(rng, rows, cols)
    mask[:, cols // 3] = True
    return mask


def last_tile(rng, rows, cols):
    """Outliers in the last tile of the last row group only."""
    mask = np.zeros((rows, cols), bool)
    first_row, first_col = (rows - 1) // fmt.ROWS * fmt.ROWS, (cols - 1) // fmt.TILE * fmt.TILE
    mask[first_row:, first_col:] = rng.random((rows - first_row, cols - first_col)) < 0.05
    mask[-1, -1] = True
    return mask


def last_row(rng, rows, cols):
    mask = np.zeros((rows, cols), bool)
    mask[-1] = rng.random(cols) < 0.3
    return mask


PATTERNS = [none, empty, random, many, dense_row, dense_column, last_tile, last_row]


@dataclass
class Case:
    """A matrix: its bytes, and what they mean."""

    type: fmt.TensorType
    shape: tuple
    data: np.ndarray  # uint8
    outliers: tuple | None = None  # (records uint8, offsets int32)

    @property
    def dense(self):
        """float32 weights without the outliers."""
        return dequantize(self.type, self.data, self.shape)

    @property
    def sparse(self):
        """The outliers alone, float32."""
        out = np.zeros(self.shape, np.float32)
        if self.outliers is not None:
            row, col, value = unpack_outliers(*self.outliers, self.shape)
            exponent = self.data[fmt.EXPONENT_AT].view(np.int8) if self.type.bits else 0
            out[row, col] = np.ldexp(value.astype(np.float32), exponent)
        return out

    @property
    def full(self):
        return dequantize(self.type, self.data, self.shape, self.outliers)


def plain_parts(name, rows=16, blocks=1):
    """Parts of a matrix to change by hand: table 0, 1, .. 15; row scales 1; scales 1; codes 0."""
    t = fmt.TYPES[name]
    padded = fmt.padded_rows(rows)
    return (
        np.arange(16, dtype=np.int8),
        np.ones(rows, np.float16),
        np.ones((padded, blocks * fmt.BLOCK // t.sub), np.int8),
        np.zeros((padded, blocks * fmt.BLOCK), np.uint8),
    )


def random_parts(rng, type, rows, cols):
    """What `pack_tiles` takes: any table, codes, scales and exponent, in the padding too.

    Row scales are of both signs, some subnormal or zero.
    """
    padded = fmt.padded_rows(rows)
    blocks = -(-cols // fmt.BLOCK)
    table = rng.integers(fmt.ENTRY_MIN, fmt.ENTRY_MAX + 1, fmt.TABLE).astype(np.int8)
    row_scales = (rng.standard_normal(rows) * 10.0 ** rng.integers(-7, 1, rows)).astype(np.float16)
    scales = rng.integers(
        -fmt.SCALE_BIAS, fmt.SCALE_BIAS, (padded, blocks * fmt.BLOCK // type.sub)
    ).astype(np.int8)
    return (
        table,
        row_scales,
        scales,
        rng.integers(0, 1 << type.bits, (padded, blocks * fmt.BLOCK), np.uint8),
        int(rng.integers(-20, 21)),
    )


def width_fits(type_name, cols):
    """Whether a type can hold rows of so many columns."""
    return cols % fmt.TYPES[type_name].unit == 0 or fmt.TYPES[type_name].bits


def patterns(type_name):
    """The patterns of PATTERNS that a type can have."""
    return PATTERNS if type_name in SPARSE_TYPES else PATTERNS[:1]


def make(type_name, rows, cols, pattern=none, seed=0):
    """A random matrix; tile types of random parts.

    Types with side-tables have an outlier wherever `pattern` says.
    """
    rng = np.random.default_rng([seed, rows, cols])
    type = fmt.TYPES[type_name]
    if not type.bits:
        data = encode_ggml(type, rng.standard_normal((rows, cols), np.float32))
    else:
        data = pack_tiles(type, *random_parts(rng, type, rows, cols), cols=cols)
    mask = pattern(rng, rows, cols) if type_name in SPARSE_TYPES else None
    if mask is None:
        return Case(type, (rows, cols), data)
    row, col = np.nonzero(mask)
    return Case(
        type,
        (rows, cols),
        data,
        pack_outliers(row, col, rng.standard_normal(len(row)).astype(np.float16), (rows, cols)),
    )


def activations(n, cols, seed=0):
    """float32 (n, cols): a pattern of period 251 on which no two near columns agree, and noise."""
    i = np.arange(n * cols).reshape(n, cols)
    noise = np.random.default_rng([seed, n, cols]).standard_normal((n, cols), np.float32)
    return ((i * 97 % 251 - 125) / 125 + noise).astype(np.float32)


def quantize(x):
    """The int8 activations every kernel uses: q, scale, bias.

    q: (n, 64 * blocks). scale: (n, blocks). bias: (n, 4 * blocks, 2), -32 times the sum over the
    first and over the second two columns of every four, by 16 columns.
    """
    n, cols = x.shape
    padded = np.zeros((n, -(-cols // fmt.BLOCK), fmt.BLOCK), np.float32)
    padded.reshape(n, -1)[:, :cols] = x
    with np.errstate(all="ignore"):
        scale = np.fmax.reduce(np.abs(padded), 2) / np.float32(127)  # fmax ignores NaN
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        q = np.clip(np.rint(padded * inverse[:, :, None]), -127, 127)
    q = np.where(np.isnan(q), 0, q).astype(np.int8)
    bias = -32 * q.reshape(n, -1, 4, 2, 2).sum((2, 4), dtype=np.int16)
    return q.reshape(n, -1), scale, bias


def seen_by_outliers(x):
    """(n, cols) float64: x as codes of 16 bits with a scale for each tile, gwq_input.codes16."""
    n, cols = x.shape
    padded = np.zeros((n, -(-cols // fmt.TILE), fmt.TILE), np.float32)
    padded.reshape(n, -1)[:, :cols] = x
    scale = np.abs(padded).max(2) / np.float32(32767)
    inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    codes = np.clip(np.rint(padded * inverse[:, :, None]), -32767, 32767)
    return (scale[:, :, None].astype(float) * codes).reshape(n, -1)[:, :cols]


_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(array):
    """A copy that ends where an inaccessible page begins: one byte beyond it is a crash."""
    array = np.ascontiguousarray(array)
    room = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    if _mprotect(whole.ctypes.data + room, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect failed")
    copy = np.frombuffer(memory, array.dtype, array.size, room - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


def same_bits(a, b):
    assert_array_equal(
        np.asarray(a, np.float32).view(np.uint32), np.asarray(b, np.float32).view(np.uint32)
    )


def is_cuda(lib):
    """Whether a library is that of CUDA devices, be it on the host."""
    return ffi.string(lib.gwq_isa()) == b"cuda"


class Loaded:
    """A case in guarded memory, as a gwq_matrix: `host`, and `struct`, which functions take."""

    def __init__(self, lib, case):
        self.data, self.rows, self.cols = guarded(case.data), *case.shape
        m = self.host = ffi.new("gwq_matrix *")
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
        self.struct = m
        if is_cuda(lib):
            self.struct = ffi.gc(ffi.new("gwq_matrix *"), lib.gwq_cuda_forget)
            assert lib.gwq_cuda_upload(m, self.struct, ffi.NULL) == 0

    def dequantize(self, lib, pool):
        out = guarded(np.full((self.rows, self.cols), np.nan, np.float32))
        assert lib.gwq_dequantize(pool, self.struct, 0, self.rows, pointer(out)) == 0
        return out
