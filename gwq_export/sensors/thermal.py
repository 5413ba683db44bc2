"""Temperatures of the processors."""

from __future__ import annotations

import re
from typing import Any

from gwq_export.sensors.system import System

SENSIBLE = (1, 150)  # degrees Celsius; other values are those of a sensor that does not work
# of zones and chips, the first that matches is the processors'; of several that match, the hottest
OF_PROCESSORS = (
    r"x86_pkg_temp|coretemp Package.*|k10temp Tctl|zenpower Tdie",
    r"tj[-_]?therm(al)?",  # Jetson: the hottest spot of the chip
    r"cpu.*|.*[-_]cpu[-_].*|cluster.*|big.*|tsens_tz_sensor.*",
    r"soc.*|package.*|.*bcm2835.*|coretemp.*|k10temp.*|macsmc.*",
)


def temperatures(system: System) -> list[dict[str, Any]]:
    """[{"name", "celsius"}] of all thermal zones and of the hwmon chips' sensors."""
    found = []
    for zone in system.paths("/sys/class/thermal/thermal_zone[0-9]*"):
        found.append((system.text(f"{zone}/type"), system.number(f"{zone}/temp")))
    for path in system.paths("/sys/class/hwmon/hwmon[0-9]*/temp[0-9]*_input"):
        chip = system.text(f"{path.rpartition('/')[0]}/name")
        label = system.text(f"{path.removesuffix('_input')}_label") or ""
        found.append((f"{chip} {label}".strip(), system.number(path)))
    low, high = SENSIBLE
    return [
        {"name": name or "", "celsius": milli / 1000}
        for name, milli in found
        if milli is not None and low <= milli / 1000 <= high
    ]


def processors(system: System) -> dict[str, Any] | None:
    """The temperature of the processors, as in `temperatures`; None where no sensor says it."""
    found = temperatures(system)
    for pattern in OF_PROCESSORS:
        named = [t for t in found if re.fullmatch(pattern, t["name"], re.IGNORECASE)]
        if named:
            return max(named, key=lambda t: t["celsius"])
    return None
