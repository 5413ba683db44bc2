"""What each way to store a matrix would add to the loss, predicted from a sample of its rows.

With E the error of the matrix, s and H the factors of the Fisher information
(`calibration.statistics`), the loss is

    1/2 sum_i s_i E_i H E_i^T         nats per token

and losses of different matrices add up. Three simplifications make it cheap:

- Columns. The matrix is quantized without error feedback, and errors of different columns are taken
  as uncorrelated, which leaves E_i H E_i^T = sum_j H_jj E_ij^2. With feedback a column is coded
  with an error of about the same size, of which the columns that follow compensate a part. What
  they cannot compensate costs E_ij^2 / U_jj^2, where U^T U = H^-1 (`curvature`), so that 1 / U_jj^2
  takes the place of H_jj, which is never smaller.
- Rows do not interact. Where they have feedback from each other (`feedback`), what this leaves of
  the cost of an error in row i takes the place of s_i (`row_costs`).
- Some runs of eight rows stand for all. The size of a run is the loss that its rows would cause if
  they were zero, P_g = sum_i s_i sum_j H_jj w_ij^2, because quantization causes about the same
  fraction of that everywhere. Systematic sampling with probability proportional to size takes the
  runs at n equally spaced points of the cumulative sizes, run g maybe several times, t_g. The
  sum over all runs is then estimated by (Hansen and Hurwitz, 1943)

      sum_g loss_g  ~  sum over sampled g of  t_g P / (n P_g) loss_g,     P = sum_g P_g

  which is exact where loss_g is proportional to P_g. Nothing is drawn at random: the points lie in
  the middle of n equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.errors import GwqError
from gwq_export.format.ggml_types import decode_ggml, encode_ggml
from gwq_export.format.types import BLOCK, TYPES, ffi
from gwq_export.quantization.allocate import Choice
from gwq_export.quantization.curvature import curvature_of
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.feedback import row_costs
from gwq_export.quantization.quantize import check_range
from gwq_export.quantization.recipe import TABLES, Recipe
from gwq_export.quantization.saliency import SALIENCY, diagonal

# Types to choose from, and the fractions of outliers of each; `allocate.fill` goes between them.
# With five bits and more, outliers save little for their bytes.
OFFERED: dict[str, tuple[float, ...]] = {
    "gwq2": (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02),
    "gwq3": (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02),
    "gwq4": (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02),
    "gwq5": (0.0, 0.0025, 0.01),
    "gwq6": (0.0, 0.0025),
    "q8_0": (0.0,),
    "f16": (0.0,),
}
MOST_OFFERED = max(fraction for fractions in OFFERED.values() for fraction in fractions)
# Beside these where rows are short: they need no row scale, and no columns beyond 32s.
NARROW = 256  # columns
OFFERED_NARROW: dict[str, tuple[float, ...]] = {"q4_0": (0.0,), "iq4_nl": (0.0,)}
ROWS_AT_ONCE = 4096  # of squares
RUN = 8  # rows
RUNS = 24  # n: runs of rows that stand for a matrix of more than twice as many


class Sample:
    """Some rows of a matrix, and what it takes to predict its loss under several recipes.

    shape: (rows, cols) of the matrix. rows: indices of the sampled rows, ascending. expansion: how
    many times the loss of each of them counts, t_g P / (n P_g) above. weight, row_weight: float32
    (sampled rows, cols) and (sampled rows,). largest: (1, cols), the row with the largest weight,
    which decides whether a type can hold the matrix.
    """

    def __init__(
        self,
        weight: np.ndarray,
        statistics: Mapping[str, Any],
        saliency: str = "loss",
        seed: int = 0,
        pool: Any = ffi.NULL,
    ) -> None:
        """Take the sample of a matrix.

        weight: float32 (rows, cols). statistics: "hessian", "rows", "outputs" where rows have
        feedback from rows, and what the rule `saliency` reads. seed: of rules that draw at random.
        pool: a `gwq_pool *`, or NULL for one thread.
        """
        self.curvature = curvature_of(statistics)
        self.shape = weight.shape
        self.pool = pool
        h = diagonal(self.curvature)
        s = statistics["rows"]
        runs = [slice(a, a + ROWS_AT_ONCE) for a in range(0, len(weight), ROWS_AT_ONCE)]
        squares = [product(weight[run] ** 2, h) for run in runs]
        row_size = s * np.concatenate(squares)  # (rows,): the loss if the row were zero
        run_size = np.add.reduceat(row_size, np.arange(0, len(row_size), RUN))
        total = float(row_size.sum())
        if len(run_size) > 2 * RUNS:
            chosen, times = _systematic_sample(run_size, RUNS)
        else:
            chosen = np.arange(len(run_size))
            times = None
        rows = (chosen[:, None] * RUN + np.arange(RUN)).reshape(-1)
        real = rows < len(weight)  # the last run may be shorter
        self.rows = rows[real]
        if times is None:
            self.expansion = np.ones(len(self.rows))
        else:
            self.expansion = (times / run_size[chosen] / RUNS).repeat(RUN)[real] * total
        self.weight = weight[self.rows]
        self.row_weight = s[self.rows]
        self._outputs = statistics.get("outputs")
        self.largest = weight[[np.abs(weight).max(1).argmax()]]
        self._matrix = weight
        self._statistics = statistics
        self._saliency = saliency
        self._seed = seed
        self._best = np.zeros(0, np.float32)  # the largest scores of the matrix, ascending

    @cached_property
    def score(self) -> np.ndarray:
        """Saliency of every weight of the matrix, (rows, cols)."""

        def first() -> np.ndarray:
            levels = TABLES["trellis"]["gwq3"]
            return encode(self._matrix, TYPES["gwq3"], levels, pool=self.pool).values

        rule = SALIENCY[self._saliency]
        rng = np.random.default_rng(self._seed)
        return rule.score(self._matrix, self._statistics, rng, first)

    def _outliers(self, count: int) -> np.ndarray | None:
        """Mask of the sampled rows: the `count` largest scores of the whole matrix."""
        if not count:
            return None
        if count > len(self._best):
            flat = self.score.reshape(-1)
            first = len(flat) - max(count, round(MOST_OFFERED * len(flat)))
            self._best = np.sort(np.partition(flat, first)[first:])
        return self.score[self.rows] >= self._best[-count]

    @cached_property
    def _left(self) -> np.ndarray:
        """What rows leave of the cost of each sampled row's errors, (sampled rows,)."""
        assert self._outputs is not None
        return row_costs(self._outputs)[self.rows]

    def loss(self, recipe: Recipe) -> float:
        """Predicted loss, nats per token, that storing the matrix by `recipe` adds.

        Raises GwqError where the type cannot hold the matrix.
        """
        check_range(self.largest, recipe)
        error = self._error(recipe)
        column_cost = diagonal(self.curvature)
        if recipe.encoded and recipe.feedback:
            column_cost = 1 / np.diag(self.curvature.factor)[: len(column_cost)] ** 2
        by_row = self.row_weight * product(error * error, column_cost)
        if recipe.encoded and recipe.feedback and recipe.outputs and self._outputs is not None:
            by_row = by_row * self._left
        return float((by_row * self.expansion).sum()) / 2

    def _error(self, recipe: Recipe) -> np.ndarray:
        """Errors of the sampled rows, (sampled rows, cols), without error feedback."""
        w = self.weight
        if not recipe.encoded:
            stored = encode_ggml(recipe.type, w)
            return w - decode_ggml(recipe.type, stored, *w.shape)
        outlier = self._outliers(recipe.outlier_count(self.shape))
        e = encode(
            w,
            recipe.type,
            recipe.levels,
            curvature=self.curvature if recipe.curvature else None,
            row_weight=self.row_weight if recipe.curvature else None,
            outlier=outlier,
            feedback=False,
            pool=self.pool,
        )
        return w - e.values if outlier is None else np.where(outlier, 0, w - e.values)


