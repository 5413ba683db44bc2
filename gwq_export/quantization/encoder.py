"""One matrix as codes, of a tile type or a stock one: scales, codes and error feedback, around the
native `gwq_encode`.

Rows are worked on in the order of the native encoder, (columns, 8 rows of a ring, rings), called
lanes here.
"""

from dataclasses import dataclass

import numpy as np

from gwq_export.compute.linalg import add_product, pieces, plain_product, product
from gwq_export.compute.threads import each
from gwq_export.format.types import BLOCK, RING, SCALE_BIAS, TYPES, ffi, padded_rows
from gwq_export.native.library import check, lib, pointer

LANES = 8  # the native encoder takes rings by eights
HEADROOM = (
    0.9  # of the largest scale that the first fit of a row may take: error feedback moves weights
)
FACTORS = np.linspace(
    0.7, 1.2, 11, dtype=np.float32
)  # times the scale that maps the largest weight to the end of a table of levels
ROW_FLOOR = 0.1  # of the mean row weight, added to every one: the estimate is noisy
_POINTERS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


@dataclass
class Encoded:
    """What `tiles.pack_tiles` or `format.pack_codes` takes, and `values` (rows, cols) float32: the
    dense part as float32, targets where held out. ggml types have no row_scales: their scales are
    FP16.
    """

    table: np.ndarray
    row_scales: np.ndarray | None
    scales: np.ndarray
    codes: np.ndarray
    values: np.ndarray


