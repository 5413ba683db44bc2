"""compressed-tensors: integers in words of 32 bits, bytes or FP8, by the formats in the config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from gwq_export.errors import GwqError
from gwq_export.prequantized import fp4, fp8
from gwq_export.prequantized.bits import unpack, words
from gwq_export.prequantized.gptq import check_index
from gwq_export.prequantized.scales import Block, affine, check_scale, grid, scaled, shifted
from gwq_export.prequantized.scheme import (
    ORIGINAL,
    Piece,
    Pieces,
    Read,
    Scheme,
    Settings,
    Shape,
    Tensors,
    matrix_shape,
    positive,
    wrong,
)

if TYPE_CHECKING:
    import torch

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "dense", "mixed-precision"),
)
NAME = "compressed-tensors"
UNUSED = fp8.ACTIVATIONS | {"input_zero_point", "output_zero_point", "input_global_scale"}
_NAMES = {"weight_scale": "scale", "weight_zero_point": "zero"}


def schemes(config: Settings) -> list[Scheme]:
    """Of a compressed-tensors checkpoint. Raises GwqError for a format that is not read."""
    sparse = config.get("sparsity_config")
    if sparse and (not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense"):
        raise GwqError(f"{NAME} with sparse weights are not read: {ORIGINAL}")
    turned = config.get("transform_config")
    if turned and (not isinstance(turned, dict) or turned.get("config_groups")):
        raise GwqError(f"{NAME} with transforms (transform_config) are not read: {ORIGINAL}")
    groups = _groups(config)
    for kind in (config.get("format"), *(group.get("format") for group in groups)):
        if kind is not None and kind not in FORMATS:
            raise GwqError(
                f"{NAME}' format {kind!r} is not read (read are: {', '.join(FORMATS)}): {ORIGINAL}"
            )
    weights = [w for group in groups for w in [group.get("weights")] if isinstance(w, dict)]
    blocks = _blocks(weights)
    bits = sorted({w["num_bits"] for w in weights if w.get("num_bits") in range(1, 9)})
    return [
        Scheme(
            name=f"{NAME} (packed)",
            parts=_NAMES
            | {"weight_packed": "codes", "weight_shape": "shape", "weight_g_idx": "group"},
            codes=frozenset({"I32"}),
            needed=frozenset({"scale", "shape"}),
            shape=partial(_packed_shape, bits, blocks),
            decode=partial(_decode_packed, bits, blocks),
            unused=frozenset(UNUSED),
        ),
        Scheme(
            name=f"{NAME} (8 bits)",
            parts=_NAMES | {"weight": "codes"},
            codes=fp8.FP8 | {"I8"},
            needed=frozenset({"scale"}),
            shape=partial(_plain_shape, blocks),
            decode=partial(_decode_plain, blocks),
            unused=frozenset(UNUSED),
        ),
        fp4.scheme(f"{NAME} (FP4)", "weight_packed", "weight_global_scale", divides=True),
    ]


def _groups(config: Settings) -> list[Settings]:
    """Settings of the config's groups of modules."""
    groups = config.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise GwqError(f"config_groups is {groups!r}, expected groups; download the model again")
    return list(groups.values())


def _blocks(weights: Sequence[Settings]) -> list[Block]:
    """What may have a scale of its own, beside a matrix and a row."""
    blocks: set[Block] = set()
    for settings in weights:
        size, block = settings.get("group_size"), settings.get("block_structure")
        if positive(size):
            blocks.add((1, size))  # type: ignore[arg-type]
        if isinstance(block, str):  # an older way to write it: "128x128"
            block = [int(n) for n in block.split("x") if n.isdecimal()]
        if isinstance(block, list) and len(block) == 2 and all(map(positive, block)):
            blocks.add((block[0], block[1]))
    return sorted(blocks)


def _packed_shape(
    bits: Sequence[int], blocks: Sequence[Block], pieces: Pieces, read: Read
) -> Shape:
    """(rows, columns), as weight_shape says. weight_packed is (rows, words of the columns)."""
    codes, size = pieces["codes"], pieces["shape"]
    if size.dtype not in ("I64", "I32") or size.shape != (2,):
        raise wrong(size, "holds no numbers of rows and columns")
    rows, cols = (int(n) for n in read(size.name))
    fitting = [b for b in bits if codes.shape == (rows, words(cols, b))]
    if len(fitting) != 1:
        raise wrong(
            codes,
            f"holds no matrix of {rows}x{cols} with {' or '.join(map(str, bits)) or 'no'} bits",
        )
    scale, group = pieces["scale"], pieces.get("group")
    check_scale((rows, cols), scale, blocks)
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    if group is not None:
        if group.shape != (cols,):
            raise wrong(group, f"does not fit {codes.name}, which has {cols} columns")
        check_index(group, groups, read)
    if zero := pieces.get("zero"):
        _check_zero(zero, scale, (words(rows, fitting[0]), groups))
    return rows, cols


def _check_zero(zero: Piece, scale: Piece, packed: Shape | None = None) -> None:
    """Raise GwqError unless there is a zero point for every scale, in a byte or `packed`."""
    in_bytes = zero.dtype in {"I8", *fp8.FP8} and zero.shape == scale.shape
    if not in_bytes and not (zero.dtype == "I32" and zero.shape == packed):
        raise wrong(zero, f"holds no zero points for the scales of {scale.name}")


def _decode_packed(
    bits_named: Sequence[int], blocks: Sequence[Block], tensors: Tensors
) -> torch.Tensor:
    import torch

    packed, scale, zero = tensors["codes"], tensors["scale"], tensors.get("zero")
    rows, cols = (int(n) for n in tensors["shape"])
    bits = next(b for b in bits_named if packed.shape[1] == words(cols, b))
    middle = 1 << (bits - 1)  # what is added to codes and zero points before they are packed
    width = (grid((rows, cols), tuple(scale.shape), blocks) or (rows, cols))[1]
    group = tensors.get("group", torch.arange(cols) // width).long()
    scale = scale.reshape(-1, scale.shape[1] if scale.dim() == 2 else 1).expand(rows, -1)
    if zero is None:
        zero = torch.full((1, 1), middle).expand(scale.shape)
    elif zero.dtype == torch.int32:
        zero = unpack(zero.T, bits, rows).T
    else:
        zero = zero.reshape(scale.shape).int() + middle
    return affine(unpack(packed, bits, cols), scale, zero, group)


def _plain_shape(blocks: Sequence[Block], pieces: Pieces, read: Read) -> Shape:
    shape = matrix_shape(pieces["codes"])
    check_scale(shape, pieces["scale"], blocks)
    if zero := pieces.get("zero"):
        _check_zero(zero, pieces["scale"])
    return shape


def _decode_plain(blocks: Sequence[Block], tensors: Tensors) -> torch.Tensor:
    value = tensors["codes"].float()
    if "zero" in tensors:
        shifted(value, tensors["zero"], blocks)
    return scaled(value, tensors["scale"], blocks)
