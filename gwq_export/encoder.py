"""One matrix as tiles: scales, trellis codes and error feedback, around the native `gwq_encode`.

Rows are worked on in the order of the native encoder, (columns, 8 rows of a ring, rings), called lanes here.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gwq_export.format import BLOCK, RING, SCALE_BIAS, ffi, padded_rows
from gwq_export.native import check, lib, pointer
from gwq_export.parallel import add_product, cholesky_inverse, each, pieces, plain_product, product

LANES = 8  # the native encoder takes rings by eights
HEADROOM = 0.9  # of the largest scale that the first fit of a row may take: error feedback moves weights
DAMPING = 0.01  # of the Hessian's mean diagonal, added to it; with few tokens, columns / tokens of it more
ROW_FLOOR = 0.1  # of the mean row weight, added to every one: the estimate is noisy
_POINTERS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


class Curvature:
    """The Hessian (cols, cols) of a matrix's inputs, damped and padded, and what error feedback needs of it.

    Matrices that share an input share one: its factorization is computed once.
    """

    def __init__(self, hessian, tokens=None):
        """tokens: how many the Hessian is the mean of; the fewer, the more it is drawn to a multiple of the identity."""
        cols = len(hessian)
        damping = DAMPING + (cols / tokens if tokens else 0)
        padded = -(-cols // BLOCK) * BLOCK
        self.cols, mean = cols, max(float(np.trace(hessian)) / cols, 1e-30)
        self.matrix = np.zeros((padded, padded), np.float32)
        self.matrix[:cols, :cols] = hessian
        self.matrix[np.arange(cols), np.arange(cols)] += damping * mean
        self.matrix[np.arange(cols, padded), np.arange(cols, padded)] = damping * mean
        self.column_weight = np.ascontiguousarray(np.diag(self.matrix) / mean)  # float32 (padded cols,)
        self.column_weight[cols:] = 0

    @cached_property
    def factor(self):
        """U, upper triangular, float32: U^T U is the inverse of the matrix."""
        # With the columns in reverse order, matrix = L L^T becomes matrix = R R^T, R upper; U is R's inverse.
        inverse = cholesky_inverse(self.matrix[::-1, ::-1].astype(np.float64))
        return inverse[::-1, ::-1].astype(np.float32)


def curvature_of(statistics):
    """The Curvature among a matrix's statistics, made of the Hessian if that is an array still."""
    h = statistics["hessian"]
    return h if isinstance(h, Curvature) else Curvature(h)


class Curvatures:
    """Makes a Curvature of each Hessian that comes by, one of neighbours that share it."""

    def __init__(self, tokens=None):
        self.tokens, self.of, self.last = tokens, None, None

    def put(self, statistics, tokens=None):
        """The statistics with a Curvature in the place of the Hessian, if they have one. tokens: of it, if not of all."""
        hessian = statistics.get("hessian")
        if hessian is None:
            return statistics
        if self.of is not hessian:
            self.of, self.last = hessian, Curvature(hessian, self.tokens if tokens is None else tokens)
        return statistics | {"hessian": self.last}


@dataclass
class Encoded:
    """What `tiles.pack_tiles` takes, and `values` (rows, cols) float32: the dense part as float32, targets where held out."""

    table: np.ndarray
    row_scales: np.ndarray
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


def _rows_to_lanes(vector, rings, fill):
    out = np.full(rings * RING, fill, np.float32)
    out[: len(vector)] = vector
    return np.ascontiguousarray(out.reshape(rings, RING).T)


def row_scales(weight, type, table, outlier):
    """FP16 (padded rows,): units in which every sub-block's scale fits six bits; weight and outlier in lanes."""
    held = weight if outlier is None else np.where(outlier, 0, weight)
    largest = np.abs(held).max(0) / (np.abs(table).max() * HEADROOM * (SCALE_BIAS - 1))
    return np.ascontiguousarray(_half(largest))


def _half(values):
    """Rounded to FP16, and within its range."""
    return np.minimum(values, 65504).astype(np.float16).astype(np.float32)


