"""The numbers of a coded matrix that can still change once its codes are chosen.

A dense weight is row scale * (scale of its sub-block * entry), and an outlier adds to it, all in
units of the matrix's power of two, which stays. An entry is table[window], or what
`decoding.levels` makes of the table. The codes, and so the windows, stay; what multiplies them is
tuned: masters in float32, of which the file gets FP16 row scales and outliers, six-bit scales and
table entries. A gradient is taken at the rounded numbers and moves the masters (straight-through),
so small changes add up until they round to another number.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from gwq_export.format.decoding import levels, windows
from gwq_export.format.outliers import pack_outliers, unpack_outliers
from gwq_export.format.tiles import pack_tiles, unpack_tiles
from gwq_export.format.types import ENTRY_MAX, ENTRY_MIN, TABLE, TensorType
from gwq_export.quantization.matrix_codes import round_half

Numbers = dict[str, np.ndarray]


class TunedMatrix:
    """A matrix of a tile type whose numbers are tuned.

    The numbers are {"rows": row scales (rows,), "scales": (rows, sub-blocks), "table": (16,),
    "outliers": (n,)}, float32, and `flat` has them one after another. `first`: as the file has them
    now. `units`: of the same size, by how much each changes when the weights that hang on it change
    by about their own size.
    """

    def __init__(self, type: TensorType, shape: Sequence[int], parts: Sequence[np.ndarray]):
        """parts: the bytes of a matrix (rows, cols) and of its side-table, uint8."""
        rows, cols = shape
        self.type = type
        self.shape = (rows, cols)
        self._parts = parts
        table, row_scales, scales, codes, exponent = unpack_tiles(type, parts[0], rows, cols)
        self._power = np.float32(2.0**exponent)
        self._scales = scales
        self._windows = windows(type, codes)[:rows, :cols]
        self._place, outlier = self._outliers()
        used = scales[:rows, : -(-cols // type.sub)]
        numbers = {"rows": row_scales, "scales": used, "table": table, "outliers": outlier}
        self._shapes = {kind: array.shape for kind, array in numbers.items()}
        self.first = _flat([array.astype(np.float32) for array in numbers.values()])
        first = self._split(self.first)
        like = {kind: np.full_like(array, _size(array)) for kind, array in first.items()}
        self.units = _flat([*(like | {"rows": np.abs(first["rows"])}).values()])

    def _outliers(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """((row, column) of the outliers, their values, float16)."""
        if len(self._parts) == 1:
            nowhere = np.zeros(0, np.int64)
            return (nowhere, nowhere), np.zeros(0, np.float16)
        _, records, offsets = self._parts
        row, col, value = unpack_outliers(records, offsets.view(np.int32), self.shape)
        return (row, col), value

    def _split(self, flat: np.ndarray) -> Numbers:
        """The numbers in `flat`, as views."""
        sizes = [prod(shape) for shape in self._shapes.values()]
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return {
            kind: part.reshape(shape)
            for part, (kind, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    def _rounded(self, flat: np.ndarray) -> Numbers:
        """The numbers as the file can hold them, float32."""
        n = self._split(flat)
        return {
            "rows": round_half(n["rows"]),
            "scales": np.clip(np.rint(n["scales"]), ENTRY_MIN, ENTRY_MAX),
            "table": np.clip(np.rint(n["table"]), ENTRY_MIN, ENTRY_MAX),
            "outliers": round_half(n["outliers"]),
        }

    def _entries(self, table: np.ndarray) -> np.ndarray:
        """The entry of every weight, (rows, cols)."""
        return levels(self.type, table).astype(np.float32).take(self._windows)

    def _spread(self, scales: np.ndarray) -> np.ndarray:
        """Scales of sub-blocks, (rows, sub-blocks), for every weight, (rows, cols)."""
        return np.repeat(scales, self.type.sub, axis=1)[:, : self.shape[1]]

    def decode(self, flat: np.ndarray) -> np.ndarray:
        """float32 (rows, cols): the weights of the file that has these numbers."""
        n = self._rounded(flat)
        weights = self._spread(n["scales"])
        weights *= self._entries(n["table"])
        weights *= n["rows"][:, None]
        weights[self._place] += n["outliers"]
        weights *= self._power
        return weights

    def project(self, flat: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient by the numbers, flat, from that by the weights, float32 (rows, cols)."""
        n = self._rounded(flat)
        gradient = gradient * self._power
        starts = np.arange(0, self.shape[1], self.type.sub)
        by_product = np.add.reduceat(gradient * self._entries(n["table"]), starts, axis=1)
        dense = self._spread(n["scales"] * n["rows"][:, None])
        dense *= gradient
        by_window = np.bincount(self._windows.ravel(), dense.ravel(), 1 << max(4, self.type.bits))
        return _flat(
            [
                (by_product * n["scales"]).sum(1),
                by_product * n["rows"][:, None],
                self._by_entry(by_window).astype(np.float32),
                gradient[self._place],
            ]
        )

    def _by_entry(self, by_window: np.ndarray) -> np.ndarray:
        """The gradient by the table's entries, (16,), from that by what each window stands for."""
        if self.type.bits == 5:  # the codes from 16 on stand for -1 - entry
            return by_window[:TABLE] - by_window[TABLE:]
        return by_window if self.type.bits < 5 else np.zeros(TABLE)

    def parts(self, flat: np.ndarray) -> list[np.ndarray]:
        """The bytes of the matrix and of its side-table with these numbers, uint8."""
        rows, cols = self.shape
        n = self._rounded(flat)
        _, _, _, codes, exponent = unpack_tiles(self.type, self._parts[0], rows, cols)
        scales = self._scales.copy()
        scales[:rows, : n["scales"].shape[1]] = n["scales"]
        row_scales = n["rows"].astype(np.float16)
        table = n["table"].astype(np.int8)
        found = [pack_tiles(self.type, table, row_scales, scales, codes, exponent, cols)]
        if len(self._parts) > 1:
            value = n["outliers"].astype(np.float16)
            found += [a.view(np.uint8) for a in pack_outliers(*self._place, value, self.shape)]
        return found


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


def _size(array: np.ndarray) -> float:
    """Root mean square, 0 of nothing."""
    return float(np.sqrt(np.square(array).mean())) if array.size else 0.0
