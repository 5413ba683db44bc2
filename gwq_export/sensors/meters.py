"""A meter of power, read by a thread of its own, and the energy between two moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Meter:
    """A way to measure power.

    name: of the sensor; covers: whose power it is; method: what is read; counts: whether `read`
    returns joules since some moment, else watts; interval: seconds between two readings; least:
    seconds that it takes to measure anything; read: None where a reading fails.
    """

    name: str
    covers: str
    method: str
    counts: bool
    interval: float
    least: float
    read: Callable[[], float | None]


class Reading:
    """The readings of one meter, from `start` to `close`."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._times: list[float] = []
        self._values: list[float] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.meter.interval + 1)

    def _go(self) -> None:
        while not self._stop.wait(self.meter.interval):
            self.now()

    def now(self) -> float:
        """Read once more; returns the moment, in seconds of `time.perf_counter`."""
        with self._lock:
            value = self.meter.read()
            moment = time.perf_counter()
            if value is not None:
                self._times.append(moment)
                self._values.append(value)
        return moment

    def joules(self, first: float, last: float) -> float | None:
        """Energy between two moments; None of fewer than two readings.

        Watts are taken as changing evenly from one reading to the next.
        """
        with self._lock:
            times = np.array(self._times)
            values = np.array(self._values)
        if len(times) < 2:
            return None
        if not self.meter.counts:
            pieces = np.diff(times) * (values[1:] + values[:-1]) / 2
            values = np.concatenate([[0.0], np.cumsum(pieces)])
        start, end = np.interp([first, last], times, values)
        return float(end - start)

    def average(self, windows: list[tuple[float, float]]) -> dict[str, Any] | None:
        """{"watts", "seconds", "hz"} over windows of time; None where they are too short.

        hz: readings per second within them.
        """
        seconds = sum(last - first for first, last in windows)
        if seconds < self.meter.least:
            return None
        parts = [self.joules(*window) for window in windows]
        if any(part is None for part in parts):
            return None
        with self._lock:
            times = np.array(self._times)
        count = sum(int(((times >= a) & (times <= b)).sum()) for a, b in windows)
        watts = sum(part or 0.0 for part in parts) / seconds
        return {"watts": watts, "seconds": seconds, "hz": count / seconds}
