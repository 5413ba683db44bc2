"""How long an export would take, from doing a part of it.

A dry run calibrates anyway; beside that it codes one matrix of every kind.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gwq_export.pipeline.plan import TensorPlan

Item = tuple[str, np.ndarray, dict[str, Any]]


class Estimate:
    """Times a sensitivity pass as it goes by, and the coding of one matrix of every kind."""

    def __init__(self, encode: Callable[[TensorPlan, np.ndarray, dict[str, Any]], Any]):
        """encode(plan, weight, statistics): codes a matrix as the export would."""
        self._encode = encode
        # (shape, whether codes are searched for) -> seconds of coding the whole tensor
        self._coding: dict[tuple[tuple[int, ...], bool], float] = {}
        self._calibrating = 0.0
        self._choosing = 0.0
        self._sampling = 0.0
        self._seen = 0  # weights that were calibrated in this run

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of `calibration.gradients`, (name, weight, statistics), as they come."""
        items = iter(items)
        before = time.monotonic()
        while (item := next(items, None)) is not None:
            start = time.monotonic()
            self._calibrating += start - before
            self._seen += item[1].size
            yield item
            del item
            before = time.monotonic()
            self._choosing += before - start
        self._calibrating += time.monotonic() - before

    def sample(
        self, plan: TensorPlan, weight: Callable[[], np.ndarray], statistics: dict[str, Any]
    ) -> None:
        """Code weight(), a matrix of the plan, unless one of its kind has been."""
        kind = plan.shape, plan.recipe.encoded
        if kind not in self._coding:
            start = time.monotonic()
            self._encode(plan, weight(), statistics)
            seconds = time.monotonic() - start
            self._coding[kind] = seconds * len(plan.sources)
            self._sampling += seconds if statistics else 0

    def seconds(
        self, plans: Sequence[TensorPlan], budgeted: bool, passes: float = 0
    ) -> float | None:
        """Seconds that an export by these plans takes.

        budgeted: what choosing under a budget takes comes on top. passes: time of other passes
        through the model, for drift and tuning, as a share of the calibration's. None when an
        earlier run did the calibration.
        """
        calibrated = sum(p.weights for p in plans if p.recipe.statistics)
        if calibrated and not self._seen:
            return None
        rates = [
            (encoded, seconds / math.prod(shape))
            for (shape, encoded), seconds in self._coding.items()
        ]

        def coding(plan: TensorPlan) -> float:
            encoded = plan.recipe.encoded
            rate = max((rate for e, rate in rates if e == encoded), default=0.0)
            return self._coding.get((plan.shape, encoded), plan.weights * rate)

        total = sum(map(coding, plans))
        if budgeted:  # one calibration, of all matrices
            total += self._calibrating + self._choosing - self._sampling
        elif calibrated:
            total += self._calibrating * calibrated / self._seen
        total += self._calibrating * passes
        return total
