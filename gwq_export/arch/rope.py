"""Rotary positions: the frequencies of every scaling that this runtime knows, cosines and sines."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


def yarn_amplitude(factor: float, multiplier: float = 1.0) -> float:
    """What yarn scales cosines and sines by, contexts being `factor` times longer."""
    return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0


@dataclass(frozen=True)
class Rope:
    """How Q and K turn with their positions.

    Pair i of a head turns by base^(-2i / rotated) radians per position. With yarn (arXiv
    2309.00071) slow pairs turn `factor` times slower, fast ones do not, and between beta_slow and
    beta_fast turns in the original context lies a ramp.
    """

    # values of a head that turn, in pairs
    rotated: int
    base: float
    # positions are divided by it (yarn: for slow pairs only)
    factor: float = 1.0
    # context length before yarn's or longrope's extension, 0 for none
    original: int = 0
    yarn: bool = False
    # turns in the original context from which on a pair is fast, or up to which it is slow
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # scales cosines and sines
    amplitude: float = 1.0
    # frequencies are divided by numbers of the file
    divided: bool = False
    # queries at position p are scaled by 1 + growth * log(1 + floor(p / original)) too
    growth: float = 0.0

    @property
    def of_keys(self) -> Rope:
        """The same without what is done to queries alone."""
        return replace(self, growth=0.0)

    def frequencies(self) -> np.ndarray:
        """Radians per position of each pair, float64 (rotated / 2,)."""
        i = np.arange(self.rotated // 2)
        frequency = self.base ** (-2.0 * i / self.rotated)
        if not self.yarn:
            return frequency / self.factor
        low = max(math.floor(self._pair(self.beta_fast)), 0)
        high = min(math.ceil(self._pair(self.beta_slow)), self.rotated - 1)
        slow = np.clip((i - low) / max(high - low, 0.001), 0, 1)  # 0: fast, 1: slow
        return frequency * (slow / self.factor + 1 - slow)

    def _pair(self, turns: float) -> float:
        """The pair, counted from 0, that turns so often in the original context.

        It solves original * base^(-2i / rotated) = 2 pi turns for i.
        """
        return (
            self.rotated
            * math.log(self.original / (2 * math.pi * turns))
            / (2 * math.log(self.base))
        )

    def table(
        self, positions: int, divisors: np.ndarray | None = None, first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, each float32 (positions - first, rotated / 2), from position `first` on.

        divisors: of the frequencies, (rotated / 2,), or None.
        """
        frequency = self.frequencies() if divisors is None else self.frequencies() / divisors
        position = np.arange(first, positions, dtype=np.float64)
        angle = np.outer(position, frequency)
        amplitude: float | np.ndarray = self.amplitude
        if self.growth:
            grown = 1 + self.growth * np.log1p(np.floor(position / self.original))
            amplitude = self.amplitude * grown[:, None]
        cos = (amplitude * np.cos(angle)).astype(np.float32)
        sin = (amplitude * np.sin(angle)).astype(np.float32)
        return cos, sin
