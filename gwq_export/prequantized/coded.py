"""The quantized matrices among the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gwq_export.errors import GwqError, about
from gwq_export.prequantized.scheme import Piece, Read, Scheme, Shape, wrong

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Coded:
    """A matrix that several tensors of a checkpoint stand for."""

    name: str  # "....weight", as an unquantized checkpoint calls it
    scheme: Scheme
    pieces: Mapping[str, Piece]  # by what they are to the matrix
    shape: Shape

    def read(self, tensor: Read) -> torch.Tensor:
        """The matrix, float32. Raises GwqError."""
        tensors = {part: tensor(piece.name) for part, piece in self.pieces.items()}
        with about(f"tensor {self.name} ({self.scheme.name})"):
            return self.scheme.decode(tensors)


def find(
    stored: Mapping[str, Piece], schemes: Sequence[Scheme], read: Read
) -> tuple[dict[str, Coded], set[str]]:
    """({name of a matrix: it}, names of tensors that are pieces of them or not of the model).

    stored: every tensor of the checkpoint. The shapes of all pieces are checked, and what small
    ones hold. Raises GwqError.
    """
    found: dict[str, Coded] = {}
    used: set[str] = set()
    for scheme in schemes:
        ending = next(end for end, part in scheme.parts.items() if part == "codes")
        for name, piece in stored.items():
            module = name.removesuffix(f".{ending}")
            if module == name or piece.dtype not in scheme.codes or name in used:
                continue
            coded = _matrix(module, scheme, stored, read)
            found[coded.name] = coded
            used |= {part.name for part in coded.pieces.values()}
    for scheme in schemes:
        beside = tuple(f".{ending}" for ending, part in scheme.parts.items() if part != "codes")
        for name, piece in stored.items():
            if name.rpartition(".")[2] in scheme.unused:
                used.add(name)
            elif name not in used and name.endswith(beside):
                raise wrong(piece, f"belongs to no matrix that is stored as {scheme.name}")
    return found, used


def _matrix(module: str, scheme: Scheme, stored: Mapping[str, Piece], read: Read) -> Coded:
    """The matrix of a module that has codes of this scheme."""
    pieces: dict[str, Piece] = {}
    for ending, part in scheme.parts.items():
        name = f"{module}.{ending}"
        if name in stored:
            pieces.setdefault(part, stored[name])
    for part in sorted(scheme.needed - set(pieces)):
        names = " or ".join(f"{module}.{end}" for end, p in scheme.parts.items() if p == part)
        raise GwqError(f"tensor {names} ({scheme.name}) is missing; download the model again")
    return Coded(f"{module}.weight", scheme, pieces, scheme.shape(pieces, read))
