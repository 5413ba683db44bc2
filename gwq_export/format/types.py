"""Tensor types and their sizes, read from the C headers."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import cffi

from gwq_export.errors import GwqError

HEADERS = ("gwq_format.h", "gwq.h")
BUILD_COMMAND = "python native/build.py"


def _read_headers(folder):
    """C declarations of both headers, without what cffi cannot parse (directives, the C++ wrapper)."""
    text = ""
    for name in HEADERS:
        path = Path(folder, name)
        if not path.exists():
            raise GwqError(
                f"{path} is missing: build the native library with `{BUILD_COMMAND}` or reinstall gwq-export"
            )
        text += path.read_text()
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
    return re.sub(r"^#.*$", "", text, flags=re.M)


ffi = cffi.FFI()
ffi.cdef(_read_headers(Path(__file__).parents[1] / "native"))
_enum = ffi.typeof("enum gwq_type").relements  # {"GWQ_TYPE_F32": 0, ...}
_geometry = ffi.typeof("enum gwq_geometry").relements
FORMAT_VERSION = _geometry["GWQ_FORMAT_VERSION"]
ROWS, RING, BLOCK, TILE, TILE_BLOCKS = (
    _geometry[f"GWQ_{k}"] for k in ("ROWS", "RING", "BLOCK", "TILE", "TILE_BLOCKS")
)
TABLE = ffi.sizeof("struct gwq_head")  # entries, and bytes
WINDOW_BITS = 4
SCALE_BITS, SCALE_BIAS = 6, 32
ENTRY_MIN, ENTRY_MAX = -32, 31
# What the codes of ggml types stand for in which each 32 columns have one FP16 scale
LEVELS = {
    "q4_0": tuple(range(-8, 8)),
    "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
}


@dataclass(frozen=True)
class TensorType:
    """A tensor type: `unit` columns take `unit_bytes` bytes, in one row of a ggml type, in the 16
    rows of a group of a tile type.

    Tile types also have the `bits` of a code, the bits of `history` that a neighbour adds to its
    window, and `sub`, the columns that share a scale; ggml types have zeros there. ggml types of
    codes have the `levels` these stand for.
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
        """Bytes of a (rows, cols) tensor.

        Raises GwqError when a ggml type cannot hold that width.
        """
        if self.bits:
            return (
                self.head_bytes(rows)
                + padded_rows(rows) // ROWS * -(-cols // BLOCK) * self.unit_bytes
            )
        if cols % self.unit:
            raise GwqError(
                f"type {self.name} needs a width that is a multiple of {self.unit}, got {cols}: choose f16"
            )
        return rows * (cols // self.unit) * self.unit_bytes

    def size(self, shape):
        """Bytes of a tensor of one dimension or more. Raises GwqError like `nbytes`."""
        count, rows, cols = matrices(shape)
        return count * self.nbytes(rows, cols)


def matrices(shape):
    """(count, rows, cols) of a tensor's shape: a vector is one row; dimensions before the last two
    count matrices (experts).
    """
    return prod(shape[:-2]), (1, *shape)[-2], shape[-1]


def padded_rows(rows):
    """Rows of whole row groups."""
    return -(-rows // ROWS) * ROWS


def _tile_type(name):
    parts = dict(ffi.typeof(f"struct {name}_tile").fields)
    bits, scales = parts["line"].type.length // (2 * TILE_BLOCKS), parts["scale"].type.item.length
    sub = BLOCK * ROWS * SCALE_BITS // 8 // scales
    block = ffi.sizeof(f"struct {name}_tile") // TILE_BLOCKS
    return TensorType(
        name, _enum[f"GWQ_TYPE_{name.upper()}"], BLOCK, block, bits, WINDOW_BITS - bits, sub
    )


TYPES = {
    t.name: t
    for t in [
        TensorType("f32", _enum["GWQ_TYPE_F32"], 1, 4),
        TensorType("f16", _enum["GWQ_TYPE_F16"], 1, 2),
        TensorType("bf16", _enum["GWQ_TYPE_BF16"], 1, 2),
        TensorType("q8_0", _enum["GWQ_TYPE_Q8_0"], 32, ffi.sizeof("struct q8_0_block")),
        *(
            TensorType(
                name, _enum[f"GWQ_TYPE_{name.upper()}"], 32, ffi.sizeof("struct q4_block"), levels=v
            )
            for name, v in LEVELS.items()
        ),
        TensorType("i8", _enum["GWQ_TYPE_I8"], 1, 1),
        TensorType("i32", _enum["GWQ_TYPE_I32"], 1, 4),
        *(
            _tile_type(name[9:].lower())
            for name in sorted(_enum)
            if name.startswith("GWQ_TYPE_GWQ")
        ),
    ]
}
TYPES_BY_ID = {t.id: t for t in TYPES.values()}


def tensor_type(name):
    """The TensorType called `name` (any case), or GwqError with the names there are."""
    try:
        return TYPES[name.lower()]
    except KeyError:
        raise GwqError(f"unknown tensor type {name!r}: choose one of {', '.join(TYPES)}") from None
