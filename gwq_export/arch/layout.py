"""From a checkpoint's layout of a weight to the file's, and back.

Calibration statistics and outliers move with their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gwq_export.arch.parts import TensorRow
from gwq_export.arch.spec import Arch


@dataclass(frozen=True)
class Arrangement:
    """How a weight of the checkpoint becomes that of the file; by default it stays as it is."""

    # the checkpoint has (columns, rows)
    transposed: bool = False
    # it has a matrix of one row
    one_row: bool = False
    # it has (rows, 1, columns)
    channels: bool = False
    # rows are seen as an array of this shape, (a, b, c), ...
    split: tuple[int, ...] = ()
    # ... of which these two axes change places
    swap: tuple[int, ...] = ()
    # is added to every value
    plus: float = 0.0

    def checkpoint_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the checkpoint of what has `shape` in the file."""
        if self.one_row:
            return (1, *shape)
        if self.channels:
            return (shape[0], 1, shape[1])
        return shape[::-1] if self.transposed else shape

    def _place(self, array: np.ndarray) -> np.ndarray:
        if self.one_row:
            return array.reshape(-1)
        if self.channels:
            return array.reshape(array.shape[0], array.shape[-1])
        if self.transposed and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        if self.split:
            swapped = array.reshape(*self.split, -1).swapaxes(*self.swap)
            array = swapped.reshape(array.shape)
        return array

    def weight(self, array: np.ndarray) -> np.ndarray:
        """A float32 weight (rows, columns) or vector (rows,) as the file has it."""
        array = self._place(array)
        return array + np.float32(self.plus) if self.plus else array

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """What `weight` was given, from what it made of it."""
        if self.plus:
            array = array - np.float32(self.plus)
        if self.split:
            split = list(self.split)
            a, b = self.swap
            split[a], split[b] = split[b], split[a]
            array = array.reshape(*split, -1).swapaxes(a, b).reshape(array.shape)
        if self.transposed and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        if self.channels:
            return array[:, None]
        return array[None] if self.one_row else array

    def statistics(self, statistics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Calibration statistics of the weight, {name: array}, as the file has it.

        What is (columns, columns) does not depend on the order of rows.
        """
        as_it_is = dict.fromkeys(("hessian", "drift"), lambda array: array)
        moved = as_it_is | {"outputs": self._products}
        return {name: moved.get(name, self._place)(array) for name, array in statistics.items()}

    def _products(self, array: np.ndarray) -> np.ndarray:
        """Products of rows with the rows of their group, (rows, width), for rows that move.

        Those of rows that come into another group than before are lost: zero.
        """
        if not self.split:
            return array
        rows, width = array.shape
        old = Arrangement(split=self.split, swap=self.swap)._place(np.arange(rows))
        first = np.arange(0, rows, width).repeat(width)[:rows]  # of each row's group
        partner = np.minimum(first[:, None] + np.arange(width), rows - 1)
        same = old[partner] // width == (old // width)[:, None]
        same &= first[:, None] + np.arange(width) < rows
        found = array[old[:, None], old[partner] % width]
        return np.where(same, found, np.float32(0))


def arrangement(
    row: TensorRow, arch: Arch, dims: Mapping[str, int], heads: Mapping[str, int]
) -> Arrangement:
    """The Arrangement of a row of the architecture's tables.

    dims: sizes by their names there; heads: {"heads", "kv_heads"}.
    """
    rows = dims[row.shape[0]]
    split: tuple[int, ...] = ()
    swap: tuple[int, ...] = ()
    if row.heads and arch.rope == "pairs":
        # dimensions i and i + head / 2 turn together in transformers, 2i and 2i + 1 in llama.cpp
        count = heads[row.heads]
        split = (count, 2, rows // count // 2)
        swap = (1, 2)
    elif row.interleaved:
        count = heads["heads"]
        split = (count, row.interleaved, rows // count // row.interleaved)
        swap = (0, 1)
    return Arrangement(row.transposed, row.one_row, row.channels, split, swap, row.plus)
