"""Weights in FP8 (e4m3 or e5m2) with a scale for the whole matrix, for every row or every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gwq_export.errors import GwqError
from gwq_export.prequantized.scales import Block, check_scale, scaled
from gwq_export.prequantized.scheme import (
    Pieces,
    Read,
    Scheme,
    Shape,
    Tensors,
    matrix_shape,
    positive,
)

if TYPE_CHECKING:
    import torch

FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
# of activations and of the KV cache
ACTIVATIONS = frozenset(
    {
        *("activation_scale", "input_scale", "input_scale_ub", "output_scale"),
        *("k_scale", "v_scale", "q_scale", "qscale_act"),
    }
)


def scheme(name: str, blocks: Sequence[Block] = ()) -> Scheme:
    """FP8 codes in `weight`; blocks: that may have a scale each."""
    return Scheme(
        name=name,
        parts={
            "weight": "codes",
            **dict.fromkeys(("weight_scale_inv", "weight_scale", "qscale_weight"), "scale"),
        },
        codes=FP8,
        needed=frozenset({"scale"}),
        shape=partial(_shape, blocks),
        decode=partial(_decode, blocks),
        unused=ACTIVATIONS,
    )


def block_sizes(config: Mapping[str, Any], default: Block) -> list[Block]:
    """`weight_block_size` of a config, two positive numbers; null for no blocks."""
    value = config.get("weight_block_size", default)
    if value is None:
        return []
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    if not pair or not all(map(positive, value)):
        raise GwqError(
            f"weight_block_size is {value!r}, expected two positive numbers; "
            "download the model again"
        )
    return [(value[0], value[1])]


def _shape(blocks: Sequence[Block], pieces: Pieces, read: Read) -> Shape:
    shape = matrix_shape(pieces["codes"])
    check_scale(shape, pieces["scale"], blocks)
    return shape


def _decode(blocks: Sequence[Block], tensors: Tensors) -> torch.Tensor:
    return scaled(tensors["codes"].float(), tensors["scale"], blocks)
