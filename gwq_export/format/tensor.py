"""One tensor of an open GGUF file: its bytes on the memory map, decoded and checked on demand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.decoding import dequantize
from gwq_export.format.layout import is_companion
from gwq_export.format.outliers import Outliers, check_outliers
from gwq_export.format.tiles import check_tiles
from gwq_export.format.types import TYPES, TensorType, matrices

CHECKED = 1 << 20  # weights of a ggml type that `Tensor.check` decodes at once


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of an open file.

    `data` and `outliers` are read-only views of the map and keep it alive.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]  # numpy order: (rows, cols), (n,) or (experts, rows, cols)
    offset: int  # of its first byte in its file
    nbytes: int
    data: np.ndarray  # uint8 (nbytes,)
    # the side-tables of its matrices, one after another, or None:
    # (records uint8 (bytes,), offsets int32 (row groups + 1,))
    outliers: Outliers | None
    outlier_count: int  # of all matrices
    path: str  # of its file, which is one of several where a model is split

    @property
    def companion(self) -> bool:
        """True for a part of another tensor's side-table."""
        return is_companion(self.name)

    def matrices(self) -> list[Tensor]:
        """Its matrices, one for each expert: Tensors of two dimensions over the same bytes."""
        count, rows, cols = matrices(self.shape)
        nbytes = self.nbytes // count
        data = self.data.reshape(count, -1)
        tables: list[Outliers | None] = [None] * count
        if self.outliers is not None:
            records, offsets = (part.reshape(count, -1) for part in self.outliers)
            tables = list(zip(records, offsets, strict=True))
        return [
            replace(
                self,
                shape=(rows, cols),
                offset=self.offset + i * nbytes,
                nbytes=nbytes,
                data=data[i],
                outliers=tables[i],
                outlier_count=self.outlier_count // count,
            )
            for i in range(count)
        ]

    def dequantize(self) -> np.ndarray:
        """float32 array of `shape`. Raises GwqError for a damaged side-table."""
        with about(f"tensor {self.name}"):
            parts = [m._dequantize_matrix() for m in self.matrices()]
            return (parts[0] if len(parts) == 1 else np.stack(parts)).reshape(self.shape)

    def _dequantize_matrix(self) -> np.ndarray:
        rows, cols = self.shape
        return dequantize(self.type, self.data, (rows, cols), self.outliers)

    def check(self) -> None:
        """Read every byte.

        Raises GwqError for a value that is not finite, damaged tiles or a damaged side-table.
        """
        if self.type.name in ("i8", "i32") or self.type.name not in TYPES:
            return  # a side-table is checked with its matrix, other types by `foreign`
        with about(f"tensor {self.name}"), np.errstate(invalid="ignore"):
            for matrix in self.matrices():
                matrix._check_matrix()

    def _check_matrix(self) -> None:
        rows, cols = self.shape
        if self.type.bits:
            check_tiles(self.type, self.data, (rows, cols), self.outliers)
            return
        row_bytes = self.type.nbytes(1, cols)
        step = max(1, CHECKED // cols)
        for first in range(0, rows, step):
            part = self.data[first * row_bytes : (first + step) * row_bytes]
            if not np.isfinite(dequantize(self.type, part, (len(part) // row_bytes, cols))).all():
                raise GwqError(f"a value is not finite: {AGAIN}")
        if self.outliers is not None:
            check_outliers(self.outliers, (rows, cols))
