"""Weights in FP8 (e4m3 or e5m2) with a scale for the whole matrix, for every row or every block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from gwq_export.errors import GwqError
from gwq_export.prequantized.scheme import (
    Piece,
    Pieces,
    Scheme,
    Shape,
    Tensors,
    divided,
    wrong,
)

if TYPE_CHECKING:
    import torch

Block = tuple[int, int]  # rows and columns that share a scale
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
SCALES = {"F64", "F32", "F16", "BF16", "F8_E8M0", "U8"}
_POWER = "U8"  # a byte b in a file of scales is 2^(b - 127), as in F8_E8M0
# of activations and of the KV cache
ACTIVATIONS = frozenset(
    {
        *("activation_scale", "input_scale", "input_scale_ub", "output_scale"),
        *("k_scale", "v_scale", "q_scale", "qscale_act"),
    }
)


def scheme(name: str, block: Block | None) -> Scheme:
    """FP8 codes in `weight`; block: of a scale where there is one for every block."""
    return Scheme(
        name=name,
        parts={
            "weight": "codes",
            **dict.fromkeys(("weight_scale_inv", "weight_scale", "qscale_weight"), "scale"),
        },
        codes=FP8,
        needed=frozenset({"scale"}),
        shape=partial(_shape, block),
        decode=partial(_decode, block),
        unused=ACTIVATIONS,
    )


def block_size(config: Mapping[str, Any], default: Block | None) -> Block | None:
    """`weight_block_size` of a config: two positive numbers, or None for no blocks."""
    value = config.get("weight_block_size", default)
    if value is None:
        return None
    good = isinstance(value, (list, tuple)) and len(value) == 2
    if not good or not all(type(n) is int and n > 0 for n in value):
        raise GwqError(
            f"weight_block_size is {value!r}, expected two positive numbers; "
            "download the model again"
        )
    return value[0], value[1]


def _shape(block: Block | None, pieces: Pieces) -> Shape:
    codes, scale = pieces["codes"], pieces["scale"]
    if len(codes.shape) != 2:
        raise wrong(codes, "is no matrix")
    check_scale(codes.shape, scale, block)
    return codes.shape


def check_scale(shape: Shape, scale: Piece, block: Block | None) -> None:
    """Raise GwqError unless `scale` has one number for a matrix, its rows or its blocks."""
    rows, cols = shape
    grids: list[Shape] = [(), (1,), (1, 1), (rows,), (rows, 1)]
    if block:
        grids.append((divided(rows, block[0]), divided(cols, block[1])))
    if scale.dtype not in SCALES or scale.shape not in grids:
        blocks = f", or blocks of {block[0]}x{block[1]}" if block else ""
        raise wrong(
            scale, f"holds no scales for a matrix of {rows}x{cols}, its rows{blocks} of numbers"
        )


def _decode(block: Block | None, tensors: Tensors) -> torch.Tensor:
    return scaled(tensors["codes"].float(), tensors["scale"], block)


def scaled(value: torch.Tensor, scale: torch.Tensor, block: Block | None) -> torch.Tensor:
    """value (rows, cols) float32, multiplied in place by the scales that belong to its parts."""
    rows, cols = value.shape
    if scale.element_size() == 1 and not scale.is_floating_point():
        scale = (scale.float() - 127).exp2()
    scale = scale.float()
    if scale.numel() == 1:
        return value.mul_(scale.reshape(()))
    if scale.dim() == 1 or scale.shape == (rows, 1) or block is None:
        return value.mul_(scale.reshape(rows, 1))
    by_row = scale.repeat_interleave(block[0], 0)[:rows]  # (rows, blocks in a row)
    whole = cols // block[1]
    inside = value[:, : whole * block[1]].unflatten(1, (whole, block[1]))
    inside.mul_(by_row[:, :whole, None])
    if cols % block[1]:
        value[:, whole * block[1] :].mul_(by_row[:, whole:])
    return value
