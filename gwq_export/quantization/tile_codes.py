"""Codes of the tile types: an FP16 scale for each row, six bits for each sub-block of columns."""

from __future__ import annotations

import numpy as np

from gwq_export.compute.linalg import pieces, tall_product
from gwq_export.compute.threads import each
from gwq_export.format.decoding import levels
from gwq_export.format.types import SCALE_BIAS, TensorType
from gwq_export.quantization.lanes import from_lanes
from gwq_export.quantization.matrix_codes import Encoded, MatrixCodes, round_half

# Fraction of the largest six-bit scale that the largest weight of a row takes. The rest is room for
# error feedback, which moves the weights before they are coded.
HEADROOM = 0.9


class TileCodes(MatrixCodes):
    """A weight is row scale * sub-block scale * entry; the native encoder fits the second.

    row_scales: float32 (rows,). scales: int8 (sub-blocks, rows).
    """

    def prepare(self) -> None:
        """Choose the row scales, and make room for those of the sub-blocks."""
        self.entries = self.table
        self.table, self.code_of = native_table(self.type, self.table)
        self.row_scales = first_row_scales(self.type, self.w, self.table, self.outlier)
        self.scales = np.empty((len(self.w) // self.type.sub, self.w.shape[1]), np.int8)

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
        """See `MatrixCodes.run`."""
        sub_blocks = slice(first // self.type.sub, (first + self.step) // self.type.sub)
        return self._encode_columns(
            self.type,
            first,
            target,
            lanes,
            self.row_scales,
            self.scales[sub_blocks],
            column_weight,
            feedback,
            before,
            cost,
        )

    def refit(self, h: np.ndarray) -> None:
        """Fit the row scales to the codes.

        A row's value is f v + o, where v is its coded part, o its outliers (elsewhere zero) and f
        the factor that is sought for the row scale. With e = f v + o - w, the output error e h e^T
        is least at

            f = v h (w - o)^T / (v h v^T)

        The new scale is clipped to between half and twice the old one and rounded to FP16.
        """
        w, values, outlier = self.w, self.values, self.outlier  # (cols, rows)

        def moments(part: slice) -> tuple[np.ndarray, np.ndarray]:
            """Numerator and denominator of f for some rows."""
            if outlier is None:
                coded = np.ascontiguousarray(values[:, part])
            else:
                coded = np.where(outlier[:, part], 0, values[:, part])
            image = tall_product(h, coded)
            wanted = w[:, part] - values[:, part] + coded  # w - o
            return (image * wanted).sum(0), (image * coded).sum(0)

        numerators, denominators = zip(*each(moments, pieces(w.shape[1])), strict=True)
        up = np.concatenate(numerators)
        down = np.concatenate(denominators)
        factor = np.divide(up, down, out=np.ones_like(up), where=down > 0)
        old = self.row_scales
        new = round_half(old * np.clip(factor, 0.5, 2))
        ratio = np.divide(new, old, out=np.zeros_like(old), where=old > 0)
        self.values *= ratio if self.outlier is None else np.where(self.outlier, 1, ratio)
        self.row_scales = new

    def encoded(self, rows: int, cols: int) -> Encoded:
        """See `MatrixCodes.encoded`."""
        row_scales = from_lanes(self.row_scales[None], rows)
        values = from_lanes(self.values, rows)
        return Encoded(
            table=self.entries.astype(np.int8),
            row_scales=row_scales[:rows, 0].astype(np.float16),
            scales=from_lanes(self.scales, rows),
            codes=self.code_of[from_lanes(self.codes, rows)],
            values=values[:rows, :cols],
        )


def native_table(type: TensorType, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `gwq_encode` is given for a tile type's table (16,), and what its codes mean.

    Returns (float32 (n,), what each window stands for; uint8 (n,), the type's code for each of the
    native one's). The two differ where codes do not depend on a neighbour, as the native encoder
    wants what they stand for in ascending order.
    """
    by_window = levels(type, table)
    order = np.arange(len(by_window))
    if not type.history:
        order = np.argsort(by_window, kind="stable")
    return by_window[order].astype(np.float32), order.astype(np.uint8)


def first_row_scales(
    type: TensorType, weight: np.ndarray, table: np.ndarray, outlier: np.ndarray | None
) -> np.ndarray:
    """Row scales in whose units the scales of all sub-blocks will fit six bits.

    v is the largest entry that a code has whose neighbour is the same code; without history, the
    largest entry of all. With d the row scale, the largest weight m of a row would take a sub-block
    scale of m / (d v). That is to be HEADROOM of the largest scale there is, 31:

        d = m / (v HEADROOM 31)

    weight and outlier: (cols, rows). Returns FP16 values as float32, (rows,).
    """
    dense = weight if outlier is None else np.where(outlier, 0, weight)
    codes = np.arange(1 << type.bits)
    equal = np.abs(table[codes | (codes & ((1 << type.history) - 1)) << type.bits]).max()
    scale = np.abs(dense).max(0) / (equal * HEADROOM * (SCALE_BIAS - 1))
    return np.ascontiguousarray(round_half(scale))
