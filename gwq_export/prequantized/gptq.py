"""GPTQ: integers with scale and zero point for groups of columns, of which any may be anywhere."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gwq_export.errors import GwqError
from gwq_export.prequantized.bits import unpack, words
from gwq_export.prequantized.scales import affine
from gwq_export.prequantized.scheme import (
    ORIGINAL,
    Piece,
    Pieces,
    Read,
    Scheme,
    Settings,
    Shape,
    Tensors,
    divided,
    matrix_shape,
    wrong,
)

if TYPE_CHECKING:
    import torch

BITS = (2, 3, 4, 8)
# what the first format takes off every word of zero points: one from each number in it
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_FORMATS = ("gptq", "gptq_v2")


def schemes(config: Settings) -> list[Scheme]:
    """Of a GPTQ checkpoint. Raises GwqError for a layout or a number of bits that is not read."""
    kind = config.get("checkpoint_format") or config.get("format") or "gptq"
    if kind not in _FORMATS:
        raise GwqError(f"GPTQ's layout {kind!r} is not read (read are: gptq, gptq_v2): {ORIGINAL}")
    single = config.get("dynamic")
    if single and (not isinstance(single, dict) or any(single.values())):
        raise GwqError(
            f"settings of their own for some matrices (GPTQ's `dynamic`) are not read: {ORIGINAL}"
        )
    bits = config.get("bits")
    if bits not in BITS:
        raise GwqError(f"GPTQ with {bits!r} bits is not read (read are: 2, 3, 4, 8): {ORIGINAL}")
    return [
        Scheme(
            name=f"GPTQ with {bits} bits",
            parts={"qweight": "codes", "qzeros": "zero", "scales": "scale", "g_idx": "group"},
            codes=frozenset({"I32"}),
            needed=frozenset({"zero", "scale"}),
            shape=partial(_shape, bits, group_size(config)),
            decode=partial(_decode, bits, group_size(config), kind == "gptq"),
        )
    ]


def group_size(config: Settings) -> int:
    """`group_size` of a config, -1 for one group of all columns. Raises GwqError."""
    size = config.get("group_size", 128)
    if type(size) is not int or (size < 1 and size != -1):
        raise GwqError(f"group_size is {size!r}, expected a positive number or -1")
    return size


def _shape(bits: int, size: int, pieces: Pieces, read: Read) -> Shape:
    """(rows, columns). qweight is (words of the columns, rows), scales (groups, rows)."""
    codes, group = pieces["codes"], pieces.get("group")
    lines, rows = matrix_shape(codes)
    cols = lines * 32 // bits
    if group is not None:
        if len(group.shape) != 1 or words(group.shape[0], bits) != lines:
            raise wrong(
                group, f"does not fit {codes.name}, which has {cols} columns of {bits} bits"
            )
        cols = group.shape[0]
    groups = check_groups(pieces["scale"], rows, cols, size)
    zero = pieces["zero"]
    if zero.dtype != "I32" or zero.shape != (groups, words(rows, bits)):
        raise wrong(zero, f"holds no zero points of {bits} bits for {groups} groups of {rows} rows")
    if group is not None:
        check_index(group, groups, read)
    return rows, cols


def check_groups(scale: Piece, rows: int, cols: int, size: int) -> int:
    """How many groups of `size` columns there are. Raises GwqError unless `scale` is that high."""
    groups = 1 if size == -1 else divided(cols, size)
    if scale.dtype not in ("F16", "BF16", "F32") or scale.shape != (groups, rows):
        raise wrong(scale, f"holds no scales for {groups} groups of {rows} rows")
    return groups


def check_index(group: Piece, groups: int, read: Read) -> None:
    """Raise GwqError unless `group` names one of the groups for every column."""
    if group.dtype not in ("I32", "I64"):
        raise wrong(group, "holds no numbers of groups")
    index = read(group.name)
    if bool(((index < 0) | (index >= groups)).any()):
        raise wrong(group, f"names groups from {index.min()} to {index.max()}, of {groups}")


def _decode(bits: int, size: int, first_format: bool, tensors: Tensors) -> torch.Tensor:
    import torch

    zero, scale = tensors["zero"], tensors["scale"]  # (groups, words of rows), (groups, rows)
    rows = scale.shape[1]
    if first_format and bits in _ONES:
        zero = zero + _ONES[bits]  # numbers that fell below 0 had borrowed from their neighbours
    zero = unpack(zero, bits, rows)
    if first_format and bits not in _ONES:
        zero = (zero + 1) & ((1 << bits) - 1)
    packed = tensors["codes"].T  # (rows, words)
    group = tensors.get("group")
    if group is None:
        cols = packed.shape[1] * 32 // bits
        group = torch.arange(cols) // (cols if size == -1 else size)
    codes = unpack(packed, bits, len(group))
    return affine(codes, scale.T, zero.T, group.long())