def encode(weight, type, table, *, curvature=None, row_weight=None, outlier=None, feedback=True, sweeps=0, pool=ffi.NULL):
    """Encode weight (rows, cols) float32 with the integer table (16,).

    curvature: a Curvature; the squared error of the outputs is what is minimised: scales are fitted under its diagonal,
    `feedback` hands the error of each column on to later ones (GPTQ, arXiv 2210.17323), `sweeps` rounds of coordinate
    descent follow (as in arXiv 2309.01885), then a fit of the row scales. None: the squared error of the weights.
    row_weight (rows,): how much the error of an output counts. outlier (rows, cols) bool: held out.
    """
    rows, cols = weight.shape
    w, table = to_lanes(np.ascontiguousarray(weight, np.float32)), np.asarray(table, np.float32)
    padded, _, rings = w.shape
    outlier = None if outlier is None else to_lanes(outlier.astype(np.uint8))
    d = row_scales(w, type, table, outlier)
    row_weight = np.ones(rows, np.float32) if row_weight is None else row_weight / max(row_weight.mean(), 1e-30) + ROW_FLOOR
    matrix = _Matrix(type, table, d, _rows_to_lanes(row_weight, rings, 1), w, outlier, pool)
    column_weight = curvature.column_weight if curvature else (np.arange(padded) < cols).astype(np.float32)
    factor, diagonal = (curvature.factor, np.diag(curvature.factor)) if curvature and feedback else (None, None)
    target = w.copy()
    flat = target.reshape(padded, -1)
    for b in range(0, padded, BLOCK):
        part = slice(b, b + BLOCK)
        gain = None if factor is None else factor[part, b:] / diagonal[part, None]
        own = None if factor is None else gain[:, :BLOCK]
        error = matrix.run(b, target[part], column_weight=column_weight[part], feedback=own)
        if factor is not None and b + BLOCK < padded:
            add_product(flat[b + BLOCK :], gain[:, BLOCK:].T, error)
    if factor is not None:
        for _ in range(sweeps):
            matrix.sweep(curvature.matrix)
        matrix.refit_rows(curvature.matrix)
    d, scales, codes, values = (from_lanes(a, rows) for a in (matrix.d[None], matrix.scales, matrix.codes, matrix.values))
    return Encoded(table.astype(np.int8), d[:rows, 0].astype(np.float16), scales, codes, values[:rows, :cols])


class _Matrix:
    """A matrix on its way: its parts in lanes."""

    def __init__(self, type, table, d, row_weight, w, outlier, pool):
        self.type, self.table, self.d, self.row_weight, self.w, self.outlier, self.pool = type, table, d, row_weight, w, outlier, pool
        self.scales = np.empty((len(w) // type.sub, *w.shape[1:]), np.int8)
        self.codes, self.values = np.empty(w.shape, np.uint8), np.empty_like(w)

    def run(self, first, target, column_weight=None, feedback=None, before=None):
        """Encode the block of columns at `first`; scales are fitted when column_weight is given. Returns value - target, flat.

        target (64, 8, rings); feedback (64, 64) and before (64, 8, rings) as in `gwq_encoding`.
        """
        part, subs = slice(first, first + BLOCK), slice(first // self.type.sub, (first + BLOCK) // self.type.sub)
        target = np.ascontiguousarray(target)
        arrays = {
            "table": self.table, "row_scale": self.d, "row_weight": self.row_weight, "column_weight": column_weight,
            "outlier": None if self.outlier is None else self.outlier[part], "feedback": feedback, "before": before,
            "target": target, "scale": self.scales[subs], "code": self.codes[part], "value": self.values[part],
        }  # fmt: skip
        e, kept = ffi.new("gwq_encoding *"), {}
        e.type, e.columns, e.rings, e.fit = self.type.id, BLOCK, target.shape[2], column_weight is not None
        for name, array in arrays.items():
            if array is not None:
                kept[name] = np.ascontiguousarray(array)
                setattr(e, name, pointer(kept[name], _POINTERS[array.dtype.name]))
        check(lib().gwq_encode(self.pool, e), "the encoder")
        return (self.values[part] - target).reshape(BLOCK, -1)

    def sweep(self, h):
        """One round of coordinate descent on tr((values - w) h (values - w)^T), a column at a time."""
        error, diagonal = (self.values - self.w).reshape(len(self.w), -1), np.diag(h)
        for b in range(0, len(self.w), BLOCK):
            part = slice(b, b + BLOCK)
            step = (product(h[part], error) / diagonal[part, None]).reshape(self.w[part].shape)
            before = self.values[part].copy()
            self.run(b, before - step, feedback=-h[part, part] / diagonal[None, part], before=before)
            error[part] = (self.values[part] - self.w[part]).reshape(BLOCK, -1)

    def refit_rows(self, h):
        """Row scales of least output error for the codes there are."""
        w, values = self.w.reshape(len(h), -1), self.values.reshape(len(h), -1)
        outlier = None if self.outlier is None else self.outlier.reshape(len(h), -1)

        def moments(part):
            dense = np.ascontiguousarray(values[:, part]) if outlier is None else np.where(outlier[:, part], 0, values[:, part])
            image = plain_product(h, dense)
            return (image * (w[:, part] - values[:, part] + dense)).sum(0), (image * dense).sum(0)

        up, down = (np.concatenate(sums) for sums in zip(*each(moments, pieces(w.shape[1])), strict=True))
        factor = np.divide(up, down, out=np.ones_like(up), where=down > 0).reshape(self.d.shape)
        new = _half(self.d * np.clip(factor, 0.5, 2))
        ratio = np.divide(new, self.d, out=np.zeros_like(self.d), where=self.d > 0)
        self.values *= ratio if self.outlier is None else np.where(self.outlier, 1, ratio)
        self.d = new
