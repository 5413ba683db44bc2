"""bitsandbytes: levels of a table with a scale for each run of weights (NF4, FP4), or bytes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

from gwq_export.errors import GwqError
from gwq_export.prequantized.scheme import (
    Pieces,
    Read,
    Scheme,
    Settings,
    Shape,
    Tensors,
    divided,
    matrix_shape,
    positive,
    wrong,
)

if TYPE_CHECKING:
    import torch

_STATE = "weight.quant_state.bitsandbytes__"
_LEVELS, _BYTE = 16, 256  # numbers in the tables of 4 and 8 bits
_AT_ONCE = 1 << 20  # bytes of codes
_TOP = 127  # of a byte


class State(NamedTuple):
    """What the JSON text beside a matrix says of it."""

    shape: Shape
    run: int  # weights that share a scale, row after row
    nested_run: int  # scales that share one, where they are quantized themselves; else 0
    offset: float  # what is added to such scales


def schemes(config: Settings) -> list[Scheme]:
    """Of a bitsandbytes checkpoint, which may have both."""
    return [
        Scheme(
            name="bitsandbytes (4 bits)",
            parts={
                "weight": "codes",
                "weight.absmax": "scale",
                "weight.quant_map": "levels",
                "weight.nested_absmax": "nested scale",
                "weight.nested_quant_map": "nested levels",
                f"{_STATE}nf4": "state",
                f"{_STATE}fp4": "state",
            },
            codes=frozenset({"U8"}),
            needed=frozenset({"scale", "levels", "state"}),
            shape=_shape_of_levels,
            decode=_decode_levels,
        ),
        Scheme(
            name="bitsandbytes (8 bits)",
            parts={"weight": "codes", "SCB": "scale", "weight_format": "format"},
            codes=frozenset({"I8"}),
            needed=frozenset({"scale"}),
            shape=_shape_of_bytes,
            decode=_decode_bytes,
        ),
    ]


def _state(text: torch.Tensor) -> State:
    """Of a tensor of UTF-8. Raises GwqError."""
    try:
        said = json.loads(bytes(text.tolist()).decode())
        rows, cols = said["shape"]
        nested = "nested_blocksize" in said
        state = State(
            (rows, cols),
            said["blocksize"],
            said["nested_blocksize"] if nested else 0,
            float(said["nested_offset"]) if nested else 0.0,
        )
    except (ValueError, KeyError, TypeError) as e:
        raise GwqError(f"its settings cannot be read ({e!r}); download the model again") from None
    if not all(map(positive, (rows, cols, state.run, state.nested_run or 1))):
        raise GwqError(f"its settings cannot be: {said}; download the model again")
    return state


def _shape_of_levels(pieces: Pieces, read: Read) -> Shape:
    codes, scale, levels = pieces["codes"], pieces["scale"], pieces["levels"]
    if pieces["state"].dtype != "U8" or len(pieces["state"].shape) != 1:
        raise wrong(pieces["state"], "holds no settings")
    state = _state(read(pieces["state"].name))
    rows, cols = state.shape
    if math.prod(codes.shape) != divided(rows * cols, 2):
        raise wrong(codes, f"holds no matrix of {rows}x{cols} with 4 bits")
    runs = divided(rows * cols, state.run)
    if levels.dtype != "F32" or levels.shape != (_LEVELS,):
        raise wrong(levels, f"is no table of {_LEVELS} levels")
    if scale.dtype != ("U8" if state.nested_run else "F32") or scale.shape != (runs,):
        raise wrong(scale, f"holds no scales for {runs} runs of {state.run} weights")
    if state.nested_run:
        for part, count in (
            ("nested scale", divided(runs, state.nested_run)),
            ("nested levels", _BYTE),
        ):
            piece = pieces.get(part)
            if piece is None:
                raise GwqError(f"the {part} of {scale.name} is missing; download the model again")
            if piece.dtype != "F32" or piece.shape != (count,):
                raise wrong(piece, f"does not fit {scale.name}: {count} numbers would")
    return state.shape


def _decode_levels(tensors: Tensors) -> torch.Tensor:
    import torch

    state = _state(tensors["state"])
    scale = tensors["scale"]  # one for each run
    if state.nested_run:
        outer = tensors["nested scale"].repeat_interleave(state.nested_run)[: len(scale)]
        scale = tensors["nested levels"][scale.long()] * outer + state.offset
    codes = tensors["codes"].reshape(-1)
    count = state.shape[0] * state.shape[1]
    flat = torch.empty(2 * len(codes), dtype=torch.float32)
    for first in range(0, len(codes), _AT_ONCE):
        part = codes[first : first + _AT_ONCE]
        pairs = torch.stack((part >> 4, part & 15), 1).long()  # the first weight lies above
        flat[2 * first : 2 * (first + len(part))] = tensors["levels"][pairs].view(-1)
    flat = flat[:count]
    whole = count // state.run * state.run
    flat[:whole].view(-1, state.run).mul_(scale[: count // state.run, None])
    flat[whole:].mul_(scale[-1])
    return flat.view(state.shape)


def _shape_of_bytes(pieces: Pieces, read: Read) -> Shape:
    codes, scale = pieces["codes"], pieces["scale"]
    shape = matrix_shape(codes)
    if scale.dtype not in ("F32", "F16", "BF16") or scale.shape != shape[:1]:
        raise wrong(scale, f"holds no scales for {shape[0]} rows")
    order = pieces.get("format")
    if order is not None and bool(read(order.name).any()):
        raise wrong(order, "names an order of weights that is not read (row by row is)")
    return shape


def _decode_bytes(tensors: Tensors) -> torch.Tensor:
    return tensors["codes"].float().mul_(tensors["scale"].float()[:, None] / _TOP)
