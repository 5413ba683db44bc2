"""Matrices as they lie in a file, and the linear layers made of them."""

import numpy as np

from gwq_export.format.types import ffi
from gwq_export.native.library import check, lib, pointer


class Matrix:
    """A (rows, cols) weight as it lies in the file: checked once here, then used by pointer.

    data and the two side-table arrays are uint8 (offsets int32); none is copied. Raises GwqError.
    """

    def __init__(self, name, type, shape, data, outliers=None):
        self.name, self.type, (self.rows, self.cols) = name, type, shape
        self._keep = [data, *(outliers or ())]
        self.nbytes = sum(a.nbytes for a in self._keep)
        self.struct = ffi.new("gwq_matrix *")
        m = self.struct
        m.type, m.rows, m.cols = type.id, self.rows, self.cols
        m.data, m.data_bytes = pointer(data, "void *"), data.nbytes
        if outliers is not None:
            m.outliers, m.outlier_bytes = pointer(outliers[0], "uint8_t *"), outliers[0].nbytes
            m.offsets, m.offset_bytes = pointer(outliers[1], "uint8_t *"), outliers[1].nbytes
        check(lib().gwq_matrix_check(m), f"tensor {name}")

    def dequantize(self, pool):
        """All weights, float32 (rows, cols)."""
        out = np.empty((self.rows, self.cols), np.float32)
        check(
            lib().gwq_dequantize(pool.ptr, self.struct, 0, self.rows, pointer(out)),
            f"tensor {self.name}",
        )
        return out

    def copy(self):
        """The same matrix in memory of its own."""
        data, *table = [a.copy() for a in self._keep]
        return Matrix(self.name, self.type, (self.rows, self.cols), data, tuple(table) or None)


class Linear:
    """Matrices that share an input, multiplied in one parallel region: y[i] = x @ m[i].T + bias[i].

    biases: F32 or None for each matrix.
    """

    def __init__(self, matrices, biases=None):
        self.matrices, self.count, self.cols = matrices, len(matrices), matrices[0].cols
        self._m = ffi.new("gwq_matrix *[]", [m.struct for m in matrices])
        self._bias = biases or [None] * self.count

    def __call__(self, ops, x, n, *ys):
        """x (n, cols) and ys[i] (n, rows of matrix i) are float pointers."""
        ops.matmul(self._m, self.count, x, n, ys, self.cols)
        if any(self._bias):
            for b, out, m in zip(self._bias, ys, self.matrices, strict=True):
                if b is not None:
                    ops.add(out, b.ptr, n, m.rows, broadcast=True)


class Split:
    """One matrix whose outputs, side by side, are those of several: called like the Linear of
    these.
    """

    def __init__(self, matrix, widths, bias=None):
        self.linear, self.widths, self.rows = Linear([matrix], [bias]), widths, matrix.rows

    def __call__(self, ops, x, n, *ys):
        whole = ops.work(n * self.rows)
        self.linear(ops, x, n, whole)
        for y, width in zip(ys, self.widths, strict=True):
            ops.copy(whole, self.rows, n, width, y)
            whole += width
