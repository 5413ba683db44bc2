"""Tensor types and their sizes, as the C headers declare them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gwq_export.errors import GwqError

BUILD_COMMAND = "python native/build.py"


def _declarations() -> Any:
    """The module in which the build has put what the C headers declare."""
    path = Path(__file__).parents[1] / "native" / "_abi.py"
    if not path.exists():
        raise GwqError(
            f"{path} is missing: build the native library with `{BUILD_COMMAND}` "
            "or reinstall gwq-export"
        )
    spec = importlib.util.spec_from_file_location("gwq_abi", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_ABI = _declarations()
ABI_HASH: str = _ABI.HASH  # of the headers
ffi = _ABI.ffi
_TYPE_IDS = ffi.typeof("enum gwq_type").relements  # {"GWQ_TYPE_F32": 0, ...}
_GEOMETRY = ffi.typeof("enum gwq_geometry").relements

FORMAT_VERSION: int = _GEOMETRY["GWQ_FORMAT_VERSION"]
ROWS: int = _GEOMETRY["GWQ_ROWS"]  # of a row group
BLOCK: int = _GEOMETRY["GWQ_BLOCK"]  # columns
TILE: int = _GEOMETRY["GWQ_TILE"]  # columns of a full tile
TILE_BLOCKS: int = _GEOMETRY["GWQ_TILE_BLOCKS"]  # blocks of a full tile
HEAD: int = ffi.sizeof("struct gwq_head")  # bytes before the row scales
TABLE = 16  # entries of a tensor's table, and its bytes
EXPONENT_AT: int = ffi.offsetof("struct gwq_head", "exponent")
MAX_EXPONENT: int = _GEOMETRY["GWQ_EXPONENT"]  # magnitude of a tile tensor's exponent
WINDOW_BITS = 4  # a window of up to four bits indexes the table
SCALE_BITS = 6  # of a sub-block's scale
SCALE_BIAS = 32  # is added to a scale in the file
ENTRY_MIN = -32  # of the table
ENTRY_MAX = 31

# ggml types in which each 32 columns share one FP16 scale: what their codes 0 .. 15 stand for
LEVELS: dict[str, tuple[int, ...]] = {
    "q4_0": tuple(range(-8, 8)),
    "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
}


@dataclass(frozen=True)
class TensorType:
    """A tensor type, and how many bytes a tensor of it takes.

    `unit` columns take `unit_bytes` bytes: in one row for a ggml type, in the 16 rows of a row
    group for a tile type (one of this package's, which are laid out in tiles). Fields that a kind
    of type lacks are zero or empty.
    """

    name: str
    id: int  # in the tensor's descriptor in a GGUF file
    unit: int  # columns
    unit_bytes: int
    bits: int = 0  # tile types: of a code
    history: int = 0  # tile types: bits of the neighbour's code in a window
    sub: int = 0  # tile types: columns that share a scale
    levels: tuple[int, ...] = ()  # ggml types with codes: what each code stands for

    @property
    def line_columns(self) -> int:
        """Tile types: columns whose lines belong together, where a short block may end."""
        return 32 if self.bits % 2 else 16

    @property
    def ring(self) -> int:
        """Tile types: codes of a ring, which are each other's neighbours; 1 without history."""
        return _GEOMETRY.get(f"GWQ_RING{self.bits}", 1)

    @property
    def lines(self) -> int:
        """64-byte lines per block of 16 rows x 64 columns: 16 * 64 * bits / 8 / 64."""
        return 2 * self.bits

    def head_bytes(self, rows: int) -> int:
        """Bytes before the tiles: head and row scales, up to a multiple of 64."""
        return -(-(HEAD + 2 * padded_rows(rows)) // 64) * 64

    def stored(self, cols: int) -> int:
        """Columns that a block of `cols` columns stores."""
        return -(-cols // self.line_columns) * self.line_columns

    def block_bytes(self, cols: int) -> tuple[int, int]:
        """Bytes of the scales and of the lines of a block that holds `cols` columns, 1 to 64."""
        stored = self.stored(cols)
        subs = -(-stored // self.sub)
        whole = subs == BLOCK // self.sub
        scales = ROWS * BLOCK // self.sub * SCALE_BITS // 8 if whole else ROWS * subs
        return scales, ROWS * stored * self.bits // 8

    def group_bytes(self, cols: int) -> int:
        """Bytes of the tiles of a row group."""
        blocks, rest = divmod(cols, BLOCK)
        return blocks * self.unit_bytes + (sum(self.block_bytes(rest)) if rest else 0)

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a (rows, cols) tensor.

        Raises GwqError when a ggml type cannot hold that width.
        """
        if self.bits:
            groups = padded_rows(rows) // ROWS
            return self.head_bytes(rows) + groups * self.group_bytes(cols)
        if cols % self.unit:
            raise GwqError(
                f"type {self.name} needs a width that is a multiple of {self.unit}, "
                f"got {cols}: choose f16"
            )
        return rows * (cols // self.unit) * self.unit_bytes

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of one dimension or more. Raises GwqError like `nbytes`."""
        count, rows, cols = matrices(shape)
        return count * self.nbytes(rows, cols)


def matrices(shape: Sequence[int]) -> tuple[int, int, int]:
    """(count, rows, cols) of the matrices that a tensor of this shape consists of.

    A vector is one row; dimensions before the last two count matrices (experts).
    """
    return prod(shape[:-2]), (1, *shape)[-2], shape[-1]


def padded_rows(rows: int) -> int:
    """`rows` rounded up to whole row groups."""
    return -(-rows // ROWS) * ROWS


def _ggml_type(name: str, unit: int, unit_bytes: int, levels: tuple[int, ...] = ()) -> TensorType:
    return TensorType(name, _TYPE_IDS[f"GWQ_TYPE_{name.upper()}"], unit, unit_bytes, levels=levels)


def _tile_type(name: str) -> TensorType:
    """The type whose full tile is `struct <name>_tile`: its arrays say how wide codes are."""
    tile = ffi.typeof(f"struct {name}_tile")
    parts = dict(tile.fields)
    bits = parts["line"].type.length // (2 * TILE_BLOCKS)  # a block has 2 * bits lines
    scale_bytes = parts["scale"].type.item.length  # of a block: ROWS * BLOCK / sub scales
    return TensorType(
        name,
        _TYPE_IDS[f"GWQ_TYPE_{name.upper()}"],
        unit=BLOCK,
        unit_bytes=ffi.sizeof(tile) // TILE_BLOCKS,
        bits=bits,
        history=max(0, WINDOW_BITS - bits),
        sub=BLOCK * ROWS * SCALE_BITS // 8 // scale_bytes,
    )


_TILE_NAMES = sorted(
    id.removeprefix("GWQ_TYPE_").lower() for id in _TYPE_IDS if id.startswith("GWQ_TYPE_GWQ")
)
_Q4_BYTES = ffi.sizeof("struct q4_block")
_ALL = (
    _ggml_type("f32", 1, 4),
    _ggml_type("f16", 1, 2),
    _ggml_type("bf16", 1, 2),
    _ggml_type("q8_0", 32, ffi.sizeof("struct q8_0_block")),
    _ggml_type("q4_0", 32, _Q4_BYTES, LEVELS["q4_0"]),
    _ggml_type("iq4_nl", 32, _Q4_BYTES, LEVELS["iq4_nl"]),
    _ggml_type("i8", 1, 1),
    _ggml_type("i32", 1, 4),
    *map(_tile_type, _TILE_NAMES),
)
TYPES: dict[str, TensorType] = {type.name: type for type in _ALL}
TYPES_BY_ID: dict[int, TensorType] = {type.id: type for type in _ALL}


def tensor_type(name: str) -> TensorType:
    """The TensorType called `name` (any case), or GwqError with the names there are."""
    try:
        return TYPES[name.lower()]
    except KeyError:
        raise GwqError(f"unknown tensor type {name!r}: choose one of {', '.join(TYPES)}") from None
