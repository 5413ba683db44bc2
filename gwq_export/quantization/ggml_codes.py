"""Codes of ggml types with levels (q4_0, iq4_nl): an FP16 scale for each row and 32 columns."""

from __future__ import annotations

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.format.types import TYPES
from gwq_export.quantization.lanes import from_lanes
from gwq_export.quantization.matrix_codes import Encoded, MatrixCodes, round_half

# What is tried for a scale: these times the one that maps the largest weight to an end of the table
FACTORS = np.linspace(0.7, 1.2, 11, dtype=np.float32)


class GgmlCodes(MatrixCodes):
    """A weight is unit scale * level; the scale may be negative and is fitted here.

    scales: float32 (units, rows), FP16 values; a unit is `step` = 32 columns of a row.
    """

    def prepare(self) -> None:
        """Make room for the scales of the units."""
        unit, rows = self.type.unit, self.w.shape[1]
        self.step = unit
        self.scales = np.zeros((len(self.w) // unit, rows), np.float32)
        self._ones = np.ones((unit // TYPES["gwq4"].sub, rows), np.int8)

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
        """See `MatrixCodes.run`.

        To the native encoder a unit looks like a row of gwq4, whose codes do not depend on each
        other either, with the unit's scale as row scale and sub-block scales of 1.
        """
        unit = first // self.step
        if column_weight is not None:
            rows = lanes or slice(None)
            part = slice(first, first + self.step)
            outlier = None if self.outlier is None else self.outlier[part, rows]
            self.scales[unit, rows] = fit_units(target[:, rows], self.table, column_weight, outlier)
        return self._encode_columns(
            *(TYPES["gwq4"], first, target, lanes, self.scales[unit], self._ones),
            *(None, feedback, before),
        )

    def refit(self, h: np.ndarray) -> None:
        """Fit the scales to the codes, one unit after another, each given those before it.

        With p the columns of a unit, v its coded part and E = values - w the error of all columns,
        a factor f for the scale changes E by (f - 1) v in p, and the output error E^T h E by

            2 (f - 1) v^T (h E)_p + (f - 1)^2 v^T h_pp v

        which is least at f = 1 - v^T (h E)_p / (v^T h_pp v).

        The new scale is clipped to between half and twice the old one and rounded to FP16.
        """
        error = self.values - self.w
        for unit, old in enumerate(self.scales.copy()):
            part = slice(unit * self.step, (unit + 1) * self.step)
            level = self.table[self.codes[part]]
            outliers: np.ndarray | int = 0
            if self.outlier is not None:
                level[self.outlier[part] > 0] = 0
                outliers = np.where(self.outlier[part], self.values[part], 0)
            v = old * level
            down = (v * product(h[part, part], v)).sum(0)
            up = (v * product(h[part], error)).sum(0)
            reduction = np.divide(up, down, out=np.zeros_like(up), where=down > 0)
            new = round_half(old * np.clip(1 - reduction, 0.5, 2))
            self.scales[unit] = new
            self.values[part] = new * level + outliers
            error[part] += (new - old) * level

    def encoded(self, rows: int, cols: int) -> Encoded:
        """See `MatrixCodes.encoded`."""
        scales = from_lanes(self.scales, rows)
        codes = from_lanes(self.codes, rows)
        values = from_lanes(self.values, rows)
        return Encoded(
            table=self.table.astype(np.int8),
            row_scales=None,
            scales=scales[:rows, : cols // self.step].astype(np.float16),
            codes=codes[:rows, :cols],
            values=values[:rows, :cols],
        )


def fit_units(
    target: np.ndarray, table: np.ndarray, weight: np.ndarray, outlier: np.ndarray | None = None
) -> np.ndarray:
    """Scales of least weighted squared error for one unit of columns in all rows.

    target: float32 (columns, rows); table: float32 (16,), ascending; weight: (columns,), how
    much the squared error of a column counts; outlier: (columns, rows), where targets do not
    count, or None. Returns FP16 values as float32, (rows,).

    First the scales that map the largest target x_max near either end of the table are tried:

        d = factor * x_max / end            for every factor of FACTORS

    Then, twice, d is fitted by least squares to the values v = d * level of the best scale's codes

        d <- d * sum(weight v x) / sum(weight v^2)

    and taken if the codes nearest at the new scale have a smaller error.
    """
    if outlier is None:
        weight = weight[:, None] * np.ones_like(target)
    else:
        weight = np.where(outlier, 0, weight[:, None])
    x = np.where(weight > 0, target, 0)
    extreme = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    middle = (table[1:] + table[:-1]) / 2  # the nearest level changes here

    def measure(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of the nearest codes at scales d (rows,), and their squared errors."""
        inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
        value = d * table[np.searchsorted(middle, x * inverse)]
        return value, (weight * (x - value) ** 2).sum(0)

    best = np.zeros_like(extreme)
    least = np.full_like(extreme, np.inf)
    for end in (table[0], table[-1]):
        for factor in FACTORS:
            d = round_half(extreme * (factor / end))
            _, error = measure(d)
            best, least = np.where(error < least, d, best), np.minimum(error, least)
    for _ in range(2):
        value, _ = measure(best)
        up = (weight * value * x).sum(0)
        down = (weight * value * value).sum(0)
        d = round_half(best * np.divide(up, down, out=np.ones_like(up), where=down > 0))
        _, error = measure(d)
        best, least = np.where(error < least, d, best), np.minimum(error, least)
    return best
