"""From a checkpoint's layout of a weight to the file's; calibration statistics and outliers move
with their weights.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Arrangement:
    """transposed: the checkpoint has (columns, rows). split, swap: rows are seen as (a, b, c) and
    two of these axes change places. plus: is added to every value. One without any changes nothing.
    """

    transposed: bool = False
    split: tuple = ()
    swap: tuple = ()
    plus: float = 0.0

    def _place(self, array):
        array = np.ascontiguousarray(array.T) if self.transposed and array.ndim == 2 else array
        return (
            array.reshape(*self.split, -1).swapaxes(*self.swap).reshape(array.shape)
            if self.split
            else array
        )

    def weight(self, array):
        """A weight (rows, columns) or vector (rows,) as the file has it, float32."""
        array = self._place(array)
        return array + np.float32(self.plus) if self.plus else array

    def inverse(self, array):
        """What `weight` was given, from what it made of it."""
        array = array - np.float32(self.plus) if self.plus else array
        if self.split:
            split = list(self.split)
            a, b = self.swap
            split[a], split[b] = split[b], split[a]
            array = array.reshape(*split, -1).swapaxes(a, b).reshape(array.shape)
        return np.ascontiguousarray(array.T) if self.transposed and array.ndim == 2 else array

    def statistics(self, found):
        """Calibration statistics of the weight (`totals.STATISTICS`, "rows", "hessian"): the
        Hessian is of its columns.
        """
        return {s: a if s == "hessian" else self._place(a) for s, a in found.items()}


def arrangement(row, arch, dims, heads):
    """The Arrangement of a row of the architecture's tables.

    dims: sizes by their names there; heads: {"heads", "kv_heads"}.
    """
    rows, split, swap = dims[row.shape[0]], (), ()
    if (
        row.heads and arch.rope == "pairs"
    ):  # halves of a head turn together in transformers, neighbours in llama.cpp
        count = heads[row.heads]
        split, swap = (count, 2, rows // count // 2), (1, 2)
    elif row.interleaved:
        count = heads["heads"]
        split, swap = (count, row.interleaved, rows // count // row.interleaved), (0, 1)
    return Arrangement(row.transposed, split, swap, row.plus)
