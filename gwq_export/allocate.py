"""Bits and outliers per matrix under a byte budget: what each choice would cost, and the best choices that fit.

The loss that a choice adds is predicted to second order (see `totals.FACTORS`) from a quantization without error
feedback of a sample of rows; losses of different matrices add up.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from gwq_export import GwqError
from gwq_export.encoder import curvature_of, encode
from gwq_export.format import RING, TYPES, decode_stock, encode_stock, ffi
from gwq_export.parallel import product
from gwq_export.quantize import TABLES, check_range
from gwq_export.saliency import SALIENCY, diagonal

FRACTIONS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02)  # outliers to choose from; in between to fill a budget
KINDS = ("gwq2", "gwq3", "gwq4", "q8_0", "f16")
MOST = 0.25  # outliers that are added to fill a budget
RINGS = 24  # rings of 8 rows that are quantized to predict the others


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix: its bytes in the file and the loss it adds, nats per token."""

    recipe: object
    nbytes: int
    loss: float


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
            chosen = np.searchsorted(cumulative, (np.arange(RINGS) + 0.5) / RINGS).clip(0, len(rings) - 1)
            chosen, times = np.unique(chosen, return_counts=True)
        else:
            chosen, times = np.arange(len(rings)), None
        rows = (chosen[:, None] * RING + np.arange(RING)).reshape(-1)
        self.rows = rows[rows < len(weight)]
        if times is not None:  # a ring stands for as much as any other: its share of the sum
            self.share = (times / rings[chosen] / RINGS).repeat(RING)[rows < len(weight)] * self.power
        else:
            self.share = np.ones(len(self.rows))
        self.weight, self.row_weight = weight[self.rows], s[self.rows]
        self.largest = weight[[np.abs(weight).max(1).argmax()]]  # (1, cols): the row by which types can hold the matrix or not
        self._whole, self._thresholds = (weight, statistics, saliency, seed), {}

    @cached_property
    def score(self):
        """Saliency of every weight of the matrix."""
        weight, statistics, saliency, seed = self._whole
        first = lambda: encode(weight, TYPES["gwq3"], TABLES["trellis"]["gwq3"], pool=self.pool).values  # noqa: E731
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
        """Predicted loss, nats per token, that storing the matrix by `recipe` adds. Raises GwqError where that cannot be."""
        check_range(self.largest, recipe)
        w, h = self.weight, diagonal(self.curvature)
        if recipe.encoded:
            mask = self._outliers(recipe.outlier_count(self.shape))
            fit = {"curvature": self.curvature, "row_weight": self.row_weight} if recipe.curvature else {}
            e = encode(w, recipe.type, recipe.levels, outlier=mask, feedback=False, pool=self.pool, **fit)
            error = w - e.values if mask is None else np.where(mask, 0, w - e.values)
        else:
            stored = encode_stock(recipe.type, w)
            error = w - decode_stock(recipe.type, stored, *w.shape)
        column = h
        if recipe.encoded and recipe.feedback:  # later columns make an error good again but for this share
            column = 1 / np.diag(self.curvature.factor)[: len(h)] ** 2
        squares = self.row_weight * product(error * error, column)
        return float((squares * self.share).sum()) / 2


def choices(sample, recipe, size, kinds=KINDS, fractions=FRACTIONS):
    """Choices of a matrix, without those that cannot hold its largest weight. Raises GwqError when none is left.

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


def frontier(options):
    """Choices by ascending bytes, those that another one beats left out."""
    kept = []
    for c in sorted(options, key=lambda c: (c.nbytes, c.loss)):
        if not kept or c.loss < kept[-1].loss:
            kept.append(c)
    return kept


def hull(options):
    """Those of a frontier at which the loss saved per byte falls: no mix of two others beats them."""
    out = []
    for c in options:
        while len(out) > 1 and _slope(out[-2], out[-1]) <= _slope(out[-1], c):
            out.pop()
        out.append(c)
    return out


def _slope(a, b):
    """Loss saved per byte."""
    return (a.loss - b.loss) / max(b.nbytes - a.nbytes, 1e-9)


def allocate(options, budget):
    """One of each matrix's options, of least loss within `budget` bytes; or None.

    Greedy along the convex hulls, which is optimal up to the last step (Shoham and Gersho, 1988), then whatever still fits.
    """
    options, picked = [frontier(o) for o in options], [0] * len(options)
    left = budget - sum(o[0].nbytes for o in options)
    if left < 0:
        return None
    steps = []
    for i, o in enumerate(options):
        corners = hull(o)
        steps += [(_slope(a, b), i, a, b) for a, b in pairwise(corners)]
    stopped = set()
    for _, i, a, b in sorted(steps, key=lambda s: -s[0]):
        if i in stopped or b.nbytes - a.nbytes > left:
            stopped.add(i)  # its later steps start from this one
            continue
        left -= b.nbytes - a.nbytes
        picked[i] = options[i].index(b)
    while True:  # what is left buys the best single change
        best = None
        for i, o in enumerate(options):
            now = o[picked[i]]
            for k in range(picked[i] + 1, len(o)):
                if o[k].nbytes - now.nbytes <= left and o[k].loss < now.loss:
                    gain = now.loss - o[k].loss
                    if best is None or gain > best[0]:
                        best = gain, i, k
        if best is None:
            return [o[k] for o, k in zip(options, picked, strict=True)]
        _, i, k = best
        left -= options[i][k].nbytes - options[i][picked[i]].nbytes
        picked[i] = k


def fill(options, picked, sizes, budget):
    """Recipes of the picked choices, some with more outliers where bytes are left: those that save most per byte first.

    sizes: for each matrix a function recipe -> bytes.
    """
    left, picked = budget - sum(c.nbytes for c in picked), list(picked)
    while True:
        offers = []
        for m, (o, now) in enumerate(zip(options, picked, strict=True)):
            more = [c for c in o if c.recipe.type == now.recipe.type and c.recipe.outliers > now.recipe.outliers and c.nbytes > now.nbytes]
            more = min(more, key=lambda c: c.recipe.outliers, default=None)
            if not more and now.recipe.type.bits and now.recipe.outliers < MOST:  # beyond what was asked for: no loss known
                recipe = replace(now.recipe, outliers=min(MOST, max(2 * now.recipe.outliers, 0.001)))
                more = Choice(recipe, sizes[m](recipe), now.loss)
            if more and sizes[m](replace(now.recipe, outliers=_next(now.recipe.outliers, more.recipe.outliers))) - now.nbytes <= left:
                offers.append((_slope(now, more), m, now, more))
        if not offers:
            return [c.recipe for c in picked]
        _, m, now, more = max(offers, key=lambda offer: offer[0])
        low, high = now.recipe.outliers, more.recipe.outliers
        if more.nbytes - now.nbytes <= left:
            low = high
        for _ in range(24 * (low < high)):  # bisection: bytes grow with the fraction
            middle = (low + high) / 2
            if sizes[m](replace(now.recipe, outliers=middle)) - now.nbytes <= left:
                low = middle
            else:
                high = middle
        recipe = replace(now.recipe, outliers=low)
        share = (low - now.recipe.outliers) / (more.recipe.outliers - now.recipe.outliers)
        picked[m] = Choice(recipe, sizes[m](recipe), now.loss + share * (more.loss - now.loss))
        left -= picked[m].nbytes - now.nbytes


def _next(a, b):
    """A fraction a little above a: a step that fits nothing is not worth a try."""
    return a + (b - a) / 64
