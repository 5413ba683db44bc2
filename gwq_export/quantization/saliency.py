"""Which weights stay FP16: one row per rule.

`score(weight, statistics, rng, first)` returns an array of the weight's shape; the largest are
kept. `first()` is the matrix after a plain quantization without outliers, for rules that ask what
it did.
"""

from dataclasses import dataclass

import numpy as np

from gwq_export.format.types import TILE

SUB = 32  # columns whose range an outlier is taken to widen


@dataclass(frozen=True)
class Rule:
    """statistics: names of calibration statistics that `score` reads."""

    statistics: tuple
    score: callable


def _relief(w):
    """How far the largest weight of a run of 32 columns widens its range beyond the next:

    (m1^2 - m2^2) for it, else little.
    """
    rows, cols = w.shape
    padded = np.zeros((rows, -(-cols // SUB) * SUB), np.float32)
    padded[:, :cols] = w * w
    runs = padded.reshape(rows, -1, SUB)
    largest, second = runs.max(-1, keepdims=True), np.partition(runs, -2, axis=-1)[..., -2:-1]
    score = np.where(runs == largest, runs - second, 1e-6 * runs)
    return score.reshape(rows, -1)[:, :cols]


SALIENCY = {
    # the loss expected to be lost without the weight: Fisher x w^2 (Optimal Brain Damage), by the
    # Fisher matrix's factors or exactly
    "loss": Rule(
        ("rows", "hessian"),
        lambda w, s, rng, first: s["rows"][:, None] * diagonal(s["hessian"]) * w * w,
    ),
    "fisher-loss": Rule(("square",), lambda w, s, rng, first: s["square"] * w * w),
    "error": Rule(
        ("square",), lambda w, s, rng, first: s["square"] * (w - first()) ** 2
    ),  # loss expected of its quantization
    "grad": Rule(
        ("abs",), lambda w, s, rng, first: s["abs"]
    ),  # mean over samples of |g|: GWQ, arXiv 2411.00850
    "grad-mean": Rule(
        ("mean",), lambda w, s, rng, first: np.abs(s["mean"])
    ),  # |mean g|: cancels near a minimum
    "fisher": Rule(
        ("square",), lambda w, s, rng, first: s["square"]
    ),  # mean g^2: the diagonal of the empirical Fisher matrix
    "hessian": Rule(
        ("hessian",), lambda w, s, rng, first: w * w * diagonal(s["hessian"])
    ),  # of the layer's output error
    "relief": Rule(
        (), lambda w, s, rng, first: _relief(w)
    ),  # what its absence does for its neighbours' scale
    "magnitude": Rule((), lambda w, s, rng, first: np.abs(w)),  # control: no calibration
    "random": Rule((), lambda w, s, rng, first: rng.random(w.shape, dtype=np.float32)),  # control
}


def diagonal(hessian):
    """(cols,) of an array (cols, cols) or of a Curvature."""
    return np.diag(getattr(hessian, "matrix", hessian))[: getattr(hessian, "cols", None)].copy()


def select(score, count):
    """Flat indices, ascending, of the `count` largest scores, at most 255 in one row of a tile."""
    rows, cols = score.shape
    tiles = -(-cols // TILE)
    flat = score.astype(np.float32).reshape(-1)  # a copy: scores are struck out below
    while True:
        taken = np.sort(np.argpartition(-flat, count - 1)[:count])
        slot = taken // cols * tiles + taken % cols // TILE
        full = np.flatnonzero(np.bincount(slot, minlength=rows * tiles) > 255)
        if not len(full):
            return taken
        for f in (
            full
        ):  # such a row gives up its smallest scores; the next best elsewhere take their place
            inside = taken[slot == f]
            flat[inside[np.argsort(-flat[inside], kind="stable")[255:]]] = -np.inf
