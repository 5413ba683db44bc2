"""How a kind of checkpoints stores a matrix: which tensors, their shapes, what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gwq_export.errors import GwqError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
ORIGINAL = "export the original FP16/BF16/FP32 model"  # what to do about what is not read


class Piece(NamedTuple):
    """A tensor as it lies in a file."""

    name: str
    dtype: str  # as safetensors calls it: "F8_E4M3", "I32", ...
    shape: Shape


Settings = Mapping[str, Any]  # quantization_config
Pieces = Mapping[str, Piece]  # by what they are to the matrix, "codes" among them
Tensors = Mapping[str, "torch.Tensor"]  # the same, read
Read = Callable[[str], "torch.Tensor"]  # a tensor by its name in the files


@dataclass(frozen=True)
class Scheme:
    """One way to store a matrix, with the settings of one checkpoint.

    shape and decode raise GwqError where the pieces do not fit each other.
    """

    name: str  # for messages
    parts: Mapping[str, str]  # ending of a tensor's name -> what it is to the matrix
    codes: frozenset[str]  # types of the tensor of codes
    needed: frozenset[str]  # what a matrix cannot be without, beside its codes
    shape: Callable[[Pieces, Read], Shape]  # of the matrix; may read what is small
    decode: Callable[[Tensors], torch.Tensor]  # the matrix, float32, new memory
    unused: frozenset[str] = frozenset()  # endings of tensors that say nothing about a matrix


def settings_of(config: Any) -> Settings:
    """`quantization_config` as a mapping. Raises GwqError."""
    if not isinstance(config, dict):
        raise GwqError(f"it is {config!r}, expected an object; download the model again")
    return config


def wrong(piece: Piece, what: str) -> GwqError:
    """The error of a tensor that is not as its neighbours and the config ask for."""
    shape = "x".join(map(str, piece.shape)) or "one number"
    return GwqError(
        f"tensor {piece.name} ({shape}, {piece.dtype}) {what}; download the model again"
    )


def positive(value: Any) -> bool:
    """Whether something that a file says is a positive whole number."""
    return type(value) is int and value > 0


def matrix_shape(codes: Piece) -> tuple[int, int]:
    """Rows and columns of a tensor as it lies in a file. Raises GwqError if it is no matrix."""
    if len(codes.shape) != 2:
        raise wrong(codes, "is no matrix")
    rows, cols = codes.shape
    return rows, cols


def divided(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
