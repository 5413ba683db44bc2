"""Finds the codes of one matrix: columns from left to right, with error feedback, then refinement.

With E the error of the matrix, H the Hessian of its inputs and G that of its outputs, what is
minimized is tr(G E H E^T) (`calibration.statistics`):

1. **Error feedback** (`feedback`). Scales are fitted and codes chosen a block of columns at a time,
   with the diagonal of H for the weights of the columns. After a column is coded, the targets of
   the columns that follow move so that they compensate its error as well as they can. Inside a
   block the native encoder does that; the columns after the block get the sum over the block's
   columns as one matrix product.
2. **Coordinate descent** (`MatrixCodes.sweep`): each column is coded again, given all others.
3. **A fit of the scales** to the codes that were found (`refit`).

Without G rows do not interact, and all go through the steps together. With it, 64 rows at a time
do, and then the targets of the rows that follow move. At 2 and 3 bits the codes of a ring, 16 or 8
columns of a row, restrict each other and are chosen together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gwq_export.compute.linalg import add_plain_product, pieces, plain_product
from gwq_export.compute.threads import each
from gwq_export.format.types import BLOCK, MAX_EXPONENT, TensorType, ffi, padded_rows
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.feedback import (
    ColumnGains,
    RowPart,
    column_gains,
    keep_column_gains,
    row_parts,
)
from gwq_export.quantization.ggml_codes import GgmlCodes
from gwq_export.quantization.lanes import LANES, lane_slices, rows_to_lanes, to_lanes
from gwq_export.quantization.matrix_codes import Encoded, MatrixCodes
from gwq_export.quantization.tile_codes import TileCodes

LARGEST_POWER = 11  # of two: the largest weight is below it, see `exponent_of`
AT_ONCE = 1 << 23  # weights that are worked on at once: rows do not depend on each other
BLOCKS_AT_ONCE = 8  # blocks of columns that threads go through before they meet
ROW_FLOOR = 0.1  # times the mean row weight is added to every one, as the estimate is noisy


def relative(row_weight: np.ndarray) -> np.ndarray:
    """Row weights (rows,) in units of their mean, plus ROW_FLOOR, so that none is near zero."""
    return row_weight / max(row_weight.mean(), 1e-30) + ROW_FLOOR


def encode(
    weight: np.ndarray,
    type: TensorType,
    table: Sequence[int],
    *,
    curvature: Curvature | None = None,
    outputs: np.ndarray | None = None,
    row_weight: np.ndarray | None = None,
    outlier: np.ndarray | None = None,
    feedback: bool = True,
    sweeps: int = 0,
    pool: Any = ffi.NULL,
) -> Encoded:
    """Encode a matrix as codes of a tile type or of a ggml type with levels.

    weight: float32 (rows, cols). table: a tile type's table or a ggml type's ascending levels, 16
    integers. curvature: None minimizes the squared error of the weights instead, without feedback.
    outputs: float32 (rows, width), G in groups of rows (`calibration.statistics`); None for rows
    that do not interact.
    row_weight: (rows,), the factor s; None for rows that count alike. outlier: bool (rows, cols),
    weights that are held out: they have no part in the fit of scales, and `values` has what they
    should become. feedback: False only fits scales and codes under the diagonal of the curvature.
    sweeps: rounds of coordinate descent after feedback. pool: a `gwq_pool *`, or NULL for one
    thread. Raises GwqError where the curvature cannot be factorized.
    """
    rows, cols = weight.shape
    exponent = exponent_of(weight) if type.bits else 0
    relative_weight = np.ones(rows, np.float32) if row_weight is None else relative(row_weight)

    def run(rows_here: Any, target: np.ndarray) -> Encoded:
        """Encode some rows, a slice or indices; target: (rows, cols), in units of 2^exponent."""
        return _encode_rows(
            target,
            type,
            np.asarray(table, np.float32),
            curvature,
            relative_weight[rows_here],
            None if outlier is None else outlier[rows_here],
            feedback,
            sweeps,
            pool,
        )

    def scaled(part: slice) -> np.ndarray:
        return np.asarray(weight[part], np.float32) * np.float32(2.0**-exponent)

    if outputs is None or curvature is None or not feedback:
        step = max(1, AT_ONCE // (cols * LANES)) * LANES
        encoded = _joined([run(part, scaled(part)) for part in pieces(rows, step)])
    else:
        keep_column_gains(curvature, type, type.unit if type.levels else BLOCK)
        encoded = _put_together(rows, _with_row_feedback(scaled(slice(None)), outputs, run))
    return replace(encoded, values=encoded.values * np.float32(2.0**exponent), exponent=exponent)


def _with_row_feedback(
    target: np.ndarray, outputs: np.ndarray, run: Callable[[np.ndarray, np.ndarray], Encoded]
) -> list[tuple[np.ndarray, Encoded]]:
    """[(indices of rows, their codes)] where rows of a group answer to errors of those before them.

    target: (rows, cols), changed. run(rows, target of them): codes some rows. Groups know nothing
    of each other, so that the k-th parts of all are coded at the same time.
    """
    groups = pieces(*outputs.shape)
    of_groups = each(lambda group: list(row_parts(outputs[group])), groups)
    runs = []
    for k in range(max(map(len, of_groups))):
        parts = [
            (g.start, parts[k]) for g, parts in zip(groups, of_groups, strict=True) if parts[k:]
        ]
        here = np.concatenate([start + part.rows for start, part in parts])
        e = run(here, target[here])
        runs.append((here, e))
        errors = np.split(e.values - target[here], np.cumsum([len(p.rows) for _, p in parts])[:-1])
        each(partial(_answer, target), list(zip(parts, errors, strict=True)))
    return runs


def _answer(target: np.ndarray, given: tuple[tuple[int, RowPart], np.ndarray]) -> None:
    """Move the targets of a group's later rows.

    given: (first row of the group, part of it), the part's errors.
    """
    (start, part), error = given
    target[start + part.later] += plain_product(part.gain.T, error)


def _joined(runs: Sequence[Encoded]) -> Encoded:
    """Runs of rows of one matrix, one after another."""
    if len(runs) == 1:
        return runs[0]
    scales = [run.row_scales for run in runs if run.row_scales is not None]
    return replace(
        runs[0],
        row_scales=np.concatenate(scales) if scales else None,
        scales=np.concatenate([run.scales for run in runs]),
        codes=np.concatenate([run.codes for run in runs]),
        values=np.concatenate([run.values for run in runs]),
    )


def _put_together(rows: int, runs: Sequence[tuple[np.ndarray, Encoded]]) -> Encoded:
    """A matrix of so many rows from runs of them, (indices, run); rows of padding are zero."""
    first = runs[0][1]
    count = rows if first.row_scales is None else padded_rows(rows)

    def scattered(field: str, count: int) -> np.ndarray:
        like = getattr(first, field)
        out = np.zeros((count, *like.shape[1:]), like.dtype)
        for here, e in runs:
            out[here] = getattr(e, field)[: len(here)]
        return out

    return replace(
        first,
        row_scales=None if first.row_scales is None else scattered("row_scales", rows),
        scales=scattered("scales", count),
        codes=scattered("codes", count),
        values=scattered("values", rows),
    )


def _encode_rows(
    weight: np.ndarray,
    type: TensorType,
    table: np.ndarray,
    curvature: Curvature | None,
    row_weight: np.ndarray,
    outlier: np.ndarray | None,
    feedback: bool,
    sweeps: int,
    pool: Any,
) -> Encoded:
    """`encode` for a run of rows, in units of the matrix's power of two.

    row_weight: as `relative` makes it.
    """
    rows, cols = weight.shape
    w = to_lanes(weight)
    padded, count = w.shape
    make = TileCodes if type.bits else GgmlCodes
    codes: MatrixCodes = make(
        type,
        table,
        rows_to_lanes(row_weight, count, 1),
        w,
        None if outlier is None else to_lanes(outlier.astype(np.uint8)),
        pool,
    )
    if curvature is None:
        column_weight = (np.arange(padded) < cols).astype(np.float32)
    else:
        column_weight = curvature.column_weight
    if curvature is None or not feedback:
        for first in range(0, padded, codes.step):
            part = slice(first, first + codes.step)
            weight_here = column_weight[part]
            codes.run(first, w[part], column_weight=weight_here, cost=weight_here)
    else:
        _encode_with_feedback(codes, curvature)
        for _ in range(sweeps):
            codes.sweep(curvature.matrix)
        codes.refit(curvature.matrix)
    return codes.encoded(rows, cols)


def exponent_of(weight: np.ndarray) -> int:
    """The exponent with which a tile type holds a matrix best.

    In units of 2^exponent the largest magnitude lies in 2^10 .. 2^11: outliers are far from the
    largest FP16 number, 65504, and the scales of rows whose weights are ten thousand times smaller
    are still normal FP16 numbers, of full precision.
    """
    _, power = np.frexp(np.abs(weight).max(initial=0))  # largest = m 2^power, 1/2 <= m < 1
    return int(np.clip(power - LARGEST_POWER, -MAX_EXPONENT, MAX_EXPONENT)) if power else 0


def _encode_with_feedback(codes: MatrixCodes, curvature: Curvature) -> None:
    """Step 1 of the module's docstring. Rows are divided among the threads."""
    target = codes.w.copy()
    step = codes.step

    def encode_lanes(gains: Sequence[ColumnGains], lanes: slice) -> None:
        for part, gain, cost in gains:
            error = codes.run(
                part.start,
                target[part],
                lanes,
                column_weight=curvature.column_weight[part],
                feedback=gain[:, :step],
                cost=cost,
            )
            if part.stop < len(target):
                add_plain_product(target[part.stop :, lanes], gain[:, step:].T, error)

    blocks = pieces(len(target), step)
    for run in pieces(len(blocks), BLOCKS_AT_ONCE):
        gains = column_gains(curvature, codes.type, step, blocks[run])
        each(partial(encode_lanes, gains), lane_slices(target))
