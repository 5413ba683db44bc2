"""Matrices as they lie in a file, and the linear layers made of them."""

import copy
from collections.abc import Sequence

import numpy as np

from gwq_export.format.types import TensorType, ffi
from gwq_export.native.library import F32, Pointer, Pool, check, lib, pointer
from gwq_export.native.ops import Ops


class Matrix:
    """A weight matrix (rows, cols) as it lies in the file: checked once here, then used by pointer.

    data: uint8 (bytes of the type and shape,). outliers: None or the side-table, records uint8 and
    offsets int32. No array is copied. Raises GwqError, with `name`, for damaged data.
    """

    def __init__(
        self,
        name: str,
        type: TensorType,
        shape: tuple[int, ...],
        data: np.ndarray,
        outliers: tuple[np.ndarray, ...] | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.rows, self.cols = shape
        self._keep = [data, *(outliers or ())]
        self.nbytes = sum(a.nbytes for a in self._keep)
        self.struct = ffi.new("gwq_matrix *")
        m = self.struct
        m.type, m.rows, m.cols = type.id, self.rows, self.cols
        m.data, m.data_bytes = pointer(data, "void *"), data.nbytes
        if outliers is not None:
            records, offsets = outliers
            m.outliers, m.outlier_bytes = pointer(records, "uint8_t *"), records.nbytes
            m.offsets, m.offset_bytes = pointer(offsets, "uint8_t *"), offsets.nbytes
        check(lib().gwq_matrix_check(m), f"tensor {name}")

    def dequantize(self, pool: Pool) -> np.ndarray:
        """All weights, float32 (rows, cols), outliers included."""
        out = np.empty((self.rows, self.cols), np.float32)
        check(
            lib().gwq_dequantize(pool.ptr, self.struct, 0, self.rows, pointer(out)),
            f"tensor {self.name}",
        )
        return out

    def moved(self, struct: Pointer) -> "Matrix":
        """The same matrix as another gwq_matrix, such as one in a device's memory."""
        matrix = copy.copy(self)
        matrix._keep = []
        matrix.struct = struct
        return matrix

    def copy(self) -> "Matrix":
        """The same matrix in memory of its own."""
        data, *table = [a.copy() for a in self._keep]
        return Matrix(self.name, self.type, (self.rows, self.cols), data, tuple(table) or None)


class Linear:
    """Matrices that share an input, multiplied in one parallel region: y[i] = x @ m[i].T + bias[i].

    matrices: at most 4, of equal cols. biases: F32 (rows of matrix i,) or None for each of them;
    None: no matrix has one.
    """

    def __init__(
        self, matrices: Sequence[Matrix], biases: Sequence[F32 | None] | None = None
    ) -> None:
        self.matrices = matrices
        self.count = len(matrices)
        self.cols = matrices[0].cols
        self._m = ffi.new("gwq_matrix *[]", [m.struct for m in matrices])
        self._bias = biases or [None] * self.count

    def __call__(self, ops: Ops, x: Pointer, n: int, *ys: Pointer) -> None:
        """Multiply x (n, cols) into ys[i] (n, rows of matrix i), all float pointers."""
        ops.matmul(self._m, self.count, x, n, ys, self.cols)
        if any(self._bias):
            for b, out, m in zip(self._bias, ys, self.matrices, strict=True):
                if b is not None:
                    ops.add(out, b.ptr, n, m.rows, broadcast=True)


class Split:
    """One matrix that holds several side by side: called like the Linear of these.

    widths: outputs of each of them, in order; they add up to the matrix's rows.
    """

    def __init__(self, matrix: Matrix, widths: Sequence[int], bias: F32 | None = None) -> None:
        self.linear = Linear([matrix], [bias])
        self.widths = widths
        self.rows = matrix.rows

    def __call__(self, ops: Ops, x: Pointer, n: int, *ys: Pointer) -> None:
        """Multiply x (n, cols) into ys[i] (n, widths[i]), all float pointers."""
        whole = ops.work(n * self.rows)
        self.linear(ops, x, n, whole)
        for y, width in zip(ys, self.widths, strict=True):
            ops.copy(whole, self.rows, n, width, y)
            whole += width
