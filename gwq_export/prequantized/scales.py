"""Numbers that belong to a matrix, its rows, groups of columns or blocks: scales, zero points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gwq_export.prequantized.scheme import Piece, Shape, divided, wrong

if TYPE_CHECKING:
    import torch

Block = tuple[int, int]  # rows and columns that share a number; groups of columns are (1, n)
SCALES = {"F64", "F32", "F16", "BF16", "F8_E8M0", "U8"}
_ROWS = 256  # of a matrix that are worked on at once


def grid(shape: Shape, scale: Shape, blocks: Sequence[Block]) -> Block | None:
    """The block of a matrix of this shape that has one number of `scale`, None if none fits.

    blocks: that the config names, beside the whole matrix and its rows.
    """
    rows, cols = shape
    if scale in ((), (1,), (1, 1)):
        return rows, cols
    if scale in ((rows,), (rows, 1)):
        return 1, cols
    fitting = {b for b in blocks if scale == (divided(rows, b[0]), divided(cols, b[1]))}
    return fitting.pop() if len(fitting) == 1 else None


def check_scale(shape: Shape, scale: Piece, blocks: Sequence[Block]) -> None:
    """Raise GwqError unless `scale` holds numbers for a matrix, its rows or one kind of blocks."""
    if scale.dtype not in SCALES or grid(shape, scale.shape, blocks) is None:
        rows, cols = shape
        named = "".join(f", or blocks of {a}x{b}" for a, b in blocks)
        raise wrong(scale, f"holds no scales for a matrix of {rows}x{cols}, its rows{named}")


def as_scale(scale: torch.Tensor) -> torch.Tensor:
    """A tensor of scales, float32. A byte b stands for 2^(b - 127), as in F8_E8M0."""
    if scale.element_size() == 1 and not scale.is_floating_point():
        return (scale.float() - 127).exp2()
    return scale.float()


def scaled(value: torch.Tensor, scale: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """value (rows, cols) float32, multiplied in place by the scales that belong to its parts."""
    return _spread(value, as_scale(scale), blocks, "mul_")


def shifted(value: torch.Tensor, zero: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """value (rows, cols) float32, less in place the zero points that belong to its parts."""
    return _spread(value, zero.float(), blocks, "sub_")


def _spread(
    value: torch.Tensor, numbers: torch.Tensor, blocks: Sequence[Block], change: str
) -> torch.Tensor:
    rows, cols = value.shape
    height, width = grid((rows, cols), tuple(numbers.shape), blocks) or (rows, cols)
    numbers = numbers.reshape(divided(rows, height), divided(cols, width))
    whole = cols // width
    by_row = numbers.repeat_interleave(height, 0)[:rows]  # (rows, blocks in a row)
    inside = value[:, : whole * width].unflatten(1, (whole, width))
    getattr(inside, change)(by_row[:, :whole, None])
    if cols % width:
        getattr(value[:, whole * width :], change)(by_row[:, whole:])
    return value


def affine(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    """(codes - zero) x scale, float32 (rows, cols).

    codes (rows, cols) of integers, scale and zero (rows, groups), group (cols,): of each column.
    """
    import torch

    scale, zero = scale.float().contiguous(), zero.float().contiguous()
    size = int((group == 0).sum()) or 1
    in_order = torch.arange(len(group)) // size
    if torch.equal(group, in_order) and scale.shape[1] == int(in_order[-1]) + 1:
        return scaled(shifted(codes.float(), zero, [(1, size)]), scale, [(1, size)])
    value = torch.empty(codes.shape, dtype=torch.float32)
    for first in range(0, len(codes), _ROWS):
        rows = slice(first, first + _ROWS)
        torch.sub(codes[rows].float(), zero[rows].index_select(1, group), out=value[rows])
        value[rows].mul_(scale[rows].index_select(1, group))
    return value
