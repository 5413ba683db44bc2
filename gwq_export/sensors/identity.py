"""What kind of device this is, without anything that tells whose it is.

No host name, user, serial number, address or path is read.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from gwq_export import cgroups
from gwq_export.machine import default_threads
from gwq_export.sensors import processors
from gwq_export.sensors.system import System

# "CPU part" of Arm's own cores in /proc/cpuinfo
ARM_CORES = {
    **{0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57"},
    **{0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76"},
    **{0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78"},
    **{0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710"},
    **{0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3"},
    **{0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4"},
}
ARM = 0x41  # "CPU implementer"


def _nvpmodel(system: System) -> str | None:
    found = re.search(r"Power Mode:\s*(\S+)", system.output("nvpmodel", "-q") or "")
    return found and f"nvpmodel {found[1]}"


def _profile(system: System) -> str | None:
    text = system.text("/sys/firmware/acpi/platform_profile")
    return text and f"profile {text}"


def _preference(system: System) -> str | None:
    text = system.text(f"{processors.CPUS}/cpufreq/policy0/energy_performance_preference")
    return text and f"preference {text}"


def _mains(system: System) -> str | None:
    """Only of devices with a battery."""
    kinds = {
        path: system.text(f"{path}/type") for path in system.paths("/sys/class/power_supply/*")
    }
    mains = [p for p, kind in kinds.items() if kind in ("Mains", "USB")]
    if "Battery" not in kinds.values() or not mains:
        return None
    return "charger" if any(system.number(f"{p}/online") == 1 for p in mains) else "battery"


POWER_MODES: list[Callable[[System], str | None]] = [_nvpmodel, _profile, _preference, _mains]


def power_mode(system: System) -> str | None:
    """The power mode in words, such as "nvpmodel 25W"; None where the system has none."""
    return ", ".join(filter(None, (read(system) for read in POWER_MODES))) or None


def _board(system: System) -> str | None:
    for path in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        if text := system.text(path):
            return text
    maker = system.output("getprop", "ro.product.manufacturer")
    if maker and maker.strip():
        model = system.output("getprop", "ro.product.model") or ""
        return f"{maker.strip()} {model.strip()}".strip()
    names = [system.text(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    return " ".join(filter(None, names)) or None


def _cores(cpuinfo: str) -> dict[str, int]:
    """{name of a core: how many} of the cores that /proc/cpuinfo names."""
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    makers = re.findall(r"^CPU implementer\s*:\s*(\w+)$", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\w+)$", cpuinfo, re.MULTILINE)
    if parts and len(makers) == len(parts):
        codes = [(int(maker, 16), int(part, 16)) for maker, part in zip(makers, parts, strict=True)]
        names = [
            ARM_CORES.get(part, f"part {part:#x}") if maker == ARM else f"{maker:#x} part {part:#x}"
            for maker, part in codes
        ]
    return dict(Counter(names))


def _os(system: System) -> str | None:
    android = system.output("getprop", "ro.build.version.release")
    if android and android.strip():
        return f"Android {android.strip()}"
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', system.text("/etc/os-release") or "", re.M)
    return found[1] if found else platform.system()


def _load() -> float | None:
    """How many programs have run or waited to run, in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def describe(system: System) -> dict[str, Any]:
    """What kind of device this is: see data/edge.schema.json, "device"."""
    cpuinfo = system.text("/proc/cpuinfo") or ""
    memory = re.search(r"^MemTotal:\s*(\d+) kB", system.text("/proc/meminfo") or "", re.M)
    online = processors.cpu_list(system.text(f"{processors.CPUS}/online") or "")
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else online
    cores = _cores(cpuinfo)
    if not cores and (name := platform.processor()):
        cores = {name: os.cpu_count() or 1}
    governors = dict.fromkeys(p["governor"] for p in processors.policies(system) if p["governor"])
    quota = cgroups.cpu_quota()
    # a kernel's full name may say who built it
    release = re.match(r"\d+(\.\d+)*", platform.release())
    return {
        "board": _board(system),
        "cores": cores,
        "architecture": platform.machine(),
        "clusters": processors.clusters(system, [c for c in online if c in usable] or usable),
        "cpus": len(online) or os.cpu_count(),
        "usable_cpus": len(usable) or os.cpu_count(),
        "cpu_quota": quota if quota is None or math.isfinite(quota) else None,
        "default_threads": default_threads(),
        "load_average": _load(),
        "governor": "+".join(governors) or None,
        "power_mode": power_mode(system),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "os": _os(system),
        "kernel": release[0] if release else None,
    }
