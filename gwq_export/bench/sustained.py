"""Decoding for minutes: how speed, temperature and clock rate change with time."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from gwq_export.bench.contender import Contender
from gwq_export.bench.runs import per_token
from gwq_export.sensors.throttling import summary
from gwq_export.sensors.watch import Watch, Window

PIECE = 1.0  # seconds of decoding between two points
MINUTE = 60.0
LEAST, MOST = 4, 512  # tokens of a piece


class Sustained:
    """Decoding by one contender without a pause.

    `result` tells what there is so far, also after an interruption. ctx: tokens of its context.
    """

    def __init__(self, c: Contender, threads: int, ctx: int, watch: Watch) -> None:
        self.c = c
        self.threads = threads
        self.ctx = ctx
        self.watch = watch
        self.points: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []
        self._windows: list[Window] = []

    def run(self, minutes: float, progress: Callable[[str, int, int], None]) -> None:
        """Decode for so many minutes, two points at least. progress is called with seconds."""
        total = MINUTE * minutes
        probe = self.c.run(0, LEAST)[1]
        gen = min(MOST, self.ctx - 1, max(LEAST, round(PIECE * LEAST / probe)))
        self._states.append(self.watch.state())
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < total or len(self.points) < 2:
            progress("decode", min(int(now), int(total)), int(total))
            with self.watch.window(self._windows):
                seconds = self.c.run(0, gen)[1]
            state = self.watch.state()
            self._states.append(state)
            energy = self.watch.energy(self._windows[-1:])
            self.points.append(
                {
                    "s": round(time.perf_counter() - start, 3),
                    "tps": gen / seconds,
                    "mhz": state["mhz"],
                    "celsius": state["celsius"],
                    "watts": energy[0]["watts"] if energy else None,
                }
            )
        progress("decode", int(total), int(total))

    def result(self) -> dict[str, Any]:
        """See data/edge.schema.json, "sustained"."""
        energy = self.watch.energy(self._windows)
        throttled, why = summary(self._states)
        tokens_per_second = statistics.median(p["tps"] for p in self.points) if self.points else 0
        return {
            "engine": self.c.engine,
            "threads": self.threads,
            "seconds": self.points[-1]["s"] if self.points else 0.0,
            "points": self.points,
            "throttled": throttled,
            "throttled_why": why,
            "energy": [e | per_token(e, 1 / tokens_per_second) for e in energy],
        } | kept(self.points)


def kept(points: list[dict[str, Any]]) -> dict[str, Any]:
    """{"window_s", "first_tps", "last_tps", "kept"}: the speed of the first and of the last minute,
    and what is left of it; of a shorter run, of its halves. None of fewer than two points.
    """
    names = ("window_s", "first_tps", "last_tps", "kept")
    if len(points) < 2:
        return dict.fromkeys(names)
    end = points[-1]["s"]
    window = min(MINUTE, end / 2)
    first = [p["tps"] for p in points if p["s"] <= window] or [points[0]["tps"]]
    last = [p["tps"] for p in points if p["s"] > end - window]
    speeds = statistics.median(first), statistics.median(last)
    return dict(zip(names, (window, *speeds, speeds[1] / speeds[0]), strict=True))
