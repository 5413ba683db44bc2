"""How long an export would take, from doing a part of it: calibration, which a dry run does anyway,
and a matrix of every kind.
"""

import math
import time

from gwq_export.pipeline.plan import weights


class Estimate:
    """Takes the time of a sensitivity pass as it goes by, and of quantizing one matrix of every kind.

    encode(entry, weight, statistics): quantizes a matrix as the export would.
    """

    def __init__(self, encode):
        self._encode, self._kinds = (
            encode,
            {},
        )  # (shape, found under the curvature or rounded) -> seconds
        self._calibrating = self._choosing = self._sampling = 0.0
        self._seen = 0  # weights that were calibrated in this run

    def watch(self, gradients):
        """The items of calibrate.gradients, (name, weight, statistics)."""
        gradients, before = iter(gradients), time.monotonic()
        while (item := next(gradients, None)) is not None:
            start = time.monotonic()
            self._calibrating += start - before
            self._seen += item[1].size
            yield item
            del item
            before = time.monotonic()
            self._choosing += before - start
        self._calibrating += time.monotonic() - before

    def sample(self, entry, weight, statistics):
        """Quantize weight(), a matrix of the entry, unless one of its kind has been."""
        kind = entry.shape, entry.recipe.encoded
        if kind not in self._kinds:
            start = time.monotonic()
            self._encode(entry, weight(), statistics)
            took = time.monotonic() - start
            self._kinds[kind] = took * len(entry.sources)
            self._sampling += took if statistics else 0

    def seconds(self, entries, budgeted, after=0):
        """What an export of these entries takes, a sensitivity pass before it or not, and `after` the
        calibration so many times its time. None when an earlier run did the calibration.
        """
        calibrated = sum(weights(e) for e in entries if e.recipe.statistics)
        if calibrated and not self._seen:
            return None
        rates = [
            (encoded, seconds / math.prod(shape))
            for (shape, encoded), seconds in self._kinds.items()
        ]

        def coding(e):
            rate = max((rate for encoded, rate in rates if encoded == e.recipe.encoded), default=0)
            return self._kinds.get((e.shape, e.recipe.encoded), weights(e) * rate)

        total = sum(map(coding, entries))
        if calibrated:
            total += self._calibrating * (calibrated / self._seen + after)
        return total + (self._calibrating + self._choosing - self._sampling) * budgeted
