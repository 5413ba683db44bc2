"""The memory roof: what the machine can read, whatever is computed from it.

Which way of reading is fastest depends on the CPU, so several numbers of streams and prefetch
distances are tried. How fast it is depends on the moment, where other processes share the memory,
so the best ways are timed again right before and after whatever is compared to them, and shares are
taken from such neighbours.
"""

import statistics
import time

import numpy as np

from gwq_export.native.library import Pool
from gwq_export.native.ops import read_roof

WORKING_SET = 400 << 20  # bytes read in turn, so that no cache serves them
STREAMS = (1, 2, 3, 4, 8)
DISTANCES = (0, 512, 1024, 2048, 4096)  # bytes prefetched ahead; 0: no prefetch
ROUNDS = 3  # of the whole table
BEST = 3  # ways of reading that stand for the table afterwards


class Roof:
    """Read rates, GB/s, of `threads` threads over `buffer` by (streams, distance)."""

    def __init__(self, threads, buffer):
        self.pool, self.buffer = Pool(threads), buffer
        self.rates = {(streams, ahead): [] for streams in STREAMS for ahead in DISTANCES}
        for _ in range(ROUNDS):
            for way in self.rates:
                self._read(way)
        self.best = sorted(self.rates, key=lambda way: statistics.median(self.rates[way]))[-BEST:]

    def _read(self, way):
        start = time.perf_counter()
        read_roof(self.pool, self.buffer, *way)
        self.rates[way].append(self.buffer.nbytes / (time.perf_counter() - start) / 1e9)
        return self.rates[way][-1]

    def now(self):
        """The best rate at this moment, GB/s."""
        return max(self._read(way) for way in self.best)

    def rows(self):
        """[{"threads", "streams", "ahead" (bytes), "gbps" (median)}] of the whole table."""
        return [
            {
                "threads": self.pool.threads,
                "streams": streams,
                "ahead": ahead,
                "gbps": statistics.median(rates),
            }
            for (streams, ahead), rates in self.rates.items()
        ]


class Roofs:
    """One Roof for each number of threads, made when asked for."""

    def __init__(self, nbytes=None):
        self.buffer, self._made = (
            np.ones(nbytes or WORKING_SET, np.uint8),
            {},
        )  # ones: pages must be there

    def __getitem__(self, threads):
        if threads not in self._made:
            self._made[threads] = Roof(threads, self.buffer)
        return self._made[threads]

    def rows(self):
        return [row for roof in self._made.values() for row in roof.rows()]


class Beside:
    """Samples of something with the roof before and after each: what one run of it reads is
    `nbytes`.
    """

    def __init__(self, nbytes):
        self.nbytes, self.seconds, self.limits = nbytes, [], []

    def add(self, seconds, before, after):
        """One run, and the roof (GB/s) right before and right after it."""
        self.seconds.append(seconds)
        self.limits.append((before + after) / 2)

    def row(self):
        """Medians: "gbps", "roof_gbps", and "of_roof" of the runs' own shares."""
        rates = [self.nbytes / s / 1e9 for s in self.seconds]
        return {
            "gbps": statistics.median(rates),
            "roof_gbps": statistics.median(self.limits),
            "of_roof": statistics.median(
                r / limit for r, limit in zip(rates, self.limits, strict=True)
            ),
        }
