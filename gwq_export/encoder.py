"""One matrix as tiles: scales, trellis codes and error feedback, around the native `gwq_encode`.

Rows are worked on in the order of the native encoder, (columns, 8 rows of a ring, rings), called lanes here.
"""

from dataclasses import dataclass

import numpy as np

from gwq_export.format import BLOCK, ENTRY_MAX, RING, ROWS, SCALE_BIAS, ffi
from gwq_export.native import lib, pointer

LANES = 8  # the native encoder takes rings by eights
HEADROOM = 0.9  # of the largest scale that the first fit of a row may take: error feedback moves weights
DAMPING = 0.01  # of the Hessian's mean diagonal, added to it


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


def from_lanes(lanes):
    """(cols, 8, rings) -> (rows, cols), rows up to a multiple of 16."""
    cols = len(lanes)
    rows = np.ascontiguousarray(lanes.transpose(2, 1, 0)).reshape(-1, cols)
    return rows[: len(rows) // ROWS * ROWS]


def _rows_to_lanes(vector, rings, fill):
    out = np.full(rings * RING, fill, np.float32)
    out[: len(vector)] = vector
    return np.ascontiguousarray(out.reshape(rings, RING).T)


def run(pool, type, table, row_scale, row_weight, target, scale, *, column_weight=None, outlier=None, feedback=None, before=None):
    """The native encoder over some columns; fits scales when column_weight is given. Returns (codes, values) in lanes.

    target (columns, 8, rings) is overwritten with what feedback made of it; scale (sub-blocks, 8, rings) int8 with the fit.
    """
    e, (columns, _, rings) = ffi.new("gwq_encoding *"), target.shape
    codes, values = np.empty(target.shape, np.uint8), np.empty(target.shape, np.float32)
    e.type, e.columns, e.rings, e.fit = type.id, columns, rings, column_weight is not None
    arrays = {
        "table": table, "row_scale": row_scale, "row_weight": row_weight, "column_weight": column_weight, "outlier": outlier,
        "feedback": feedback, "before": before, "target": target, "scale": scale, "code": codes, "value": values,
    }  # fmt: skip
    for name, array in arrays.items():
        if array is not None:
            assert array.flags.c_contiguous
            setattr(e, name, pointer(array, {"uint8": "uint8_t *", "int8": "int8_t *"}.get(array.dtype.name, "float *")))
    code = lib().gwq_encode(pool, e)
    assert code == 0, code
    return codes, values


def row_scales(weight, type, table, outlier):
    """FP16 (padded rows,): units in which every sub-block's scale fits six bits; weight and outlier in lanes."""
    held = weight if outlier is None else np.where(outlier, 0, weight)
    largest = np.abs(held).max(0) / (np.abs(table).max() * HEADROOM * (SCALE_BIAS - 1))
    return largest.astype(np.float16).astype(np.float32)


def encode(pool, weight, type, table, hessian=None, row_weight=None, outlier=None, sweeps=0, feedback=True):
    """Encode weight (rows, cols) float32 with the integer table (16,).

    hessian (cols, cols): mean of x x^T of the matrix's inputs; the squared error of the outputs is what is minimised, with
    error feedback column by column (GPTQ, arXiv 2210.17323) and then `sweeps` rounds of coordinate descent; None: the
    squared error of the weights. row_weight (rows,): how much an output counts. outlier (rows, cols) bool: held out.
    """
    rows, cols = weight.shape
    w, table = to_lanes(np.ascontiguousarray(weight, np.float32)), np.asarray(table, np.float32)
    padded, _, rings = w.shape
    outlier = None if outlier is None else to_lanes(outlier.astype(np.uint8))
    d = np.ascontiguousarray(row_scales(w, type, table, outlier))
    rw = np.ones(rows, np.float32) if row_weight is None else row_weight / max(row_weight.mean(), 1e-30) + 0.1
    rw = _rows_to_lanes(rw, rings, 1)
    h = np.zeros((padded, padded))
    h[:cols, :cols] = np.eye(cols) if hessian is None else hessian
    mean = max(np.trace(h) / cols, 1e-30)
    h[np.diag_indices(cols)] += DAMPING * mean
    h[np.arange(cols, padded), np.arange(cols, padded)] = 1e-3 * mean
    column_weight = np.ascontiguousarray(np.diag(h) / mean, np.float32)
    column_weight[cols:] = 0
    per = BLOCK // type.sub
    scales, codes, values = np.empty((padded // type.sub, RING, rings), np.int8), np.empty(w.shape, np.uint8), np.empty_like(w)
    target, factor = w.copy(), None
    if hessian is not None and feedback:
        factor = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: inverse = factor^T factor
        factor = (factor / np.diag(factor)[:, None]).astype(np.float32)
    for b in range(0, padded, BLOCK):
        part, now = slice(b, b + BLOCK), np.ascontiguousarray(target[b : b + BLOCK])
        own = np.ascontiguousarray(scales[b // type.sub : b // type.sub + per])
        codes[part], values[part] = run(
            pool, type, table, d, rw, now, own, column_weight=np.ascontiguousarray(column_weight[part]),
            outlier=None if outlier is None else np.ascontiguousarray(outlier[part]),
            feedback=None if factor is None else np.ascontiguousarray(factor[part, part]))  # fmt: skip
        scales[b // type.sub : b // type.sub + per] = own
        if factor is not None and b + BLOCK < padded:
            error = (values[part] - now).reshape(BLOCK, -1)
            target[b + BLOCK :] += (factor[part, b + BLOCK :].T @ error).reshape(target[b + BLOCK :].shape)
    if hessian is not None:
        h = h.astype(np.float32)
        for _ in range(sweeps):
            _sweep(pool, type, table, d, rw, w, h, scales, outlier, codes, values)
        if feedback:
            d = _refit_rows(d, w, h, outlier, values)
    return Encoded(table.astype(np.int8), from_lanes(d[None])[:, 0].astype(np.float16)[:rows], from_lanes(scales),
                   from_lanes(codes), from_lanes(values)[:rows, :cols])  # fmt: skip


def _sweep(pool, type, table, d, rw, w, h, scales, outlier, codes, values):
    """One round of coordinate descent on tr((values - w) h (values - w)^T), a column at a time, in place."""
    error, per, diagonal = (values - w).reshape(len(w), -1), BLOCK // type.sub, np.diag(h)
    for b in range(0, len(w), BLOCK):
        part = slice(b, b + BLOCK)
        gradient = h[part] @ error
        target = np.ascontiguousarray((values[part].reshape(BLOCK, -1) - gradient / diagonal[part, None]).reshape(values[part].shape))
        own = np.ascontiguousarray(scales[b // type.sub : b // type.sub + per])
        codes[part], values[part] = run(
            pool, type, table, d, rw, target, own, outlier=None if outlier is None else np.ascontiguousarray(outlier[part]),
            feedback=np.ascontiguousarray(-h[part, part] / diagonal[None, part]), before=np.ascontiguousarray(values[part]))  # fmt: skip
        error[part] = (values[part] - w[part]).reshape(BLOCK, -1)


def _refit_rows(d, w, h, outlier, values):
    """Row scales of least output error for the codes there are; `values` follow, in place."""
    dense = values if outlier is None else np.where(outlier, 0, values)
    wanted = (w - values + dense).reshape(len(w), -1)
    flat = dense.reshape(len(w), -1)
    image = h @ flat
    up, down = (image * wanted).sum(0), (image * flat).sum(0)
    factor = np.divide(up, down, out=np.ones_like(up), where=down > 0).reshape(d.shape)
    new = (d * np.clip(factor, 0.5, 2)).astype(np.float16).astype(np.float32)
    ratio = np.divide(new, d, out=np.zeros_like(d), where=d > 0)
    values *= ratio if outlier is None else np.where(outlier, 1, ratio)
    return new


assert ENTRY_MAX < SCALE_BIAS
