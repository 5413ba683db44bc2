"""Tensor types and their sizes, read from the C headers, and the bytes of the stock types."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import cffi
import numpy as np

from gwq_export import GwqError

HEADERS = ("gwq_format.h", "gwq.h")
BUILD_COMMAND = "python native/build.py"


def _read_headers(folder):
    """C declarations of both headers, without what cffi cannot parse (directives, the C++ wrapper)."""
    text = ""
    for name in HEADERS:
        path = Path(folder, name)
        if not path.exists():
            raise GwqError(f"{path} is missing: build the native library with `{BUILD_COMMAND}` or reinstall gwq-export")
        text += path.read_text()
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
    return re.sub(r"^#.*$", "", text, flags=re.M)


ffi = cffi.FFI()
ffi.cdef(_read_headers(Path(__file__).parent))
_enum = ffi.typeof("enum gwq_type").relements  # {"GWQ_TYPE_F32": 0, ...}
_geometry = ffi.typeof("enum gwq_geometry").relements

FORMAT_VERSION = _geometry["GWQ_FORMAT_VERSION"]
ROWS, RING, BLOCK, TILE, TILE_BLOCKS = (_geometry[f"GWQ_{k}"] for k in ("ROWS", "RING", "BLOCK", "TILE", "TILE_BLOCKS"))
TABLE = ffi.sizeof("struct gwq_head")  # entries, and bytes
WINDOW_BITS = 4
SCALE_BITS, SCALE_BIAS = 6, 32
ENTRY_MIN, ENTRY_MAX = -32, 31


@dataclass(frozen=True)
class TensorType:
    """A tensor type: `unit` columns take `unit_bytes` bytes, in one row of a stock type, in the 16 rows of a group of a tile type.

    Tile types also have the `bits` of a code, the bits of `history` that a neighbour adds to its window, and `sub`, the
    columns that share a scale; stock types have zeros there.
    """

    name: str
    id: int
    unit: int
    unit_bytes: int
    bits: int = 0
    history: int = 0
    sub: int = 0

    @property
    def lines(self):
        """64-byte lines per block of 16 rows x 64 columns."""
        return 2 * self.bits

    def head_bytes(self, rows):
        """Bytes before the tiles: table and row scales, up to a multiple of 64."""
        return -(-(TABLE + 2 * padded_rows(rows)) // 64) * 64

    def nbytes(self, rows, cols):
        """Bytes of a (rows, cols) tensor. Raises GwqError when a stock type cannot hold that width."""
        if self.bits:
            return self.head_bytes(rows) + padded_rows(rows) // ROWS * -(-cols // BLOCK) * self.unit_bytes
        if cols % self.unit:
            raise GwqError(f"type {self.name} needs a width that is a multiple of {self.unit}, got {cols}: choose f16")
        return rows * (cols // self.unit) * self.unit_bytes

    def size(self, shape):
        """Bytes of a tensor of one dimension or more. Raises GwqError like `nbytes`."""
        count, rows, cols = matrices(shape)
        return count * self.nbytes(rows, cols)


def matrices(shape):
    """(count, rows, cols) of a tensor's shape: a vector is one row; dimensions before the last two count matrices (experts)."""
    return prod(shape[:-2]), (1, *shape)[-2], shape[-1]


def padded_rows(rows):
    """Rows of whole row groups."""
    return -(-rows // ROWS) * ROWS


def _tile_type(name):
    parts = dict(ffi.typeof(f"struct {name}_tile").fields)
    bits, scales = parts["line"].type.length // (2 * TILE_BLOCKS), parts["scale"].type.item.length
    sub = BLOCK * ROWS * SCALE_BITS // 8 // scales
    block = ffi.sizeof(f"struct {name}_tile") // TILE_BLOCKS
    return TensorType(name, _enum[f"GWQ_TYPE_{name.upper()}"], BLOCK, block, bits, WINDOW_BITS - bits, sub)


TYPES = {
    t.name: t
    for t in [
        TensorType("f32", _enum["GWQ_TYPE_F32"], 1, 4),
        TensorType("f16", _enum["GWQ_TYPE_F16"], 1, 2),
        TensorType("bf16", _enum["GWQ_TYPE_BF16"], 1, 2),
        TensorType("q8_0", _enum["GWQ_TYPE_Q8_0"], 32, ffi.sizeof("struct q8_0_block")),
        TensorType("i8", _enum["GWQ_TYPE_I8"], 1, 1),
        TensorType("i32", _enum["GWQ_TYPE_I32"], 1, 4),
        *(_tile_type(name[9:].lower()) for name in sorted(_enum) if name.startswith("GWQ_TYPE_GWQ")),
    ]
}
TYPES_BY_ID = {t.id: t for t in TYPES.values()}


def tensor_type(name):
    """The TensorType called `name` (any case), or GwqError with the names there are."""
    try:
        return TYPES[name.lower()]
    except KeyError:
        raise GwqError(f"unknown tensor type {name!r}: choose one of {', '.join(TYPES)}") from None


# --- stock types ----------------------------------------------------------------------------------------------------


def encode_stock(type, weight):
    """float32 weight (rows, cols) or (n,) as bytes (uint8) of the stock type f32, f16, bf16 or q8_0."""
    w = np.ascontiguousarray(weight, np.float32)
    if type.name == "f32":
        out = w
    elif type.name == "f16":
        with np.errstate(over="ignore"):
            out = w.astype(np.float16)
        if not np.isfinite(out).all() and np.isfinite(w).all():
            raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
    elif type.name == "bf16":
        bits = w.view(np.uint32)
        out = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # round to nearest even
    elif type.name == "q8_0":
        type.nbytes(1, w.shape[-1])  # refuses a width that is no multiple of 32
        blocks = w.reshape(-1, type.unit)
        d = (np.abs(blocks).max(1) / 127).astype(np.float16)
        inverse = np.divide(1, d, out=np.zeros(len(d), np.float32), where=d > 0, dtype=np.float32)
        out = np.empty(len(d), [("scale", np.float16), ("code", np.int8, type.unit)])
        out["scale"] = d
        out["code"] = np.clip(np.rint(blocks * inverse[:, None]), -127, 127)
    else:
        raise GwqError(f"type {type.name} is not a stock type")
    return np.ascontiguousarray(out).reshape(-1).view(np.uint8)


def decode_stock(type, data, rows, cols):
    """Bytes of a stock type as float32 (rows, cols)."""
    data = np.ascontiguousarray(data, np.uint8)
    if type.name == "f32":
        out = data.view(np.float32)
    elif type.name == "f16":
        out = data.view(np.float16).astype(np.float32)
    elif type.name == "bf16":
        out = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif type.name == "q8_0":
        b = data.view([("scale", np.float16), ("code", np.int8, type.unit)])
        out = b["scale"].astype(np.float32)[:, None] * b["code"]
    elif type.name == "i8":
        out = data.view(np.int8).astype(np.float32)
    else:
        out = data.view(np.int32).astype(np.float32)
    return out.reshape(rows, cols).astype(np.float32, copy=False)
