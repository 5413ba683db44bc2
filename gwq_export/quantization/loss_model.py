"""What each way to store a matrix would add to the loss, from a sample of its rows.

The loss is predicted to second order (see `calibration.statistics.FACTORS`) from a quantization
without error feedback; losses of different matrices add up.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.errors import GwqError
from gwq_export.format.ggml_types import decode_ggml, encode_ggml
from gwq_export.format.types import RING, TYPES, ffi
from gwq_export.quantization.allocate import Choice
from gwq_export.quantization.curvature import curvature_of
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.quantize import check_range
from gwq_export.quantization.recipe import TABLES
from gwq_export.quantization.saliency import SALIENCY, diagonal

FRACTIONS = (
    0.0,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
)  # outliers to choose from; in between to fill a budget
KINDS = ("gwq2", "gwq3", "gwq4", "q8_0", "f16")
RINGS = 24  # rings of 8 rows that are quantized to predict the others


class Sample:
    """What is needed of a matrix to predict its loss under several recipes."""

    def __init__(self, weight, statistics, saliency="loss", seed=0, pool=ffi.NULL):
        self.curvature = curvature_of(statistics)
        self.shape, self.pool = weight.shape, pool
        h, s = diagonal(self.curvature), statistics["rows"]
        power = s * product(weight * weight, h)  # (rows,): the loss without the row
        rings = np.add.reduceat(power, np.arange(0, len(power), RING))
        self.power = float(power.sum())
        if len(rings) > 2 * RINGS:  # systematic, in proportion to what a ring matters
            cumulative = np.cumsum(rings) / max(rings.sum(), 1e-300)
            chosen = np.searchsorted(cumulative, (np.arange(RINGS) + 0.5) / RINGS).clip(
                0, len(rings) - 1
            )
            chosen, times = np.unique(chosen, return_counts=True)
        else:
            chosen, times = np.arange(len(rings)), None
        rows = (chosen[:, None] * RING + np.arange(RING)).reshape(-1)
        self.rows = rows[rows < len(weight)]
        if times is not None:  # a ring stands for as much as any other: its share of the sum
            self.share = (times / rings[chosen] / RINGS).repeat(RING)[
                rows < len(weight)
            ] * self.power
        else:
            self.share = np.ones(len(self.rows))
        self.weight, self.row_weight = weight[self.rows], s[self.rows]
        self.largest = weight[
            [np.abs(weight).max(1).argmax()]
        ]  # (1, cols): the row by which types can hold the matrix or not
        self._whole, self._thresholds = (weight, statistics, saliency, seed), {}

    @cached_property
    def score(self):
        """Saliency of every weight of the matrix."""
        weight, statistics, saliency, seed = self._whole
        first = lambda: (
            encode(weight, TYPES["gwq3"], TABLES["trellis"]["gwq3"], pool=self.pool).values
        )  # noqa: E731
        return SALIENCY[saliency].score(weight, statistics, np.random.default_rng(seed), first)

    def _outliers(self, count):
        """Mask of the sampled rows: the `count` largest scores of the whole matrix."""
        if not count:
            return None
        if count not in self._thresholds:
            flat = self.score.reshape(-1)
            self._thresholds[count] = np.partition(flat, len(flat) - count)[len(flat) - count]
        return self.score[self.rows] >= self._thresholds[count]

    def loss(self, recipe):
        """Predicted loss, nats per token, that storing the matrix by `recipe` adds.

        Raises GwqError where that cannot be.
        """
        check_range(self.largest, recipe)
        w, h = self.weight, diagonal(self.curvature)
        if recipe.encoded:
            mask = self._outliers(recipe.outlier_count(self.shape))
            fit = (
                {"curvature": self.curvature, "row_weight": self.row_weight}
                if recipe.curvature
                else {}
            )
            e = encode(
                w, recipe.type, recipe.levels, outlier=mask, feedback=False, pool=self.pool, **fit
            )
            error = w - e.values if mask is None else np.where(mask, 0, w - e.values)
        else:
            stored = encode_ggml(recipe.type, w)
            error = w - decode_ggml(recipe.type, stored, *w.shape)
        column = h
        if (
            recipe.encoded and recipe.feedback
        ):  # later columns make an error good again but for this share
            column = 1 / np.diag(self.curvature.factor)[: len(h)] ** 2
        squares = self.row_weight * product(error * error, column)
        return float((squares * self.share).sum()) / 2


def choices(sample, recipe, size, kinds=KINDS, fractions=FRACTIONS):
    """Choices of a matrix, without those that cannot hold its largest weight. Raises GwqError when
    none is left.

    recipe: the one to vary; size(recipe) -> bytes in the file.
    """
    out, why = [], None
    for kind in kinds:
        type = TYPES[kind]
        if not type.bits and sample.shape[1] % type.unit:
            continue
        for fraction in fractions if type.bits else (0.0,):
            r = replace(recipe, type=type, outliers=fraction)
            try:
                out.append(Choice(r, size(r), sample.loss(r)))
            except GwqError as e:
                why = why or e
    if why and not out:
        raise why
    return out
