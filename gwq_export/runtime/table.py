"""The tensors of a file by the names of the architecture's tables, as parts of layers."""

from collections.abc import Sequence

import numpy as np

from gwq_export.arch.config import Config
from gwq_export.arch.parts import TensorRow
from gwq_export.errors import GwqError
from gwq_export.format.outliers import Outliers
from gwq_export.format.reader import Reader, Tensor
from gwq_export.native.library import F32, Pool
from gwq_export.native.matrix import Linear, Matrix, Split
from gwq_export.runtime.layers import Norm, Normalize, unchanged


def _own(outliers: Outliers | None) -> Outliers | None:
    """A copy of a side-table, once checked never to change.

    Its columns and offsets are where kernels write and read; the bytes of tiles are only numbers,
    whatever becomes of the file.
    """
    return outliers and (outliers[0].copy(), outliers[1].copy())


class Table:
    """The tensors of one table of the architecture, such as those of block i.

    rows: of the table. prefix: what comes before a row's name in the file. Names of matrices and
    vectors are whole ("attn_q.weight"); `linear`, `split` and `norm` take them without ".weight".
    pool: where they are put.
    """

    def __init__(
        self,
        reader: Reader,
        config: Config,
        rows: Sequence[TensorRow],
        pool: Pool,
        prefix: str = "",
    ) -> None:
        self.reader = reader
        self.pool = pool
        self.rows = {row.gguf: row for row in rows}
        self.prefix = prefix
        self.dims = config.dims
        self.eps = config.eps
        self.layer_norm = config.arch.layer_norm

    def shape(self, name: str) -> tuple[int, ...]:
        """What the config says that the tensor's shape is."""
        return tuple(self.dims[d] for d in self.rows[name].shape)

    def has(self, name: str) -> bool:
        """Whether there is such a row, and the file has its tensor."""
        return name in self.rows and self.prefix + name in self.reader.tensors

    def matrices(self, name: str, shape: tuple[int, ...]) -> list[Matrix]:
        """Those of a tensor: one, or one for each expert."""
        tensor = self._required(name, shape)
        return [
            self.pool.matrix(Matrix(t.name, t.type, t.shape, t.data, _own(t.outliers)))
            for t in tensor.matrices()
        ]

    def matrix(self, name: str) -> Matrix:
        """The one of a tensor that has no experts."""
        return self.matrices(name, self.shape(name))[0]

    def values(self, name: str) -> np.ndarray:
        """All values of a tensor, float32, of a matrix (rows, columns)."""
        shape = self.shape(name)
        return self._required(name, shape).dequantize().reshape(shape)

    def vector(self, name: str, size: int) -> F32:
        """All values of a tensor (size,)."""
        return self.pool.floats(self._required(name, (size,)).dequantize())

    def optional_vector(self, name: str, size: int) -> F32 | None:
        """All values of a tensor (size,), or None if the file lacks it."""
        tensor = self._find(name, (size,))
        return None if tensor is None else self.pool.floats(tensor.dequantize())

    def linear(self, *names: str) -> Linear:
        """Matrices that share an input, with the biases that the file has."""
        matrices = [self.matrix(f"{name}.weight") for name in names]
        biases = [
            self.optional_vector(f"{name}.bias", m.rows)
            for name, m in zip(names, matrices, strict=True)
        ]
        return Linear(matrices, biases)

    def split(self, name: str, *widths: int) -> Split:
        """One matrix in the place of several, which have `widths` outputs."""
        matrix = self.matrix(f"{name}.weight")
        return Split(matrix, widths, self.optional_vector(f"{name}.bias", matrix.rows))

    def norm(self, name: str, width: int) -> Normalize:
        """The norm of activations (n, width); `unchanged` where there is none."""
        row = self.rows.get(f"{name}.weight")
        if row is None:
            return unchanged
        size = self.dims[row.shape[0]]
        find = self.optional_vector if row.optional else self.vector
        weight = find(row.gguf, size)
        if weight is None:
            return unchanged
        bias = self.vector(f"{name}.bias", size) if f"{name}.bias" in self.rows else None
        if bias is None and self.layer_norm:
            bias = self.pool.floats(np.zeros(size, np.float32))
        return Norm(weight, bias, self.eps, width // size)

    def _find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        name = self.prefix + name
        tensor = self.reader.tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            raise GwqError(
                f"{self.reader.path}: tensor {name} has shape {tensor.shape}, expected {shape}; "
                "export the model again"
            )
        return tensor

    def _required(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._find(name, shape)
        if tensor is None:
            raise GwqError(
                f"{self.reader.path}: tensor {self.prefix}{name} is missing; export the model again"
            )
        return tensor
