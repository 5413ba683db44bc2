"""Where a device tells how much power it takes: a table of sensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from gwq_export.sensors.meters import Meter
from gwq_export.sensors.nvml import Nvml
from gwq_export.sensors.system import System

HWMON = "/sys/class/hwmon/hwmon[0-9]*"
POWERCAP = "/sys/class/powercap"
TOTAL = re.compile(r"VDD_IN|POM_5V_IN|VIN|VDD_5V_IN", re.IGNORECASE)  # rails all others hang on
# chips whose power1_input, ... is that of a board or of its rails -> whose it is
CHIPS = {
    "macsmc_hwmon": "the whole device",
    **dict.fromkeys(
        ("ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260"),
        "the rails with a sensor",
    ),
}
INTERVAL = 0.1  # seconds between two readings of a file of sysfs

Found: TypeAlias = list[Meter] | str  # meters, or why there are none


def _sum(reads: list[Callable[[], float | None]]) -> Callable[[], float | None]:
    def read() -> float | None:
        values = [one() for one in reads]
        return None if None in values else sum(v for v in values if v is not None)

    return read


def _counter(system: System, path: str, wraps: float) -> Callable[[], float | None]:
    """Joules of a counter of microjoules that begins anew after `wraps` of them."""
    last: float | None = None
    total = 0.0

    def read() -> float | None:
        nonlocal last, total
        value = system.number(path)
        if value is None:
            return None
        if last is not None:
            total += value - last if value >= last else value - last + wraps
        last = value
        return total / 1e6

    return read


def _product(system: System, volts: str, amperes: str, unit: float) -> Callable[[], float | None]:
    def read() -> float | None:
        u, i = system.number(volts), system.number(amperes)
        return None if u is None or i is None else abs(u * i) * unit

    return read


def rapl(system: System) -> Found:
    """Intel's and AMD's energy counters, as Linux's powercap shows them."""
    zones = system.paths(f"{POWERCAP}/intel-rapl:*")
    if not zones:
        return f"no {POWERCAP}/intel-rapl:*"
    names = {zone: system.text(f"{zone}/name") or "" for zone in zones}
    package = [z for z, name in names.items() if re.match(r"package|dram", name)]
    meters = []
    for what, chosen in (
        ("the processors and the memory that they count", package),
        ("the whole device (psys)", [z for z, name in names.items() if name == "psys"]),
    ):
        readable = [z for z in chosen if system.number(f"{z}/energy_uj") is not None]
        if not readable:
            continue
        reads = [
            _counter(system, f"{z}/energy_uj", system.number(f"{z}/max_energy_range_uj") or 0)
            for z in readable
        ]
        told = "+".join(dict.fromkeys(names[z] for z in readable))
        meters.append(Meter("RAPL", what, f"energy_uj of {told}", True, 1.0, 0.05, _sum(reads)))
    if not meters:
        return f"{POWERCAP}/*/energy_uj may be read by root only: sudo chmod a+r it"
    return meters


def ina3221(system: System) -> Found:
    """Power rails of a Jetson, or of another board with this chip."""
    rails = {}
    for chip in system.paths(HWMON):
        if system.text(f"{chip}/name") != "ina3221":
            continue
        for path in system.paths(f"{chip}/in[1-3]_label"):
            volts = path.replace("_label", "_input")
            amperes = volts.replace("/in", "/curr")
            if system.number(volts) is not None and system.number(amperes) is not None:
                # millivolts and milliamperes
                rails[system.text(path) or volts] = _product(system, volts, amperes, 1e-6)
    for path in system.paths("/sys/bus/i2c/drivers/ina3221x/*/iio:device[0-9]*/rail_name_[0-2]"):
        power = re.sub(r"rail_name_(\d)$", r"in_power\1_input", path)  # of JetPack 4, milliwatts
        if system.number(power) is not None:

            def read(power: str = power) -> float | None:
                milli = system.number(power)
                return None if milli is None else milli / 1000

            rails[system.text(path) or power] = read
    if not rails:
        return "no ina3221 in /sys/class/hwmon"
    whole = [name for name in rails if TOTAL.fullmatch(name)]
    chosen = whole[:1] or list(rails)
    covers = "the whole module" if whole else "all rails with a sensor"
    method = f"volts x amperes of {'+'.join(chosen)}"
    reads = [rails[name] for name in chosen]
    return [Meter("INA3221", covers, method, False, INTERVAL, 0.5, _sum(reads))]


def tegrastats_watts(line: str) -> float | None:
    """Watts of a line of tegrastats, "VDD_IN 4521mW/4500mW" or "POM_5V_IN 2545/2547"."""
    rails = {
        name: int(milli) / 1000
        for name, milli in re.findall(r"((?:VDD|VIN|POM|CPU|GPU|SOC)\w*) (\d+)(?:mW)?/\d+", line)
    }
    if not rails:
        return None
    return next((w for name, w in rails.items() if TOTAL.fullmatch(name)), sum(rails.values()))


