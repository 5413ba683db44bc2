"""The state of the device around runs, and the energy that they take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from gwq_export.sensors import processors, thermal
from gwq_export.sensors.identity import power_mode
from gwq_export.sensors.meters import Reading
from gwq_export.sensors.nvml import Nvml
from gwq_export.sensors.power import meters
from gwq_export.sensors.system import System
from gwq_export.sensors.throttling import throttling

QUICK = 5.0  # seconds that a meter may need, where nobody has asked for long runs
IDLE = 5.0  # seconds for which idle power is measured at least

Window: TypeAlias = list[tuple[float, float]]  # first and last moment, of each meter


class Watch:
    """Reads the sensors of a system, and its meters by threads, until it is left.

    gpu: the NVIDIA GPU that computes, as for Nvml; None: the processors do. patient: whether runs
    are long enough for slow meters. meters: those there are; missing: [{"sensor", "why"}].
    """

    def __init__(
        self, system: System | None = None, gpu: int | str | None = None, patient: bool = False
    ) -> None:
        self.system = system or System()
        self._gpu = gpu
        self.meters, self.missing = meters(self.system, gpu)
        for meter in list(self.meters):
            if meter.least > QUICK and not patient:
                self.meters.remove(meter)
                why = f"it takes runs of {meter.least:.0f} s: use --suite edge or --minutes"
                self.missing.append({"sensor": meter.name, "why": why})
        self._readings = [Reading(meter) for meter in self.meters]
        self._idle: list[float | None] = [None] * len(self.meters)
        for name, value in (
            ("temperature", self.celsius()),
            ("clock rate", self.mhz()),
            ("throttling", throttling(self.system) or None),
            ("power mode", power_mode(self.system)),
        ):
            if value is None:
                self.missing.append({"sensor": name, "why": "this system does not tell it"})

    def __enter__(self) -> Watch:
        for reading in self._readings:
            reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        for reading in self._readings:
            reading.close()

    def celsius(self) -> float | None:
        """Temperature of the processors, or of the GPU that computes."""
        if self._gpu is not None:
            return self._of_gpu("celsius")
        found = thermal.processors(self.system)
        return found["celsius"] if found else None

    def mhz(self) -> float | None:
        """Clock rate of the fastest processors, or of the GPU that computes."""
        if self._gpu is not None:
            return self._of_gpu("mhz")
        policy = processors.fastest(processors.policies(self.system))
        return policy["mhz"] if policy else None

    def _of_gpu(self, what: str) -> float | None:
        try:
            return getattr(Nvml(self._gpu or 0), what)()
        except OSError:
            return None

    def state(self) -> dict[str, Any]:
        """{"governor", "mhz", "celsius", "throttling"} at this moment; None where not told."""
        governors = [p["governor"] for p in processors.policies(self.system) if p["governor"]]
        told = throttling(self.system)
        if self._gpu is not None and (slowed := self._of_gpu("slowed")) is not None:
            told["NVML"] = {"heat or power limit now": float(slowed)}
        return {
            "governor": "+".join(dict.fromkeys(governors)) or None,
            "mhz": self.mhz(),
            "celsius": self.celsius(),
            "throttling": told,
        }

    def power_mode(self) -> str | None:
        """As `identity.power_mode`."""
        return power_mode(self.system)

    @contextlib.contextmanager
    def window(self, windows: list[Window]) -> Iterator[None]:
        """Add the time of this block to `windows`."""
        first = [reading.now() for reading in self._readings]
        yield
        windows.append([(a, r.now()) for a, r in zip(first, self._readings, strict=True)])

    def rest(self, progress: Callable[[str, int, int], None]) -> None:
        """Measure the power of the idle device, where there is a meter.

        The caller sees to it that nothing runs.
        """
        if not self.meters:
            return
        seconds = max(IDLE, *(1.1 * meter.least for meter in self.meters))
        windows: list[Window] = []
        steps = max(1, round(seconds))
        with self.window(windows):
            for done in range(steps):
                progress("idle power", done, steps)
                time.sleep(seconds / steps)
        progress("idle power", steps, steps)
        for i, reading in enumerate(self._readings):
            average = reading.average([windows[0][i]])
            self._idle[i] = average["watts"] if average else None

    def energy(self, windows: list[Window]) -> list[dict[str, Any]]:
        """[{"meter", "covers", "method", "watts", "idle_watts", "seconds", "hz"}] over windows.

        Meters for which they are too short are left out.
        """
        found = []
        for i, (meter, reading) in enumerate(zip(self.meters, self._readings, strict=True)):
            average = reading.average([window[i] for window in windows])
            if average is not None:
                told = {"meter": meter.name, "covers": meter.covers, "method": meter.method}
                found.append(told | average | {"idle_watts": self._idle[i]})
        return found