def to_lanes(array):
    """(rows, cols) -> (padded cols, 8, rings), zero-padded."""
    rows, cols = array.shape
    rings = -(-rows // (RING * LANES)) * LANES
    out = np.zeros((-(-cols // BLOCK) * BLOCK, RING, rings), array.dtype)
    full = np.zeros((rings * RING, cols), array.dtype)
    full[:rows] = array
    out[:cols] = full.reshape(rings, RING, cols).transpose(2, 1, 0)
    return out


def from_lanes(lanes, rows):
    """(cols, 8, rings) -> (padded rows, cols)."""
    flat = np.ascontiguousarray(lanes.transpose(2, 1, 0)).reshape(-1, len(lanes))
    return flat[: padded_rows(rows)]


def relative(row_weight):
    """Row weights in units of their mean, none near zero."""
    return row_weight / max(row_weight.mean(), 1e-30) + ROW_FLOOR


def _rows_to_lanes(vector, rings, fill):
    out = np.full(rings * RING, fill, np.float32)
    out[: len(vector)] = vector
    return np.ascontiguousarray(out.reshape(rings, RING).T)


def row_scales(weight, type, table, outlier):
    """FP16 (padded rows,): units in which every sub-block's scale fits six bits; weight and outlier
    in lanes.
    """
    held = weight if outlier is None else np.where(outlier, 0, weight)
    largest = np.abs(held).max(0) / (np.abs(table).max() * HEADROOM * (SCALE_BIAS - 1))
    return np.ascontiguousarray(_half(largest))


def _half(values):
    """Rounded to FP16, and within its range."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def encode(
    weight,
    type,
    table,
    *,
    curvature=None,
    row_weight=None,
    outlier=None,
    feedback=True,
    sweeps=0,
    pool=ffi.NULL,
):
    """Encode weight (rows, cols) float32 with the integer table (16,), ascending where the type has
    no history.

    curvature: a Curvature; the squared error of the outputs is what is minimised: scales are fitted
    under its diagonal, `feedback` hands the error of each column on to later ones (GPTQ, arXiv
    2210.17323), `sweeps` rounds of coordinate descent follow (as in arXiv 2309.01885), then a fit
    of the scales. None: the squared error of the weights. row_weight (rows,): how much the error of
    an output counts. outlier (rows, cols) bool: held out.
    """
    rows, cols = weight.shape
    w, table = to_lanes(np.ascontiguousarray(weight, np.float32)), np.asarray(table, np.float32)
    padded, _, rings = w.shape
    outlier = None if outlier is None else to_lanes(outlier.astype(np.uint8))
    row_weight = np.ones(rows, np.float32) if row_weight is None else relative(row_weight)
    matrix = (_Tiles if type.bits else _Units)(
        type, table, _rows_to_lanes(row_weight, rings, 1), w, outlier, pool
    )
    column_weight = (
        curvature.column_weight if curvature else (np.arange(padded) < cols).astype(np.float32)
    )
    factor, diagonal = (
        (curvature.factor, np.diag(curvature.factor)) if curvature and feedback else (None, None)
    )
    target = w.copy()
    flat = target.reshape(padded, -1)
    for b in range(0, padded, matrix.step):
        part = slice(b, b + matrix.step)
        gain = None if factor is None else factor[part, b:] / diagonal[part, None]
        own = None if factor is None else gain[:, : matrix.step]
        error = matrix.run(b, target[part], column_weight=column_weight[part], feedback=own)
        if factor is not None and b + matrix.step < padded:
            add_product(flat[b + matrix.step :], gain[:, matrix.step :].T, error)
    if factor is not None:
        for _ in range(sweeps):
            matrix.sweep(curvature.matrix)
        matrix.refit(curvature.matrix)
    return matrix.encoded(rows, cols)


class _Matrix:
    """A matrix on its way: its parts in lanes. `step`: columns encoded at a time."""

    step = BLOCK

    def __init__(self, type, table, row_weight, w, outlier, pool):
        self.type, self.table, self.row_weight, self.w, self.outlier, self.pool = (
            type,
            table,
            row_weight,
            w,
            outlier,
            pool,
        )
        self.codes, self.values = np.empty(w.shape, np.uint8), np.empty_like(w)

    def _native(self, type, first, target, row_scale, scale, column_weight, feedback, before):
        """`gwq_encode` of `step` columns at `first`. Returns value - target, flat."""
        part, target = slice(first, first + self.step), np.ascontiguousarray(target)
        arrays = {
            "table": self.table,
            "row_scale": row_scale,
            "row_weight": self.row_weight,
            "column_weight": column_weight,
            "outlier": None if self.outlier is None else self.outlier[part],
            "feedback": feedback,
            "before": before,
            "target": target,
            "scale": scale,
            "code": self.codes[part],
            "value": self.values[part],
        }
        e, kept = ffi.new("gwq_encoding *"), {}
        e.type, e.columns, e.rings, e.fit = (
            type.id,
            self.step,
            target.shape[2],
            column_weight is not None,
        )
        for name, array in arrays.items():
            if array is not None:
                kept[name] = np.ascontiguousarray(array)
                setattr(e, name, pointer(kept[name], _POINTERS[array.dtype.name]))
        check(lib().gwq_encode(self.pool, e), "the encoder")
        return (self.values[part] - target).reshape(self.step, -1)

    def sweep(self, h):
        """One round of coordinate descent on tr((values - w) h (values - w)^T), a column at a time."""
        error, diagonal = (self.values - self.w).reshape(len(self.w), -1), np.diag(h)
        for b in range(0, len(self.w), self.step):
            part = slice(b, b + self.step)
            step = (product(h[part], error) / diagonal[part, None]).reshape(self.w[part].shape)
            before = self.values[part].copy()
            self.run(
                b, before - step, feedback=-h[part, part] / diagonal[None, part], before=before
            )
            error[part] = (self.values[part] - self.w[part]).reshape(self.step, -1)


class _Tiles(_Matrix):
    """Of a tile type: an FP16 scale for each row, six bits for each sub-block, fitted natively."""

    def __init__(self, type, table, row_weight, w, outlier, pool):
        super().__init__(type, table, row_weight, w, outlier, pool)
        self.d = row_scales(w, type, table, outlier)
        self.scales = np.empty((len(w) // type.sub, *w.shape[1:]), np.int8)

    def run(self, first, target, column_weight=None, feedback=None, before=None):
        """Encode the columns at `first`; scales are fitted when column_weight is given. Returns
        value - target, flat.

        target (step, 8, rings); feedback (step, step) and before (step, 8, rings) as in
        `gwq_encoding`.
        """
        subs = slice(first // self.type.sub, (first + self.step) // self.type.sub)
        return self._native(
            self.type, first, target, self.d, self.scales[subs], column_weight, feedback, before
        )

    def encoded(self, rows, cols):
        d, scales, codes, values = (
            from_lanes(a, rows) for a in (self.d[None], self.scales, self.codes, self.values)
        )
        return Encoded(
            self.table.astype(np.int8),
            d[:rows, 0].astype(np.float16),
            scales,
            codes,
            values[:rows, :cols],
        )

    def refit(self, h):
        """Row scales of least output error for the codes there are."""
        w, values = self.w.reshape(len(h), -1), self.values.reshape(len(h), -1)
        outlier = None if self.outlier is None else self.outlier.reshape(len(h), -1)

        def moments(part):
            dense = (
                np.ascontiguousarray(values[:, part])
                if outlier is None
                else np.where(outlier[:, part], 0, values[:, part])
            )
            image = plain_product(h, dense)
            return (image * (w[:, part] - values[:, part] + dense)).sum(0), (image * dense).sum(0)

        up, down = (
            np.concatenate(sums) for sums in zip(*each(moments, pieces(w.shape[1])), strict=True)
        )
        factor = np.divide(up, down, out=np.ones_like(up), where=down > 0).reshape(self.d.shape)
        new = _half(self.d * np.clip(factor, 0.5, 2))
        ratio = np.divide(new, self.d, out=np.zeros_like(self.d), where=self.d > 0)
        self.values *= ratio if self.outlier is None else np.where(self.outlier, 1, ratio)
        self.d = new


class _Units(_Matrix):
    """Of a ggml type with levels: an FP16 scale, of either sign, for each row and unit of columns,
    fitted here.
    """

    def __init__(self, type, table, row_weight, w, outlier, pool):
        super().__init__(type, table, row_weight, w, outlier, pool)
        self.step = type.unit
        self.d = np.zeros((len(w) // type.unit, *w.shape[1:]), np.float32)
        self._ones = np.ones((type.unit // TYPES["gwq4"].sub, *w.shape[1:]), np.int8)

    def run(self, first, target, column_weight=None, feedback=None, before=None):
        """As for tiles; to the native encoder a unit looks like a row of gwq4 whose small scales
        are 1.
        """
        unit = first // self.step
        if column_weight is not None:
            outlier = None if self.outlier is None else self.outlier[first : first + self.step]
            self.d[unit] = fit_units(target, self.table, column_weight, outlier)
        return self._native(
            TYPES["gwq4"], first, target, self.d[unit], self._ones, None, feedback, before
        )

    def encoded(self, rows, cols):
        d, codes, values = (from_lanes(a, rows)[:rows] for a in (self.d, self.codes, self.values))
        return Encoded(
            self.table.astype(np.int8),
            None,
            d[:, : cols // self.step].astype(np.float16),
            codes[:, :cols],
            values[:, :cols],
        )

    def refit(self, h):
        """Scales of least output error for the codes there are, a unit at a time, each given those
        before it.
        """
        error = (self.values - self.w).reshape(len(h), -1)
        for unit in range(len(self.d)):
            part = slice(unit * self.step, (unit + 1) * self.step)
            entry = self.table[self.codes[part]]
            if self.outlier is not None:
                entry[self.outlier[part] > 0] = 0
            flat = (self.d[unit] * entry).reshape(self.step, -1)
            down, up = (
                (flat * product(h[part, part], flat)).sum(0),
                (flat * product(h[part], error)).sum(0),
            )
            factor = 1 - np.divide(up, down, out=np.zeros_like(up), where=down > 0).reshape(
                self.d[unit].shape
            )
            before, self.d[unit] = (
                self.d[unit].copy(),
                _half(self.d[unit] * np.clip(factor, 0.5, 2)),
            )
            held = 0 if self.outlier is None else np.where(self.outlier[part], self.values[part], 0)
            self.values[part] = self.d[unit] * entry + held
            error[part] += ((self.d[unit] - before) * entry).reshape(self.step, -1)


def fit_units(target, table, weight, outlier=None):
    """FP16 scales (8, rings), as float32, of least squared error for a unit of columns, target
    (columns, 8, rings).

    weight (columns,): how much a column counts. Tried are those that map the largest target near
    either end of the table; what least squares makes of the best one's codes is taken if it is
    better.
    """
    weight = (
        weight[:, None, None] * np.ones_like(target)
        if outlier is None
        else np.where(outlier, 0, weight[:, None, None])
    )
    held = np.where(weight > 0, target, 0)
    extreme = np.take_along_axis(held, np.abs(held).argmax(0)[None], 0)[0]
    middle = (table[1:] + table[:-1]) / 2

    def measure(d):
        value = (
            d
            * table[
                np.searchsorted(middle, held * np.divide(1, d, out=np.zeros_like(d), where=d != 0))
            ]
        )
        return value, (weight * (held - value) ** 2).sum(0)

    best, least = np.zeros_like(extreme), np.full_like(extreme, np.inf)
    for end in (table[0], table[-1]):
        for factor in FACTORS:
            d = _half(extreme * (factor / end))
            _, error = measure(d)
            best, least = np.where(error < least, d, best), np.minimum(error, least)
    for _ in range(2):
        value, _ = measure(best)
        up, down = (weight * value * held).sum(0), (weight * value * value).sum(0)
        d = _half(best * np.divide(up, down, out=np.ones_like(up), where=down > 0))
        _, error = measure(d)
        best, least = np.where(error < least, d, best), np.minimum(error, least)
    return best
