"""Error feedback: how targets move when codes left errors, columns to columns and rows to rows.

With E the error of a matrix, H the Hessian of its inputs and G that of its outputs, what an error
costs is tr(G E H E^T) / 2 (`calibration.statistics`). Both factors give feedback of the same form.
For columns coded from left to right with U^T U = H^-1 (`curvature`), and for rows coded from top to
bottom with V^T V = G^-1, both upper triangular, the best that later columns and rows can do about
an error e is

    target_k  +=  e_j U_jk / U_jj        columns k > j      (GPTQ, arXiv 2210.17323)
    target_K  +=  (V_JJ^-1 V_JK)^T e_J   rows K > J, J a group of rows that are coded side by side

Rows first, columns within them: a group's errors are taken against the targets that the rows before
gave it, after its last column is coded. Feedback on both sides is YAQA's (arXiv 2505.22988), which
shows that a Kronecker-factored curvature is served best by both at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gwq_export.compute.linalg import cholesky_inverse, pieces, plain_product, reversed_as
from gwq_export.compute.threads import each
from gwq_export.format.decoding import ring_order
from gwq_export.format.types import TensorType
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.lanes import LANES

KEPT = 0.65  # of what G says of two different rows: the rest is taken for chance
FLOOR = 0.1  # times the mean of G's diagonal is added to its diagonal


class ColumnGains(NamedTuple):
    """Feedback of one block of columns.

    part: the block. gain: float32 (step, columns from the block on), [j, k] = U_jk / U_jj in the
    order in which the block is coded. cost: float32 (step,), what an error of each column costs
    after the compensation, in units of their mean; 0 in the padding.
    """

    part: slice
    gain: np.ndarray
    cost: np.ndarray


def column_gains(
    curvature: Curvature, type: TensorType, step: int, blocks: Sequence[slice]
) -> list[ColumnGains]:
    """The gains of blocks of `step` columns. Raises GwqError where there is no factorization."""
    kept: dict[int, ColumnGains] = curvature.gains.get((type.history, step), {})
    if kept:
        return [kept[part.start] for part in blocks]
    factor = curvature.factor

    def gains(part: slice) -> ColumnGains:
        rows = _in_coding_order(type, step, factor[part, part.start :])
        diagonal = np.diag(rows)
        real = curvature.column_weight[part] > 0
        cost = np.where(real, 1 / np.square(diagonal), 0)
        return ColumnGains(part, rows / diagonal[:, None], cost / max(cost.mean(), 1e-30))

    return each(gains, blocks)


def keep_column_gains(curvature: Curvature, type: TensorType, step: int) -> None:
    """Have `column_gains` compute them once for this curvature and order of coding.

    For matrices of which few rows are coded at a time; they are half as large as the Hessian.
    """
    key = type.history, step
    if key not in curvature.gains:
        blocks = pieces(len(curvature.factor), step)
        found = column_gains(curvature, type, step, blocks)
        curvature.gains[key] = {gains.part.start: gains for gains in found}


def _in_coding_order(type: TensorType, step: int, rows: np.ndarray) -> np.ndarray:
    """The rows of U that belong to a block of columns if those come in the order of their coding.

    rows: (step, columns from the block on). With P the block's columns in that order, U_block P =
    Q R, and Q^T U has the same Gram matrix as U and is triangular in that order. Rows and columns
    are returned as they lie in the matrix.
    """
    if not type.history:
        return rows
    order = coding_order(type, step)
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


class RowPart(NamedTuple):
    """Rows of a group that are coded side by side.

    rows: their indices, int (at most LANES,). later: those of the rows that follow. gain: float32
    (rows, later), V_JJ^-1 V_JK of the module's docstring. cost: float64 (rows,), what an error of
    each row costs after the compensation, where one in that row alone would cost G's diagonal.
    """

    rows: np.ndarray
    later: np.ndarray
    gain: np.ndarray
    cost: np.ndarray


def row_parts(outputs: np.ndarray) -> Iterator[RowPart]:
    """The feedback within a group of rows that know of each other, part by part.

    outputs: float32 (n, at least n), G of these rows. With D = diag(G), gains and costs are those
    for

        G~ = KEPT G + (1 - KEPT) D + FLOOR mean(D) I,     V^T V = G~^-1

    as G is estimated from few tokens: errors of rows are correlated by chance. Rows of a part have
    no feedback from each other, so they are taken from all over the group: neighbours have more to
    do with each other than others. Independent errors e_J of a part's rows become E = A e with
    A_JJ = I and A_KJ = gain^T, of which G~ makes diag(A^T G~ A) = diag((V_JJ^T V_JJ)^-1); costs are
    without what FLOOR adds to them. Raises GwqError where G is not finite.
    """
    n = len(outputs)
    parts = -(-n // LANES)
    members = [np.arange(first, n, parts) for first in range(parts)]
    order = np.concatenate(members)
    g = outputs[order[:, None], order] * np.float32(KEPT)
    own = np.diag(outputs[:, :n])[order]
    floor = np.float32(FLOOR * max(float(own.mean()), 1e-30))
    g[np.arange(n), np.arange(n)] = own + floor
    inverse = cholesky_inverse(reversed_as(np.float64, g))
    factor = torch.from_numpy(reversed_as(np.float64, inverse))
    stop = 0
    for rows in members:
        part, stop = slice(stop, stop + len(rows)), stop + len(rows)
        beside = factor[part, part]
        gain = torch.linalg.solve_triangular(beside, factor[part, stop:], upper=True)
        one = torch.eye(len(rows), dtype=torch.float64)
        alone = torch.linalg.solve_triangular(beside, one, upper=True)
        cost = (alone**2).sum(1) - floor * (1 + (gain**2).sum(1))
        yield RowPart(rows, order[stop:], gain.to(torch.float32).numpy(), cost.numpy())


def row_costs(outputs: np.ndarray) -> np.ndarray:
    """What feedback between rows leaves of the costs of their errors, as fractions.

    outputs: float32 (rows, width), G in groups of rows. Returns float64 (rows,): the costs of
    `row_parts` by G's diagonal, 1 where that is zero. Raises GwqError where G is not finite.
    """
    rows, width = outputs.shape

    def of_group(group: slice) -> np.ndarray:
        g = outputs[group]
        own = np.diag(g[:, : len(g)])
        out = np.ones(len(g))
        for part in row_parts(g):
            there = own[part.rows] > 0
            out[part.rows[there]] = part.cost[there] / own[part.rows[there]]
        return out

    return np.concatenate(each(of_group, pieces(rows, width)))
