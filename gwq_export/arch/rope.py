"""Rotary positions: the frequencies of every scaling this runtime knows, and their tables of
cosines and sines.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rope:
    """How Q and K turn. rotated: values of a head that turn, in pairs.

    factor: positions are divided by it. original: context length before yarn's or longrope's
    extension, 0 for none. yarn: slow pairs are divided by `factor`, fast ones are not, between
    beta_slow and beta_fast turns in the original context lies a ramp (arXiv 2309.00071). amplitude:
    scales cosines and sines.
    """

    rotated: int
    base: float
    factor: float = 1.0
    original: int = 0
    yarn: bool = False
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    amplitude: float = 1.0

    def frequencies(self):
        """Radians per position, float64 (rotated / 2)."""
        i = np.arange(self.rotated // 2)
        frequency = self.base ** (-2.0 * i / self.rotated)
        if not self.yarn:
            return frequency / self.factor
        low = max(math.floor(self._pair(self.beta_fast)), 0)
        high = min(math.ceil(self._pair(self.beta_slow)), self.rotated - 1)
        slow = np.clip((i - low) / max(high - low, 0.001), 0, 1)
        return frequency * (slow / self.factor + 1 - slow)

    def _pair(self, turns):
        """The pair, counted from 0, that turns so often in the original context."""
        return (
            self.rotated
            * math.log(self.original / (2 * math.pi * turns))
            / (2 * math.log(self.base))
        )

    def table(self, positions, divisors=None):
        """cos and sin, float32 (positions, rotated / 2).

        divisors: of the frequencies, (rotated / 2).
        """
        frequency = self.frequencies() if divisors is None else self.frequencies() / divisors
        angle = np.outer(np.arange(positions, dtype=np.float64), frequency)
        return tuple((self.amplitude * f(angle)).astype(np.float32) for f in (np.cos, np.sin))
