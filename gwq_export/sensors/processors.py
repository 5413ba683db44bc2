"""Processors: clusters of like ones, governors, clock rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gwq_export.sensors.system import System

CPUS = "/sys/devices/system/cpu"
LIKE = 0.9  # clock rates no further apart are of one cluster: favoured cores differ by some percent


def cpu_list(text: str) -> list[int]:
    """CPU numbers of a list as Linux writes it: "0-3,6" or "0 1 2 3"; none of other text."""
    cpus: list[int] = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return []
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def policies(system: System) -> list[dict[str, Any]]:
    """[{"cpus", "governor", "mhz", "limit_mhz", "max_mhz"}] of the CPUs that share a clock.

    mhz: now; limit_mhz: what it may rise to at the moment; max_mhz: by its hardware. A value that
    the system does not tell is None.
    """
    found = []
    for path in system.paths(f"{CPUS}/cpufreq/policy[0-9]*"):
        cpus = cpu_list(
            system.text(f"{path}/related_cpus") or system.text(f"{path}/affected_cpus") or ""
        )
        found.append(
            {
                "cpus": cpus or [int(path.rpartition("policy")[2])],
                "governor": system.text(f"{path}/scaling_governor"),
                "mhz": _mhz(system, f"{path}/scaling_cur_freq"),
                "limit_mhz": _mhz(system, f"{path}/scaling_max_freq"),
                "max_mhz": _mhz(system, f"{path}/cpuinfo_max_freq"),
            }
        )
    return found


def _mhz(system: System, path: str) -> float | None:
    khz = system.number(path)
    return khz / 1000 if khz else None


def fastest(found: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """That of `policies` whose clock may rise highest; None of none."""
    return max(found, key=lambda p: p["max_mhz"] or 0, default=None)


def clusters(system: System, usable: Iterable[int]) -> list[dict[str, Any]]:
    """[{"cpus", "capacity", "max_mhz"}]: the usable CPUs by how fast they are, fastest first.

    capacity: Linux's, 1024 for the fastest; None where it is not told. CPUs of one capacity are one
    cluster; without capacities, those of about one highest clock rate.
    """
    rates = {cpu: p["max_mhz"] for p in policies(system) for cpu in p["cpus"]}
    facts = {
        cpu: (system.number(f"{CPUS}/cpu{cpu}/cpu_capacity"), rates.get(cpu)) for cpu in usable
    }
    known = all(capacity for capacity, _ in facts.values())
    speed = {cpu: (capacity if known else rate) or 0 for cpu, (capacity, rate) in facts.items()}
    found: list[dict[str, Any]] = []
    for cpu in sorted(speed, key=lambda cpu: (-speed[cpu], cpu)):
        top = speed[found[-1]["cpus"][0]] if found else 0
        if found and (speed[cpu] == top or (not known and speed[cpu] >= LIKE * top)):
            found[-1]["cpus"].append(cpu)
        else:
            capacity, rate = facts[cpu]
            found.append({"cpus": [cpu], "capacity": capacity if known else None, "max_mhz": rate})
    return found


def thread_counts(found: list[dict[str, Any]], limit: int) -> list[tuple[int, list[int] | None]]:
    """[(threads, CPUs they are kept on, or None for any)]: what a sweep tries, at most `limit`.

    Within the fastest of the clusters 1, 2, 4, ... threads and as many as it has; then whole
    clusters, one after another. Where there are several, threads are kept on the fastest of them
    that have room for all.
    """
    counts: dict[int, list[int] | None] = {}
    cpus: list[int] = []
    for i, cluster in enumerate(found):
        cpus = [*cpus, *cluster["cpus"]]
        steps = [2**k for k in range(len(cpus).bit_length())] if i == 0 else []
        for count in (*steps, len(cpus)):
            counts.setdefault(min(count, limit), cpus if len(found) > 1 else None)
    return sorted(counts.items())
