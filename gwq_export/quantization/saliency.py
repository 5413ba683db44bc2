"""Which weights of a matrix stay FP16 (its outliers): one rule per row of SALIENCY.

A rule's `score(weight, statistics, rng, first)` returns an array (rows, cols) of the weight's
shape; the largest scores are kept. `first()` returns the matrix after a plain quantization without
outliers, for rules that ask what that did to a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.format.types import TILE

SUB = 32  # columns that share a scale, as the rule "relief" takes it
MAX_PER_SLOT = 255  # outliers in one row of a tile: the side-table counts them in a byte
Score = Callable[
    [np.ndarray, Mapping[str, Any], np.random.Generator, Callable[[], np.ndarray]], np.ndarray
]


@dataclass(frozen=True)
class Rule:
    """A rule that scores weights.

    statistics: names of the calibration statistics that `score` reads.
    """

    statistics: tuple[str, ...]
    score: Score


def _relief(w: np.ndarray) -> np.ndarray:
    """How much the largest weight of each run of 32 columns widens the run's range.

    With m1 and m2 the two largest magnitudes of a run, the weight of magnitude m1 scores m1^2 -
    m2^2; the others get 1e-6 of their squares, which only puts them in order.
    """
    rows, cols = w.shape
    padded = np.zeros((rows, -(-cols // SUB) * SUB), np.float32)
    padded[:, :cols] = w * w
    runs = padded.reshape(rows, -1, SUB)
    largest = runs.max(-1, keepdims=True)
    second = np.partition(runs, -2, axis=-1)[..., -2:-1]
    score = np.where(runs == largest, runs - second, 1e-6 * runs)
    return score.reshape(rows, -1)[:, :cols]


def _squares(w: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """w^2 times a factor for each row and one for each column, in one new array."""
    out = w * w
    out *= columns
    out *= rows[:, None]
    return out


SALIENCY = {
    # The loss that is expected without the weight (Optimal Brain Damage, LeCun et al. 1989), F w^2
    # up to a factor: the Fisher information F of a weight as the product s_i H_jj of its factors
    "loss": Rule(
        ("rows", "hessian"),
        lambda w, s, rng, first: _squares(w, s["rows"], diagonal(s["hessian"])),
    ),
    # the same with the Fisher information of every single weight
    "fisher-loss": Rule(
        ("square",),
        lambda w, s, rng, first: s["square"] * w * w,
    ),
    # the loss that is expected of the weight's error in a plain quantization
    "error": Rule(
        ("square",),
        lambda w, s, rng, first: s["square"] * (w - first()) ** 2,
    ),
    # mean |g| over samples (GWQ, arXiv 2411.00850)
    "grad": Rule(
        ("abs",),
        lambda w, s, rng, first: s["abs"],
    ),
    # |mean g|: gradients of different samples cancel near a minimum
    "grad-mean": Rule(
        ("mean",),
        lambda w, s, rng, first: np.abs(s["mean"]),
    ),
    # mean g^2, the diagonal of the empirical Fisher information
    "fisher": Rule(
        ("square",),
        lambda w, s, rng, first: s["square"],
    ),
    # the error of the layer's output without the weight, H_jj w^2
    "hessian": Rule(
        ("hessian",),
        lambda w, s, rng, first: w * w * diagonal(s["hessian"]),
    ),
    # what the weight's absence does for the scale of its neighbours
    "relief": Rule(
        (),
        lambda w, s, rng, first: _relief(w),
    ),
    # controls that need no calibration
    "magnitude": Rule(
        (),
        lambda w, s, rng, first: np.abs(w),
    ),
    "random": Rule(
        (),
        lambda w, s, rng, first: rng.random(w.shape, dtype=np.float32),
    ),
}


def diagonal(hessian: Any) -> np.ndarray:
    """The diagonal (cols,) of a Hessian: an array (cols, cols) or a `curvature.Curvature`."""
    matrix = getattr(hessian, "matrix", hessian)
    cols = getattr(hessian, "cols", None)  # without the padding of a Curvature
    return np.diag(matrix)[:cols].copy()


def select(score: np.ndarray, count: int) -> np.ndarray:
    """Choose the `count` largest of the scores (rows, cols), at most 255 in one row of a tile.

    Where more fall into such a slot, its smallest scores give way to the next best elsewhere.
    Returns flat indices, ascending.
    """
    rows, cols = score.shape
    tiles = -(-cols // TILE)
    flat = np.asarray(score, np.float32).reshape(-1)
    while True:
        taken = _largest(flat, count)
        slot = taken // cols * tiles + taken % cols // TILE  # (row, tile) as one number
        full = np.flatnonzero(np.bincount(slot, minlength=rows * tiles) > MAX_PER_SLOT)
        if not len(full):
            return taken
        flat = flat.copy()
        for f in full:
            inside = taken[slot == f]
            descending = np.argsort(-flat[inside], kind="stable")
            flat[inside[descending[MAX_PER_SLOT:]]] = -np.inf


def _largest(flat: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest numbers, ascending; the first of those that are equal."""
    least = np.partition(flat, len(flat) - count)[len(flat) - count]
    above = flat > least
    equal = np.flatnonzero(flat == least)
    above[equal[: count - np.count_nonzero(above)]] = True
    return np.flatnonzero(above)
