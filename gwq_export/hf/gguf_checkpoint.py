"""The tensors of a GGUF file as a Hugging Face checkpoint has them: under its names, in its layout,
an expert's matrices apart.
"""

from dataclasses import dataclass, replace

import numpy as np

from gwq_export.arch.layout import Arrangement, arrangement
from gwq_export.arch.spec import gguf_name
from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.foreign import as_float32
from gwq_export.format.types import TYPES

ROPE_TENSORS = {
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
}  # the config has these numbers


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint is: in which tensor of the file, as which of its matrices,
    and how it is arranged there.
    """

    gguf: str
    matrix: int
    shape: tuple  # in the file: (rows, columns) or (n,)
    arrange: Arrangement

    @property
    def checkpoint_shape(self):
        return self.shape[:: -1 if self.arrange.transposed else 1]


class Checkpoint:
    """The tensors of an open file (container.Reader): `places` is {Hugging Face name: Place}, in
    the file's order.

    arch, layers, dims and heads: of the model, as Source and Config have them. Raises GwqError for
    a tensor that such a model does not have.
    """

    def __init__(self, reader, arch, layers, dims, heads):
        self.reader, self.places = reader, {}
        known = {row.gguf: (row.hf, row) for row in (*arch.first, *arch.last)}
        known["output.weight"] = arch.head, arch.first[0]
        for i in range(layers):
            known |= {gguf_name(i, row): (f"{arch.layers}.{i}.{row.hf}", row) for row in arch.block}
        for name, tensor in reader.tensors.items():
            if tensor.companion or name in ROPE_TENSORS:
                continue
            hf, row = known.get(name, (None, None))
            if row is None or len(row.shape) != len(tensor.shape):
                what = "x".join(map(str, tensor.shape))
                raise GwqError(
                    f"{reader.path}: tensor {name} ({what}) has no place in a Hugging Face model of {arch.gguf};"
                    " this variant is not supported"
                )
            arrange = arrangement(row, arch, dims, heads)
            for j in range(tensor.shape[0] if len(tensor.shape) > 2 else 1):
                self.places[hf.format(j)] = Place(name, j, tensor.shape[-2:], arrange)

    def read(self, name):
        """A copy of a tensor, float32. Raises GwqError for damage.

        It is read from the file, not through the map: mapped pages would stay, and count as memory.
        """
        place, path = self.places[name], self.reader.path
        tensor = self.reader.tensors[place.gguf].matrices()[place.matrix]
        with about(path):
            try:
                data = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
            except OSError as e:
                raise GwqError(
                    f"tensor {place.gguf} cannot be read ({e.strerror or e}): {AGAIN}"
                ) from None
            if len(data) < tensor.nbytes:
                raise GwqError(f"the file has become shorter while it was read: {AGAIN}")
            tensor = replace(tensor, data=data)
            tensor = tensor if tensor.type.name in TYPES else as_float32(tensor)
            return place.arrange.inverse(tensor.dequantize().reshape(place.shape))
