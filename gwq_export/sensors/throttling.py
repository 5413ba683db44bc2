"""Whether the system slowed its processors down, because of heat or of too little power."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from gwq_export.sensors.system import System

# what a source tells: {what happened: how often so far, or whether it is the case}
Told: TypeAlias = dict[str, float]

# bits of the Raspberry Pi firmware's get_throttled: now. The same 16 bits higher: since the start
FLAGS = {
    0: "too low a supply voltage",
    1: "clock rate capped",
    2: "throttled",
    3: "soft temperature limit",
}


def _counters(system: System) -> Told | None:
    """Intel: how often a core or its package was too hot."""
    folder = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"
    kinds = {"core": "cores too hot", "package": "package too hot"}
    told = {}
    for kind, what in kinds.items():
        counts = [system.number(p) for p in system.paths(f"{folder}/{kind}_throttle_count")]
        if any(count is not None for count in counts):
            told[f"{what} (count)"] = sum(count or 0 for count in counts)
    return told or None


def _raspberry(system: System) -> Told | None:
    """Raspberry Pi: the firmware's bits, from a file of the kernel or from vcgencmd."""
    text = None
    for path in system.paths("/sys/devices/platform/soc*/soc*firmware/get_throttled"):
        text = system.text(path)
    if text is None:
        text = (system.output("vcgencmd", "get_throttled") or "").strip().rpartition("=")[2]
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]+", text):
        return None
    bits = int(text, 16)
    now = {f"{what} now": float(bits >> bit & 1) for bit, what in FLAGS.items()}
    ever = {f"{what} since the start": float(bits >> bit + 16 & 1) for bit, what in FLAGS.items()}
    return now | ever


def _cooling(system: System) -> Told | None:
    """Cooling devices that lower the processors' clock rate: how far they are turned up."""
    told = {}
    for path in system.paths("/sys/class/thermal/cooling_device[0-9]*"):
        kind = system.text(f"{path}/type") or ""
        state = system.number(f"{path}/cur_state")
        if state is not None and re.match(r"(thermal-)?cpufreq|cpu|Processor", kind):
            told[f"cooling by {kind} now"] = state
    return told or None


def _over_current(system: System) -> Told | None:
    """Jetson: how often a power rail's limit was passed."""
    told = {}
    for chip in system.paths("/sys/class/hwmon/hwmon[0-9]*"):
        if system.text(f"{chip}/name") == "soctherm_oc":
            for path in system.paths(f"{chip}/oc[0-9]*_event_cnt"):
                name = path.rpartition("/")[2].partition("_")[0]
                told[f"power limit {name} (count)"] = system.number(path) or 0
    return told or None


# name of the source -> its reader, which returns None where the system has no such thing
SOURCES: dict[str, Callable[[System], Told | None]] = {
    "thermal_throttle": _counters,
    "get_throttled": _raspberry,
    "cooling devices": _cooling,
    "soctherm_oc": _over_current,
}


def throttling(system: System) -> dict[str, Told]:
    """{source: what it tells} of the SOURCES that this system has."""
    told = {name: read(system) for name, read in SOURCES.items()}
    return {name: found for name, found in told.items() if found is not None}


def between(before: dict[str, Told], after: dict[str, Told]) -> tuple[bool | None, list[str]]:
    """(whether the processors were slowed down between two `throttling`, what says so).

    Counts and marks "since the start" count if they have risen; what is the case "now" counts if it
    was so before or after. None: no source tells.
    """
    why = []
    for source, found in after.items():
        earlier = before.get(source, {})
        for what, value in found.items():
            then = earlier.get(what, 0)
            if (value or then) if what.endswith(" now") else value > then:
                why.append(f"{source}: {what}")
    return (bool(why) if after else None), why


def summary(points: list[dict[str, Any]]) -> tuple[bool | None, list[str]]:
    """`between`, from each of several "throttling" to the next. points: of `watch.Watch.state`."""
    told: list[str] = []
    known = None
    for one, two in itertools.pairwise(points):
        slowed, why = between(one["throttling"], two["throttling"])
        known = slowed if known is None else known or bool(slowed)
        told += why
    return known, list(dict.fromkeys(told))
