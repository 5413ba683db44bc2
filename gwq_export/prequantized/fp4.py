"""Weights in FP4 (e2m1), two to a byte, with a scale for every 16 (NVFP4) or 32 (MXFP4) columns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gwq_export.prequantized.bits import unpack
from gwq_export.prequantized.fp8 import ACTIVATIONS
from gwq_export.prequantized.scales import as_scale, scaled
from gwq_export.prequantized.scheme import Pieces, Read, Scheme, Shape, Tensors, matrix_shape, wrong

if TYPE_CHECKING:
    import torch

# what the codes 0 to 7 stand for; 8 to 15 are the same below zero
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_GROUPS = {"F8_E4M3": 16, "U8": 32, "F8_E8M0": 32}  # type of the scales -> columns that share one
_ROWS = 256  # of a matrix that are worked on at once


def scheme(name: str, codes: str, overall: str, divides: bool) -> Scheme:
    """FP4 codes in the tensor `codes`.

    overall: ending of the tensor of a number for the whole matrix, which NVFP4 has beside its
    scales; divides: the scales are divided by it, else multiplied.
    """
    return Scheme(
        name=name,
        parts={codes: "codes", "weight_scale": "scale", overall: "overall"},
        codes=frozenset({"U8"}),
        needed=frozenset({"scale"}),
        shape=_shape,
        decode=partial(_decode, divides),
        unused=ACTIVATIONS | {"input_global_scale"},
    )


def _shape(pieces: Pieces, read: Read) -> Shape:
    codes, scale, overall = pieces["codes"], pieces["scale"], pieces.get("overall")
    rows, packed = matrix_shape(codes)
    cols = 2 * packed
    group = _GROUPS.get(scale.dtype)
    if group is None or cols % group or scale.shape != (rows, cols // group):
        raise wrong(scale, f"holds no scales for FP4 codes of {rows}x{cols}")
    if (overall is None) != (group == 32):
        raise wrong(
            scale, "is to have a number for the whole matrix beside it with FP8 scales only"
        )
    if overall is not None and (overall.dtype != "F32" or overall.shape not in ((), (1,))):
        raise wrong(overall, "is no single number")
    return rows, cols


def _decode(divides: bool, tensors: Tensors) -> torch.Tensor:
    import torch

    packed, scale = tensors["codes"], as_scale(tensors["scale"])
    rows, cols = len(packed), 2 * packed.shape[1]
    levels = torch.tensor([*LEVELS, *(-level for level in LEVELS)])
    value = torch.empty((rows, cols), dtype=torch.float32)
    for first in range(0, rows, _ROWS):
        part = packed[first : first + _ROWS]
        codes = unpack(part, 4, cols).reshape(-1).int()
        value[first : first + _ROWS] = levels.index_select(0, codes).view(len(part), cols)
    if "overall" in tensors:
        overall = tensors["overall"].float().reshape(())
        scale = scale / overall if divides else scale * overall
    return scaled(value, scale, [(1, cols // scale.shape[1])])
