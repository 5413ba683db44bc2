"""The memory roof: how fast the machine can read memory, whatever is computed from it.

Which way of reading is fastest depends on the CPU, so several numbers of streams and prefetch
distances are tried. How fast it is depends on the moment, where other processes share the memory.
So the best ways are timed again right before and right after whatever is compared with them, and
each run's share of the roof is taken from these two neighbours.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gwq_export.machine import free_memory
from gwq_export.native.library import Pool
from gwq_export.native.ops import read_memory, read_roof

WORKING_SET = 400 << 20  # bytes read in turn, so that no cache serves them
SPARE = 4  # at most this part of the free memory
STREAMS = (1, 2, 3, 4, 8)
DISTANCES = (0, 512, 1024, 2048, 4096)  # bytes prefetched ahead; 0: no prefetch
ROUNDS = 3  # of the whole table
BEST = 3  # ways of reading that stand for the table afterwards


Progress: TypeAlias = Callable[[str, int, int], None]


def _silent(phase: str, done: int, total: int) -> None:
    pass


class Roof:
    """Read rates, GB/s, of `threads` threads over `buffer` by (streams, distance).

    progress(phase, done, total) is called while they are measured.
    """

    def __init__(self, threads: int, buffer: np.ndarray, progress: Progress = _silent) -> None:
        self.pool = Pool(threads)
        self.buffer = buffer
        self.rates: dict[tuple[int, int], list[float]] = {
            (streams, ahead): [] for streams in STREAMS for ahead in DISTANCES
        }
        ways = [*self.rates] * ROUNDS
        for done, way in enumerate(ways):
            progress("memory roof", done, len(ways))
            self._read(way)
        progress("memory roof", len(ways), len(ways))
        self.best = sorted(self.rates, key=lambda way: statistics.median(self.rates[way]))[-BEST:]

    def _read(self, way: tuple[int, int]) -> float:
        start = time.perf_counter()
        read_roof(self.pool, self.buffer, *way)
        self.rates[way].append(self.buffer.nbytes / (time.perf_counter() - start) / 1e9)
        return self.rates[way][-1]

    def now(self) -> float:
        """The best rate at this moment, GB/s."""
        return max(self._read(way) for way in self.best)

    def rows(self) -> list[dict[str, Any]]:
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


def _working_set() -> int:
    """Bytes to read: WORKING_SET, or less where memory is short."""
    free = free_memory()
    return WORKING_SET if free is None else max(1 << 20, min(WORKING_SET, free // SPARE))


class Roofs:
    """One Roof for each number of threads, made when asked for.

    nbytes: of the buffer that is read; None: WORKING_SET, or less where memory is short.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        # ones, not zeros: the system gives pages only when they are written
        self.buffer = np.ones(nbytes or _working_set(), np.uint8)
        self._made: dict[int, Roof] = {}

    def made(self, threads: int, progress: Progress = _silent) -> Roof:
        """The Roof of so many threads. progress: as for `Roof`."""
        if threads not in self._made:
            self._made[threads] = Roof(threads, self.buffer, progress)
        return self._made[threads]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all Roofs made so far."""
        return [row for roof in self._made.values() for row in roof.rows()]


class DeviceRoofs:
    """The roof of a device's memory, in the place of Roofs: there is one way of reading it.

    pool: the device. nbytes: that are read; None: WORKING_SET.
    """

    def __init__(self, pool: Pool, nbytes: int | None = None) -> None:
        self.pool = pool
        self.nbytes = nbytes or WORKING_SET
        self._keep, self._memory = pool.scratch(self.nbytes)
        self._rates: list[float] = []

    def made(self, threads: int, progress: Progress = _silent) -> "DeviceRoofs":
        """The roof, which knows no threads. progress: as for `Roof`."""
        for done in range(ROUNDS):
            progress("memory roof", done, ROUNDS)
            self.now()
        progress("memory roof", ROUNDS, ROUNDS)
        return self

    def now(self) -> float:
        """The rate at this moment, GB/s."""
        start = time.perf_counter()
        read_memory(self.pool, self._memory, self.nbytes)
        self._rates.append(self.nbytes / (time.perf_counter() - start) / 1e9)
        return self._rates[-1]

    def rows(self) -> list[dict[str, Any]]:
        """As Roofs.rows, one."""
        gbps = statistics.median(self._rates)
        return [{"threads": 1, "streams": 1, "ahead": 0, "gbps": gbps}]


class Beside:
    """Timed runs of something, each with the roof before and after it.

    nbytes: that one run reads.
    """

    def __init__(self, nbytes: float) -> None:
        self.nbytes = nbytes
        self.seconds: list[float] = []
        self.limits: list[float] = []

    def add(self, seconds: float, before: float, after: float) -> None:
        """One run, and the roof (GB/s) right before and right after it."""
        self.seconds.append(seconds)
        self.limits.append((before + after) / 2)

    def row(self) -> dict[str, float]:
        """Medians: "gbps", "roof_gbps", and "of_roof", the runs' shares of their own roofs."""
        rates = [self.nbytes / s / 1e9 for s in self.seconds]
        shares = [rate / limit for rate, limit in zip(rates, self.limits, strict=True)]
        return {
            "gbps": statistics.median(rates),
            "roof_gbps": statistics.median(self.limits),
            "of_roof": statistics.median(shares),
        }
