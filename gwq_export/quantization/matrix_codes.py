"""A matrix while its codes are found: what tile types and ggml types have in common.

All arrays are in the layout of `lanes`. The codes themselves are found by the native `gwq_encode`;
here is which targets it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.compute.linalg import plain_product
from gwq_export.compute.threads import each
from gwq_export.format.types import BLOCK, TensorType, ffi
from gwq_export.native.library import check, lib, pointer
from gwq_export.quantization.lanes import lane_slices

_POINTERS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


@dataclass
class Encoded:
    """The parts of a coded matrix, as `tiles.pack_tiles` or `ggml_types.pack_codes` takes them.

    table: int8 (16,). row_scales: float16 (rows,), None for ggml types. scales: of the sub-blocks,
    int8 (padded rows, sub-blocks), or of a ggml type's units, float16 (rows, units). codes: uint8
    (padded rows, padded cols), or (rows, cols) for a ggml type. values: float32 (rows, cols), what
    the codes stand for, 2^exponent included; where an outlier is held out, the value that it should
    have. exponent: of the power of two that multiplies every row scale; 0 for ggml types.
    """

    table: np.ndarray
    row_scales: np.ndarray | None
    scales: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    exponent: int = 0


class MatrixCodes(ABC):
    """Codes and values of a matrix, encoded `step` columns at a time.

    w: float32 (padded cols, padded rows), the weights. codes: uint8, values: float32, of the same
    shape. outlier: uint8 of the same shape, 1 where a weight is held out, or None. row_weight:
    float32 (padded rows,), how much a squared error of each row counts. table: float32, as
    `struct gwq_encoding` takes it.
    """

    step = BLOCK

    def __init__(
        self,
        type: TensorType,
        table: np.ndarray,
        row_weight: np.ndarray,
        w: np.ndarray,
        outlier: np.ndarray | None,
        pool: Any,
    ) -> None:
        self.type = type
        self.table = table
        self.row_weight = row_weight
        self.w = w
        self.outlier = outlier
        self.pool = pool
        self.codes = np.empty(w.shape, np.uint8)
        self.values = np.empty_like(w)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make what the type needs beside codes and values: its scales."""

    @abstractmethod
    def run(
        self,
        first: int,
        target: np.ndarray,
        lanes: slice | None = None,
        column_weight: np.ndarray | None = None,
        feedback: np.ndarray | None = None,
        before: np.ndarray | None = None,
        cost: np.ndarray | None = None,
    ) -> np.ndarray:
        """Encode the `step` columns from `first` on and return value - target, (step, rows).

        target: (step, rows). lanes: only these rows are encoded, by the calling thread; None for
        all of them, by the pool. column_weight: (step,), with which scales are fitted; None keeps
        the scales. feedback: (step, step) or None; entry [j, k] of column j's error is added to the
        target of a column k that is coded after j, in place. The error is value - target or, with
        `before` (step, rows), value - before. cost: (step,), how much a column's error counts
        beside those of its ring; None for columns that count alike.
        """

    @abstractmethod
    def refit(self, h: np.ndarray) -> None:
        """Fit the scales to the codes: least output error under h (padded cols, padded cols)."""

    @abstractmethod
    def encoded(self, rows: int, cols: int) -> Encoded:
        """The parts of the finished matrix, out of the lanes."""

    def sweep(self, h: np.ndarray) -> None:
        """One round of coordinate descent on tr(E^T h E), with E = values - w, (cols, rows).

        Given all other columns, the best real value of column j is v_j - (h E)_j / h_jj; its codes
        come as near to that as they can. A change d_j of column j changes (h E)_k by h_kj d_j, so
        that within a block the targets of later columns move by -h_jk / h_kk d_j. That has the form
        of the native encoder's feedback, with `before` so that it counts changes and not errors.
        (Coordinate descent after GPTQ: QuantEase, arXiv 2309.01885.)
        """
        target, before = np.empty((2, self.step, self.w.shape[1]), np.float32)
        each(lambda lanes: self._sweep_lanes(lanes, h, target, before), lane_slices(self.w))

    def _sweep_lanes(
        self, lanes: slice, h: np.ndarray, target: np.ndarray, before: np.ndarray
    ) -> None:
        """`sweep` of some rows. target, before: (step, rows), room of which only theirs is used."""
        error = self.values[:, lanes] - self.w[:, lanes]
        diagonal = np.diag(h)
        for first in range(0, len(self.w), self.step):
            part = slice(first, first + self.step)
            change = plain_product(h[part], error)
            change /= diagonal[part, None]
            before[:, lanes] = self.values[part, lanes]
            np.subtract(before[:, lanes], change, out=target[:, lanes])
            feedback = -h[part, part] / diagonal[None, part]
            cost = diagonal[part] / diagonal[part].mean()
            self.run(first, target, lanes, feedback=feedback, before=before, cost=cost)
            np.subtract(self.values[part, lanes], self.w[part, lanes], out=error[part])

    def _encode_columns(
        self,
        type: TensorType,
        first: int,
        target: np.ndarray,
        lanes: slice | None,
        row_scale: np.ndarray,
        scale: np.ndarray,
        column_weight: np.ndarray | None,
        feedback: np.ndarray | None,
        before: np.ndarray | None,
        cost: np.ndarray | None = None,
    ) -> np.ndarray:
        """Call `gwq_encode` for the columns from `first` on; see `run`, also for the result.

        The arguments are the fields of `struct gwq_encoding`. With feedback the native encoder
        overwrites `target` by what it has become.
        """
        part = slice(first, first + self.step)
        arrays = {
            "table": self.table,
            "row_scale": row_scale,
            "row_weight": self.row_weight,
            "column_weight": column_weight,
            "column_cost": cost,
            "outlier": None if self.outlier is None else self.outlier[part],
            "feedback": feedback,
            "before": before,
            "target": target,
            "scale": scale,
            "code": self.codes[part],
            "value": self.values[part],
        }
        e = ffi.new("gwq_encoding *")
        e.type = type.id
        e.columns = self.step
        e.rows = target.shape[1]
        every = slice(0, e.rows)
        e.first, e.last = (lanes or every).start, (lanes or every).stop
        e.fit = column_weight is not None
        alive = []  # the library's pointers do not keep arrays alive
        for name, array in arrays.items():
            if array is not None:
                array = np.ascontiguousarray(array)
                alive.append(array)
                setattr(e, name, pointer(array, _POINTERS[array.dtype.name]))
        check(lib().gwq_encode(ffi.NULL if lanes else self.pool, e), "the encoder")
        return self.values[part, lanes or every] - target[:, lanes or every]


def round_half(values: np.ndarray) -> np.ndarray:
    """Round to FP16, clipped to its finite range; returns float32."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
