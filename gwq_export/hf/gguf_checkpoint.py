"""The tensors of a GGUF file as a Hugging Face checkpoint has them.

That is under its names, in its layout, and an expert's matrices apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gwq_export.arch.config import ROPE_TENSORS
from gwq_export.arch.layout import Arrangement, arrangement
from gwq_export.arch.spec import Arch, gguf_name
from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.foreign import as_float32
from gwq_export.format.reader import Reader
from gwq_export.format.tensor import Tensor
from gwq_export.format.types import TYPES


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint is in the file, and how it is arranged there."""

    gguf: str  # name of the file's tensor
    matrix: int  # which of its matrices
    shape: tuple[int, ...]  # in the file: (rows, columns) or (n,)
    arrange: Arrangement

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape in the checkpoint."""
        return self.arrange.checkpoint_shape(self.shape)


def bytes_of(tensor: Tensor, first: int, count: int) -> np.ndarray:
    """uint8 (count,), a tensor's bytes from `first` on. Raises GwqError where they are not there.

    They are read from the file, not through the map: mapped pages would stay, and count as memory.
    """
    try:
        data = np.fromfile(tensor.path, np.uint8, count, offset=tensor.offset + first)
    except OSError as e:
        raise GwqError(
            f"tensor {tensor.name} cannot be read ({e.strerror or e}): {AGAIN}"
        ) from None
    if len(data) < count:
        raise GwqError(f"the file has become shorter while it was read: {AGAIN}")
    return data


class Checkpoint:
    """The tensors of an open GGUF file under their Hugging Face names.

    arch, layers, dims and heads: of the model, as Source and Config have them. Raises GwqError for
    a tensor that such a model does not have.
    """

    reader: Reader
    places: dict[str, Place]  # by Hugging Face name, in the file's order

    def __init__(
        self,
        reader: Reader,
        arch: Arch,
        layers: int,
        dims: Mapping[str, int],
        heads: Mapping[str, int],
    ):
        self.reader = reader
        self.places = {}
        known = {row.gguf: (row.hf, row) for row in (*arch.first, *arch.last)}
        known["output.weight"] = arch.head, arch.first[0]
        for i in range(layers):
            known |= {gguf_name(i, row): (f"{arch.layers}.{i}.{row.hf}", row) for row in arch.block}
        for name, tensor in reader.tensors.items():
            if tensor.companion or name in ROPE_TENSORS:
                continue
            if name not in known or len(known[name][1].shape) != len(tensor.shape):
                shape = "x".join(map(str, tensor.shape))
                raise GwqError(
                    f"{reader.path}: tensor {name} ({shape}) has no place "
                    f"in a Hugging Face model of {arch.gguf}; this variant is not supported"
                )
            hf, row = known[name]
            arrange = arrangement(row, arch, dims, heads)
            for j in range(tensor.shape[0] if len(tensor.shape) > 2 else 1):
                self.places[hf.format(j)] = Place(name, j, tensor.shape[-2:], arrange)

    @property
    def provenance(self) -> dict[str, str]:
        """For gwq.* keys: the name of the file, and the types of its matrices."""
        tensors = self.reader.tensors.values()
        types = dict.fromkeys(t.type.name for t in tensors if len(t.shape) > 1 and not t.companion)
        return {"source_base": Path(self.reader.path).name, "source_base_types": ", ".join(types)}

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """[(whole path, bytes, time of last change in ns)] of the file, or of its parts."""
        paths = [Path(part.path).resolve() for part in self.reader.parts]
        return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]

    def read(self, name: str) -> np.ndarray:
        """A float32 copy of a tensor, in the checkpoint's layout. Raises GwqError for damage."""
        place = self.places[name]
        tensor = self.reader.tensors[place.gguf].matrices()[place.matrix]
        with about(tensor.path):
            tensor = replace(tensor, data=bytes_of(tensor, 0, tensor.nbytes))
            if tensor.type.name not in TYPES:
                tensor = as_float32(tensor)
            return place.arrange.inverse(tensor.dequantize().reshape(place.shape))
