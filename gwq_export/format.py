"""The bytes of a tensor: sizes read from the C headers, and a numpy encoder and decoder that are the specification.

Every kernel must decode to the same float32 bits as `dequantize` here. `gwq_format.h` draws the layout.
"""

import re
from dataclasses import dataclass
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
ROWS, BLOCK, TILE, TILE_BLOCKS = (_geometry[f"GWQ_{k}"] for k in ("ROWS", "BLOCK", "TILE", "TILE_BLOCKS"))


@dataclass(frozen=True)
class TensorType:
    """A tensor type: `unit` columns of one row take `unit_bytes` bytes; `bits` per code of a tile type, else 0."""

    name: str
    id: int
    unit: int
    unit_bytes: int
    bits: int = 0

    @property
    def zero(self):
        """The code of weight zero."""
        return 1 << (self.bits - 1)

    @property
    def lines(self):
        """64-byte lines per block of 16 rows x 64 columns."""
        return 2 * self.bits

    def nbytes(self, rows, cols):
        """Bytes of a (rows, cols) tensor. Raises GwqError when a stock type cannot hold that width."""
        if self.bits:
            return -(-rows // ROWS) * ROWS * -(-cols // BLOCK) * self.unit_bytes
        if cols % self.unit:
            raise GwqError(f"type {self.name} needs a width that is a multiple of {self.unit}, got {cols}: choose f16")
        return rows * (cols // self.unit) * self.unit_bytes


def _tile_type(name):
    size = ffi.sizeof(f"struct {name}_tile")
    lines = ffi.typeof(f"struct {name}_tile").fields
    bits = dict(lines)["line"].type.length // (2 * TILE_BLOCKS)
    return TensorType(name, _enum[f"GWQ_TYPE_{name.upper()}"], BLOCK, size // (TILE_BLOCKS * ROWS), bits)


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


# --- tiles ----------------------------------------------------------------------------------------------------------


def _pack_gwq4(codes):
    c = codes.reshape(*codes.shape[:-1], 8, 2, 4)  # (..., 16, j, half, i)
    return np.moveaxis(c[..., 0, :] | c[..., 1, :] << 4, -3, -2)[..., None, :, :]  # (..., j, 1, 16, i)


def _unpack_gwq4(v):
    v = np.moveaxis(v[..., 0, :, :], -3, -2)  # (..., 16, j, i)
    return np.stack([v & 15, v >> 4], axis=-2)


def _pack_gwq2(codes):
    c = codes.reshape(*codes.shape[:-1], 4, 4, 4)  # (..., 16, j, p, i)
    packed = c[..., 0, :] | c[..., 1, :] << 2 | c[..., 2, :] << 4 | c[..., 3, :] << 6
    return np.moveaxis(packed, -3, -2)[..., None, :, :]


def _unpack_gwq2(v):
    v = np.moveaxis(v[..., 0, :, :], -3, -2)
    return np.stack([v >> s & 3 for s in (0, 2, 4, 6)], axis=-2)


def _pack_gwq3(codes):
    c = codes.reshape(*codes.shape[:-1], 2, 8, 4)  # (..., 16, j, p, i)
    v = [np.moveaxis(c[..., p, :], -3, -2) for p in range(8)]  # each (..., j, 16, i)
    a = v[0] | v[1] << 3 | (v[6] & 3) << 6
    b = v[2] | v[3] << 3 | (v[7] & 3) << 6
    c = v[4] | v[5] << 3 | v[6] >> 2 << 6 | v[7] >> 2 << 7
    return np.stack([a, b, c], axis=-3)


def _unpack_gwq3(v):
    a, b, c = (np.moveaxis(v[..., k, :, :], -3, -2) for k in range(3))  # each (..., 16, j, i)
    v6, v7 = a >> 6 | c >> 4 & 4, b >> 6 | c >> 5 & 4
    return np.stack([a & 7, a >> 3 & 7, b & 7, b >> 3 & 7, c & 7, c >> 3 & 7, v6, v7], axis=-2)


# codes (..., 16, 64) uint8 <-> lines (..., j, lines per j, 16, 4) uint8
_PACK = {"gwq2": (_pack_gwq2, _unpack_gwq2, 1), "gwq3": (_pack_gwq3, _unpack_gwq3, 3), "gwq4": (_pack_gwq4, _unpack_gwq4, 1)}


def _tile_runs(blocks):
    """(first block, tiles, blocks per tile) of the full tiles of a row group and of its last, narrower one."""
    full = blocks // TILE_BLOCKS * TILE_BLOCKS
    return [r for r in ((0, full // TILE_BLOCKS, TILE_BLOCKS), (full, 1, blocks - full)) if r[1] and r[2]]


def pack_tiles(type, scales, codes):
    """Lay out a tile tensor.

    scales (rows, ceil(cols/64)) float16 and codes (rows, cols) uint8 in 0 .. 2^bits-1; returns uint8 (nbytes,).
    """
    rows, cols = codes.shape
    groups, blocks = -(-rows // ROWS), -(-cols // BLOCK)
    full = np.full((groups * ROWS, blocks * BLOCK), type.zero, np.uint8)
    full[:rows, :cols] = codes
    d = np.zeros((groups * ROWS, blocks), np.float16)
    d[:rows] = scales
    full = full.reshape(groups, ROWS, blocks, BLOCK).swapaxes(1, 2)  # (groups, blocks, 16, 64)
    d = d.reshape(groups, ROWS, blocks).swapaxes(1, 2)  # (groups, blocks, 16)
    lines = _PACK[type.name][0](full).reshape(groups, blocks, type.lines * BLOCK)
    d = np.ascontiguousarray(d).view(np.uint8).reshape(groups, blocks, 2 * ROWS)
    out = []
    for first, tiles, nb in _tile_runs(blocks):
        part = slice(first, first + tiles * nb)
        out.append(
            np.concatenate([d[:, part].reshape(groups, tiles, -1), lines[:, part].reshape(groups, tiles, -1)], -1).reshape(groups, -1)
        )
    return np.concatenate(out, axis=1).reshape(-1)


def unpack_tiles(type, data, rows, cols):
    """Inverse of `pack_tiles`: (scales (rows, ceil(cols/64)) float16, codes (rows, cols) uint8)."""
    groups, blocks = -(-rows // ROWS), -(-cols // BLOCK)
    _, unpack, per_j = _PACK[type.name]
    data = np.asarray(data, np.uint8).reshape(groups, -1)
    scales = np.empty((groups, blocks, ROWS), np.float16)
    codes = np.empty((groups, blocks, ROWS, BLOCK), np.uint8)
    at = 0
    for first, tiles, nb in _tile_runs(blocks):
        size = tiles * nb * ROWS * type.unit_bytes
        part = data[:, at : at + size].reshape(groups, tiles, -1)
        at += size
        head = np.ascontiguousarray(part[..., : nb * 2 * ROWS])
        scales[:, first : first + tiles * nb] = head.view(np.float16).reshape(groups, tiles * nb, ROWS)
        lines = part[..., nb * 2 * ROWS :].reshape(groups, tiles * nb, type.lines // per_j, per_j, ROWS, 4)
        codes[:, first : first + tiles * nb] = unpack(lines).reshape(groups, tiles * nb, ROWS, BLOCK)
    scales = scales.swapaxes(1, 2).reshape(groups * ROWS, blocks)[:rows]
    return scales, codes.swapaxes(1, 2).reshape(groups * ROWS, blocks * BLOCK)[:rows, :cols]


def check_tiles(type, data, shape, outliers=None):
    """Raise GwqError unless padding, and every code under an outlier, is the zero code, and every scale is finite.

    Kernels add the side-table to the dense part, so a dense code under an outlier would count twice.
    """
    rows, cols = shape
    scales, codes = unpack_tiles(type, data, -(-rows // ROWS) * ROWS, -(-cols // BLOCK) * BLOCK)
    if not np.isfinite(scales).all():
        raise GwqError("a scale is not finite; the file is damaged, export it again")
    if (codes[rows:] != type.zero).any() or (codes[:, cols:] != type.zero).any():
        raise GwqError("padding holds a weight; the file is damaged, export it again")
    if outliers is not None:
        row, col, value = unpack_outliers(*outliers, shape)
        if (codes[row, col] != type.zero).any():
            raise GwqError("a weight under an outlier is not the zero code; the file is damaged, export it again")
        if not np.isfinite(value).all():
            raise GwqError("an outlier is not finite; the file is damaged, export it again")


# --- outlier side-table ---------------------------------------------------------------------------------------------


def outlier_bytes(rows, cols, count):
    """(bytes of `.outliers`, entries of `.outlier_offsets`) of a matrix with `count` outliers."""
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    return groups * tiles * ROWS + 3 * count, groups + 1


def pack_outliers(row, col, value, shape):
    """Lay out a side-table.

    row, col: integer (n,) positions, each at most once and at most 255 in one row of a tile; value (n,) float16;
    shape (rows, cols). Returns (records uint8, offsets int32).
    """
    rows, cols = shape
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    order = np.lexsort((col, row))
    row, col, value = np.asarray(row)[order], np.asarray(col)[order], np.asarray(value, np.float16)[order]
    tile = row // ROWS * tiles + col // TILE
    slot = tile * ROWS + row % ROWS  # (tile, row of the tile)
    by_slot = np.argsort(slot, kind="stable")  # columns stay ascending within a slot
    row, col, value, tile, slot = (a[by_slot] for a in (row, col, value, tile, slot))
    counts = np.bincount(slot, minlength=groups * tiles * ROWS)
    if counts.max(initial=0) > 255:
        raise GwqError("more than 255 outliers in one row of a 256-column tile: lower --outliers")
    level = np.arange(len(slot)) - (np.cumsum(counts) - counts)[slot]
    order = np.lexsort((row, level, tile))
    col, value, tile = col[order], value[order], tile[order]
    n = counts.reshape(-1, ROWS).sum(1)
    start = np.concatenate([[0], np.cumsum(ROWS + 3 * n)])  # byte of each tile's record
    out = np.empty(start[-1], np.uint8)
    out[start[:-1, None] + np.arange(ROWS)] = counts.reshape(-1, ROWS)
    k = np.arange(len(tile)) - (np.cumsum(n) - n)[tile]
    at = start[tile] + ROWS + 2 * k
    out[at[:, None] + np.arange(2)] = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 2)
    out[start[tile] + ROWS + 2 * n[tile] + k] = col % TILE
    return out, start[::tiles].astype(np.int32)


def unpack_outliers(records, offsets, shape):
    """Inverse of `pack_outliers`: (row, col, value), sorted by row and column.

    Raises GwqError for a table that is not exactly what `pack_outliers` can write.
    """
    rows, cols = shape
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    records, offsets = np.asarray(records, np.uint8), np.asarray(offsets, np.int32).astype(np.int64)
    if len(offsets) != groups + 1 or offsets[0] != 0 or offsets[-1] != len(records) or (np.diff(offsets) < 0).any():
        raise GwqError("outlier table: offsets do not ascend from 0 to its end; the file is damaged, export it again")
    at, parts = offsets[:-1].copy(), []
    for t in range(tiles):
        if (at + ROWS > offsets[1:]).any():
            raise GwqError("outlier table: a record is longer than its row group; the file is damaged, export it again")
        counts = records[at[:, None] + np.arange(ROWS)].astype(np.int64)  # (groups, 16)
        n = counts.sum(1)
        if (at + ROWS + 3 * n > offsets[1:]).any():
            raise GwqError("outlier table: a record is longer than its row group; the file is damaged, export it again")
        g = np.repeat(np.arange(groups), n)
        k = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        # entry k of a tile: the k-th (level, row) pair with counts[row] > level
        r = np.repeat(np.tile(np.arange(ROWS), groups), counts.reshape(-1))
        level = np.arange(len(r)) - np.repeat(np.cumsum(counts.reshape(-1)) - counts.reshape(-1), counts.reshape(-1))
        r = r[np.lexsort((r, level, g))]
        base = at[g] + ROWS
        col = t * TILE + records[base + 2 * n[g] + k].astype(np.int64)
        value = np.ascontiguousarray(records[(base + 2 * k)[:, None] + np.arange(2)]).view(np.float16).reshape(-1)
        parts.append((g * ROWS + r, col, value))
        at += ROWS + 3 * n
    if (at != offsets[1:]).any():
        raise GwqError("outlier table: records do not fill their row group; the file is damaged, export it again")
    row, col, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    # columns of a row ascend with the level; `parts` runs level by level, so a stable sort by row must ascend
    order = np.argsort(row, kind="stable")
    row, col, value = row[order], col[order], value[order]
    if (row >= rows).any() or (col >= cols).any() or ((np.diff(row) == 0) & (np.diff(col) <= 0)).any():
        raise GwqError("outlier table: an index is out of range or out of order; the file is damaged, export it again")
    return row, col, value


# --- whole tensors --------------------------------------------------------------------------------------------------


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


def dequantize(type, data, shape, outliers=None):
    """float32 (rows, cols) of a tensor: the value every kernel must reproduce to the bit.

    data: its bytes (uint8); outliers: None or (records uint8, offsets int32). Raises GwqError for a bad side-table.
    """
    rows, cols = shape
    if not type.bits:
        return decode_stock(type, data, rows, cols)
    scales, codes = unpack_tiles(type, data, rows, cols)
    out = codes.astype(np.float32) - np.float32(type.zero)
    out *= np.repeat(scales.astype(np.float32), BLOCK, axis=1)[:, :cols]
    if outliers is not None:
        row, col, value = unpack_outliers(*outliers, shape)
        out[row, col] = value
    return out
