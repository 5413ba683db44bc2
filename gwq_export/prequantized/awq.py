"""AWQ in its GEMM layout: integers of 4 bits, eight rows to a word, with scale and zero point."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gwq_export.errors import GwqError
from gwq_export.prequantized.bits import unpack, words
from gwq_export.prequantized.gptq import check_groups, group_size
from gwq_export.prequantized.scales import affine
from gwq_export.prequantized.scheme import (
    ORIGINAL,
    Pieces,
    Read,
    Scheme,
    Settings,
    Shape,
    Tensors,
    matrix_shape,
    wrong,
)

if TYPE_CHECKING:
    import torch

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the rows in a word, lowest bits first


def schemes(config: Settings) -> list[Scheme]:
    """Of an AWQ checkpoint. Raises GwqError for a layout or a number of bits that is not read."""
    layout = config.get("version") or config.get("format") or "gemm"
    if str(layout).lower() != "gemm":
        raise GwqError(f"AWQ's layout {layout!r} is not read (its gemm is): {ORIGINAL}")
    bits = config.get("bits", config.get("w_bit", BITS))
    if bits != BITS:
        raise GwqError(f"AWQ with {bits!r} bits is not read (with 4 bits it is): {ORIGINAL}")
    size = group_size({"group_size": config.get("group_size", config.get("q_group_size", 128))})
    return [
        Scheme(
            name="AWQ with 4 bits",
            parts={"qweight": "codes", "qzeros": "zero", "scales": "scale"},
            codes=frozenset({"I32"}),
            needed=frozenset({"zero", "scale"}),
            shape=partial(_shape, size),
            decode=partial(_decode, size),
        )
    ]


def _shape(size: int, pieces: Pieces, read: Read) -> Shape:
    """(rows, columns). qweight is (columns, words of the rows), scales (groups, rows)."""
    codes, zero = pieces["codes"], pieces["zero"]
    cols, packed = matrix_shape(codes)
    rows = packed * 32 // BITS
    groups = check_groups(pieces["scale"], rows, cols, size)
    if zero.dtype != "I32" or zero.shape != (groups, words(rows, BITS)):
        raise wrong(zero, f"holds no zero points of 4 bits for {groups} groups of {rows} rows")
    return rows, cols


def _decode(size: int, tensors: Tensors) -> torch.Tensor:
    import torch

    scale = tensors["scale"]  # (groups, rows)
    cols = len(tensors["codes"])
    group = torch.arange(cols) // (cols if size == -1 else size)
    return affine(_rows(tensors["codes"]), scale.T, _rows(tensors["zero"]), group)


def _rows(packed: torch.Tensor) -> torch.Tensor:
    """(n, words) int32 -> the numbers in it in the order of rows, uint8 (rows, n)."""
    return unpack(packed, BITS, packed.shape[1] * 8, ORDER).T.contiguous()