def tegrastats(system: System) -> Found:
    """A Jetson's own program, where the files of its sensors cannot be read."""
    if not isinstance(ina3221(system), str):
        return "the rails are read from /sys/class/hwmon"
    every = 0.2
    lines: Iterator[str] = system.lines("tegrastats", "--interval", str(int(1000 * every)))
    if tegrastats_watts(next(lines, "")) is None:
        return "no tegrastats that prints power"

    def read() -> float | None:
        return tegrastats_watts(next(lines, ""))

    method = "its lines, the whole module's rail or the sum of all"
    return [Meter("tegrastats", "the module", method, False, every, 1.0, read)]


def pmic(system: System) -> Found:
    """The Raspberry Pi 5's power chip."""

    def read() -> float | None:
        told = system.output("vcgencmd", "pmic_read_adc") or ""
        found = re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)", told)
        rails: dict[str, dict[str, float]] = {}
        for name, unit, value in found:
            rails.setdefault(name, {})[unit] = float(value)
        both = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
        return sum(both) if both else None

    if read() is None:
        return "no vcgencmd pmic_read_adc (a Raspberry Pi 5 has it)"
    covers = "the board's rails, without losses and what hangs on its 5 V"
    method = "volts x amperes of vcgencmd pmic_read_adc"
    return [Meter("PMIC", covers, method, False, 0.5, 2.0, read)]


def hwmon(system: System) -> Found:
    """Other chips that measure power."""
    meters = []
    for chip in system.paths(HWMON):
        name = system.text(f"{chip}/name") or ""
        inputs = system.paths(f"{chip}/power[0-9]*_input") if name in CHIPS else []
        if name == "macsmc_hwmon":  # the first is the total, the others are parts of it
            inputs = inputs[:1]
        reads = [_micro(system, p) for p in inputs if system.number(p) is not None]
        if reads:
            method = f"power*_input of {name}"
            meters.append(Meter(name, CHIPS[name], method, False, INTERVAL, 0.5, _sum(reads)))
    return meters or "no chip that measures a board's power in /sys/class/hwmon"


def _micro(system: System, path: str) -> Callable[[], float | None]:
    def read() -> float | None:
        micro = system.number(path)
        return None if micro is None else micro / 1e6

    return read


def battery(system: System) -> Found:
    """The battery, while the device runs on it alone."""
    for supply in system.paths("/sys/class/power_supply/*"):
        if system.text(f"{supply}/type") != "Battery" or system.text(f"{supply}/scope") == "Device":
            continue
        status = system.text(f"{supply}/status")
        if status is None:
            continue
        if status != "Discharging":
            return f"the battery is not in use ({status}): unplug the charger"
        volts, amperes = f"{supply}/voltage_now", f"{supply}/current_now"
        if system.number(f"{supply}/power_now") is not None:
            read = _micro(system, f"{supply}/power_now")
            method = "power_now"
        elif _product(system, volts, amperes, 1e-12)() is not None:
            read = _product(system, volts, amperes, 1e-12)
            method = "current_now x voltage_now"
        else:
            continue
        return [Meter("battery", "the whole device", method, False, 1.0, 60.0, read)]
    return "no battery that tells its power in /sys/class/power_supply"


def termux(system: System) -> Found:
    """An Android phone's battery, by the app Termux:API."""

    def told() -> dict[str, object]:
        try:
            found = json.loads(system.output("termux-battery-status") or "{}")
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    def read() -> float | None:
        now = told()
        micro, milli = now.get("current"), now.get("voltage")
        if not isinstance(micro, (int, float)) or not isinstance(milli, (int, float)):
            return None
        return abs(micro) / 1e6 * milli / 1000

    if not (first := told()):
        return "no termux-battery-status (Android: pkg install termux-api, and the app Termux:API)"
    if first.get("plugged") != "UNPLUGGED":
        return "the battery is not in use: unplug the charger"
    if read() is None:
        return "termux-battery-status does not tell voltage and current: update the app Termux:API"
    method = "current x voltage of termux-battery-status"
    return [Meter("Termux", "the whole device", method, False, 2.0, 60.0, read)]


def nvml(which: int | str) -> Found:
    """A GPU. which: as for Nvml."""
    try:
        gpu = Nvml(which)
    except OSError as e:
        return f"no {e}"
    covers = "the GPU's board"
    if gpu.joules() is not None:
        return [Meter("NVML", covers, "its energy counter", True, 0.1, 1.0, gpu.joules)]
    if gpu.watts() is not None:
        return [Meter("NVML", covers, "its power", False, INTERVAL, 1.0, gpu.watts)]
    return "this GPU does not tell its power"


# name -> finder of its meters; the first found stands for the device
SENSORS: dict[str, Callable[[System], Found]] = {
    "INA3221": ina3221,
    "tegrastats": tegrastats,
    "PMIC": pmic,
    "hwmon": hwmon,
    "RAPL": rapl,
    "battery": battery,
    "Termux": termux,
}


def meters(
    system: System, gpu: int | str | None = None
) -> tuple[list[Meter], list[dict[str, str]]]:
    """(meters that this system has, [{"sensor", "why"}] of those that it lacks).

    gpu: the NVIDIA GPU that computes, as for Nvml; None: the processors do.
    """
    there: list[Meter] = []
    missing = []
    found = {"NVML": nvml(gpu)} if gpu is not None else {}
    found |= {name: find(system) for name, find in SENSORS.items()}
    for name, result in found.items():
        if isinstance(result, str):
            missing.append({"sensor": name, "why": result})
        else:
            there += result
    return there, missing