def _systematic_sample(size: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample n of len(size) items in proportion to their sizes, without a random number.

    Returns (items, ascending, and how many times each was taken).
    """
    cumulative = np.cumsum(size) / max(size.sum(), 1e-300)
    points = (np.arange(n) + 0.5) / n
    taken = np.searchsorted(cumulative, points).clip(0, len(size) - 1)
    return np.unique(taken, return_counts=True)


def offered(cols: int, fraction: float | None = None) -> dict[str, tuple[float, ...]]:
    """{type: fractions of outliers} that there are to choose from for a matrix of `cols` columns.

    fraction: of outliers in the types that have them, if it is fixed.
    """
    types = OFFERED | OFFERED_NARROW if cols % BLOCK or cols < NARROW else OFFERED
    if fraction is None:
        return types
    return {name: (fraction,) if TYPES[name].bits else (0.0,) for name in types}


def choices(
    sample: Sample,
    recipe: Recipe,
    size: Callable[[Recipe], int],
    types: Mapping[str, Sequence[float]],
) -> list[Choice]:
    """What there is to choose for a matrix: every type and fraction of outliers in `types`.

    recipe: the one to vary. size: recipe -> bytes in the file. Types that cannot hold the matrix's
    width or its largest weight are left out. Raises GwqError when none is left.
    """
    out = []
    refusal = None
    for name, fractions in types.items():
        type = TYPES[name]
        if not type.bits and sample.shape[1] % type.unit:
            continue
        for fraction in fractions:
            varied = replace(recipe, type=type, outliers=fraction)
            try:
                out.append(Choice(varied, size(varied), sample.loss(varied)))
            except GwqError as e:
                refusal = refusal or e
    if refusal and not out:
        raise refusal
    return out
