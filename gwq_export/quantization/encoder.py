"""Finds the codes of one matrix: columns from left to right, with error feedback, then refinement.

With E the error of the matrix and H the Hessian of its inputs, what is minimized is the output
error sum_i s_i E_i H E_i^T (`calibration.statistics`), in three steps:

1. **Error feedback** (GPTQ, arXiv 2210.17323). Scales are fitted and codes chosen a block of
   columns at a time, with the diagonal of H for the weights of the columns. After column j is
   coded with the error e_j, the targets of the columns that follow move so that they compensate it
   as well as they can:

       target_k  +=  e_j U_jk / U_jj        for k > j, with U^T U = H^-1 (`curvature`)

   Inside a block the native encoder does that; the columns after the block get the sum over the
   block's columns as one matrix product.
2. **Coordinate descent** (`MatrixCodes.sweep`): each column is coded again, given all others.
3. **A fit of the scales** to the codes that were found (`refit`).

Rows do not interact. At 2 and 3 bits the codes of a ring, 16 or 8 columns of a row, restrict each
other and are chosen together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gwq_export.compute.linalg import add_plain_product, pieces, plain_product
from gwq_export.compute.threads import each
from gwq_export.format.decoding import ring_order
from gwq_export.format.types import MAX_EXPONENT, TensorType, ffi
from gwq_export.quantization.curvature import Curvature
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
    row_weight: np.ndarray | None = None,
    outlier: np.ndarray | None = None,
    feedback: bool = True,
    sweeps: int = 0,
    pool: Any = ffi.NULL,
) -> Encoded:
    """Encode a matrix as codes of a tile type or of a ggml type with levels.

    weight: float32 (rows, cols). table: a tile type's table or a ggml type's ascending levels, 16
    integers. curvature: None minimizes the squared error of the weights instead, without feedback.
    row_weight: (rows,), the factor s; None for rows that count alike. outlier: bool (rows, cols),
    weights that are held out: they have no part in the fit of scales, and `values` has what they
    should become. feedback: False only fits scales and codes under the diagonal of the curvature.
    sweeps: rounds of coordinate descent after feedback. pool: a `gwq_pool *`, or NULL for one
    thread. Raises GwqError where the curvature cannot be factorized.
    """
    rows, cols = weight.shape
    exponent = exponent_of(weight) if type.bits else 0
    relative_weight = np.ones(rows, np.float32) if row_weight is None else relative(row_weight)
    step = max(1, AT_ONCE // (cols * LANES)) * LANES
    runs = []
    for first in range(0, rows, step):
        run = slice(first, first + step)
        e = _encode_rows(
            np.asarray(weight[run], np.float32) * np.float32(2.0**-exponent),
            type,
            np.asarray(table, np.float32),
            curvature,
            relative_weight[run],
            None if outlier is None else outlier[run],
            feedback,
            sweeps,
            pool,
        )
        runs.append(replace(e, values=e.values * np.float32(2.0**exponent), exponent=exponent))
    return _joined(runs)


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
        _encode_with_feedback(codes, curvature.factor, column_weight)
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


def _encode_with_feedback(
    codes: MatrixCodes, factor: np.ndarray, column_weight: np.ndarray
) -> None:
    """Step 1 of the module's docstring. factor: U (padded cols, padded cols).

    Rows are divided among the threads, each of which goes through several blocks at a time.
    """
    target = codes.w.copy()
    step = codes.step

    def gains(part: slice) -> tuple[slice, np.ndarray, np.ndarray]:
        """(a block, its gains (step, columns from the block on), costs of its columns)."""
        rows = _in_coding_order(codes, factor[part, part.start :])
        diagonal = np.diag(rows)
        gain = rows / diagonal[:, None]  # [j, k]: U_jk / U_jj
        real = column_weight[part] > 0  # padding costs nothing
        cost = np.where(real, 1 / np.square(diagonal), 0)
        return part, gain, cost / max(cost.mean(), 1e-30)

    def encode_lanes(run: Sequence[tuple[slice, np.ndarray, np.ndarray]], lanes: slice) -> None:
        for part, gain, cost in run:
            error = codes.run(
                part.start,
                target[part],
                lanes,
                column_weight=column_weight[part],
                feedback=gain[:, :step],
                cost=cost,
            )
            if part.stop < len(target):
                add_plain_product(target[part.stop :, lanes], gain[:, step:].T, error)

    blocks = pieces(len(target), step)
    for run in pieces(len(blocks), BLOCKS_AT_ONCE):
        each(partial(encode_lanes, each(gains, blocks[run])), lane_slices(target))


def _in_coding_order(codes: MatrixCodes, rows: np.ndarray) -> np.ndarray:
    """The rows of U that belong to a block of columns if those come in the order of their coding.

    rows: (step, columns from the block on). With P the block's columns in that order, U_block P =
    Q R, and Q^T U has the same Gram matrix as U and is triangular in that order. Rows and columns
    are returned as they lie in the matrix.
    """
    if not codes.type.history:
        return rows
    order = coding_order(codes.type, codes.step)
    q, _ = np.linalg.qr(rows[:, order].astype(np.float64))
    turned = np.empty_like(rows)
    turned[order] = plain_product(np.ascontiguousarray(q.T, np.float32), rows)
    return turned


def coding_order(type: TensorType, count: int) -> np.ndarray:
    """The columns 0 .. count-1 as the native encoder takes them, int (count,).

    A code's neighbour comes before it, so rings run backwards, and with them the columns of a line.
    """
    if not type.history:
        return np.arange(count)
    return ring_order(type, count).reshape(-1, type.line_columns)[:, ::-1].reshape(-1)
