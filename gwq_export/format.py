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

# What the codes of stock types stand for in which each 32 columns have one FP16 scale
LEVELS = {
    "q4_0": tuple(range(-8, 8)),
    "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
}


@dataclass(frozen=True)
class TensorType:
    """A tensor type: `unit` columns take `unit_bytes` bytes, in one row of a stock type, in the 16 rows of a group of a tile type.

    Tile types also have the `bits` of a code, the bits of `history` that a neighbour adds to its window, and `sub`, the
    columns that share a scale; stock types have zeros there. Stock types of codes have the `levels` these stand for.
    """

    name: str
    id: int
    unit: int
    unit_bytes: int
    bits: int = 0
    history: int = 0
    sub: int = 0
    levels: tuple = ()

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
        *(TensorType(name, _enum[f"GWQ_TYPE_{name.upper()}"], 32, ffi.sizeof("struct q4_block"), levels=v) for name, v in LEVELS.items()),
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


def pack_codes(type, scales, codes):
    """Bytes (uint8) of a stock type with levels: scales float16 (rows, units), codes uint8 (rows, cols) in 0 .. 15."""
    code = codes.reshape(-1, 2, type.unit // 2)  # byte i: columns i and 16 + i
    out = np.empty(len(code), [("scale", np.float16), ("code", np.uint8, type.unit // 2)])
    out["scale"], out["code"] = scales.reshape(-1), code[:, 0] | code[:, 1] << 4
    return out.view(np.uint8)


def _round_codes(type, blocks):
    """Scales and codes (blocks, 32) without a search, as ggml has them: the weight of largest magnitude becomes the first level."""
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    d = extreme / np.float32(type.levels[0])
    x = blocks * np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    if type.name == "q4_0":
        codes = np.minimum(x + np.float32(8.5), 15).astype(np.uint8)
    else:
        levels = np.float32(type.levels)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="right").astype(np.uint8)
    with np.errstate(over="ignore"):
        return d.astype(np.float16), codes


def encode_stock(type, weight):
    """float32 weight (rows, cols) or (n,) as bytes (uint8) of the stock type f32, f16, bf16, q8_0, q4_0 or iq4_nl, rounded plainly."""
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
        with np.errstate(over="ignore"):
            d = (np.abs(blocks).max(1) / 127).astype(np.float16)
        if not np.isfinite(d).all():
            raise GwqError("a weight is too large for Q8_0: export with --type bf16 or f32")
        inverse = np.divide(1, d, out=np.zeros(len(d), np.float32), where=d > 0, dtype=np.float32)
        out = np.empty(len(d), [("scale", np.float16), ("code", np.int8, type.unit)])
        out["scale"] = d
        out["code"] = np.clip(np.rint(blocks * inverse[:, None]), -127, 127)
    elif type.levels:
        type.nbytes(1, w.shape[-1])
        d, codes = _round_codes(type, w.reshape(-1, type.unit))
        if not np.isfinite(d).all():
            raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
        out = pack_codes(type, d, codes)
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
    elif type.levels:
        b = data.view([("scale", np.float16), ("code", np.uint8, type.unit // 2)])
        codes = np.concatenate([b["code"] & 15, b["code"] >> 4], axis=1)
        out = b["scale"].astype(np.float32)[:, None] * np.float32(type.levels)[codes]
    elif type.name == "i8":
        out = data.view(np.int8).astype(np.float32)
    else:
        out = data.view(np.int32).astype(np.float32)
    return out.reshape(rows, cols).astype(np.float32, copy=False)
