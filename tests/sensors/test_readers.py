"""Readers of sensors on the recorded files of each class of device."""

import os

import pytest

from gwq_export.sensors import identity, processors, thermal, throttling
from gwq_export.sensors.power import SENSORS, meters, tegrastats_watts
from gwq_export.sensors.system import System, run_program, stream_program
from tests.support.devices import DEVICES, change, device

ORDER = ["INA3221", "tegrastats", "PMIC", "hwmon", "RAPL", "battery", "Termux"]


@pytest.fixture
def system(tmp_path):
    return lambda name, changes=(): device(name, tmp_path / name, changes)


# device -> {meter: (whose power, watts of a reading; None: a counter)}, hottest processor,
# clock rate of the fastest, governor, power mode
EXPECTED = {
    "pi4": ({}, 81.304, 1000, "ondemand", None),
    "pi5": (
        {"PMIC": ("the board's rails", 0.1 * 3.7 + 0.2 * 3.3 + 2 * 0.85)},
        61.2, 2400, "ondemand", None,
    ),
    "orin_nano": (
        {"INA3221": ("the whole module", 6.0)}, 54.25, 1728, "schedutil", "nvpmodel 25W",
    ),
    "agx_orin": (
        {"INA3221": ("all rails with a sensor", 4 + 2 + 4 + 0.5)},
        49.0, 2201.6, "schedutil", "nvpmodel MAXN",
    ),
    "jetson_nano": (
        {"tegrastats": ("the module", 2.545)}, 35.5, 1479, "schedutil", "nvpmodel MAXN",
    ),
    "laptop": (
        {"RAPL": ("the processors", None), "battery": ("the whole device", 9.5)},
        64.0, 3200, "powersave", "profile balanced, battery",
    ),
    "phone": ({"Termux": ("the whole device", 3.9)}, 58.7, 2900, "walt", None),
    "vm": ({}, None, None, None, None),
}  # fmt: skip


def test_every_device_is_expected():
    assert set(EXPECTED) == set(DEVICES) and list(SENSORS) == ORDER


@pytest.mark.parametrize("name", EXPECTED)
def test_a_device(system, name):
    power, celsius, mhz, governor, mode = EXPECTED[name]
    s = system(name)
    there, missing = meters(s)
    assert list(dict.fromkeys(m.name for m in there)) == list(power)
    for meter in there:
        covers, watts = power[meter.name]
        assert meter.covers.startswith((covers, "the whole device (psys)"))
        assert meter.counts == (watts is None)
        assert meter.read() == pytest.approx(watts or 0.0)
    # each of the others says in a few words why it is not there
    assert {m["sensor"] for m in missing} == set(ORDER) - set(power)
    assert all(10 < len(m["why"]) < 100 for m in missing)
    found = thermal.processors(s)
    assert (found and found["celsius"]) == celsius
    policy = processors.fastest(processors.policies(s))
    assert (policy and policy["mhz"]) == mhz
    assert (policy and policy["governor"]) == governor
    assert identity.power_mode(s) == mode


def test_gpus_are_asked_only_where_they_compute(system):
    assert "NVML" not in {m["sensor"] for m in meters(system("vm"))[1]}
    assert "NVML" in {m["sensor"] for m in meters(system("vm"), gpu=0)[1]}


def test_counters_that_begin_anew(system):
    s = system("laptop")
    meter = meters(s)[0][0]
    assert meter.method == "energy_uj of package-0"
    assert meter.read() == 0
    change(s, "/sys/class/powercap/intel-rapl:0/energy_uj", 262143328850 - 8850)
    assert meter.read() == pytest.approx(0.02)
    change(s, "/sys/class/powercap/intel-rapl:0/energy_uj", 1000000)
    assert meter.read() == pytest.approx(0.02 + 0.00885 + 1)
    (s.root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert meter.read() is None


@pytest.mark.parametrize(
    "name, changes, sensor, words",
    [
        ("laptop", {"/sys/class/power_supply/BAT0/status": "Charging"}, "battery", "unplug"),
        (
            "laptop",
            {f"/sys/class/powercap/intel-rapl:{z}/energy_uj": "" for z in (0, 1)},
            "RAPL",
            "root",
        ),
        ("phone", {"$ termux-battery-status": '{"plugged": "PLUGGED_AC"}'}, "Termux", "unplug"),
        ("phone", {"$ termux-battery-status": '{"plugged": "UNPLUGGED"}'}, "Termux", "update"),
        ("phone", {"$ termux-battery-status": "not JSON"}, "Termux", "pkg install"),
        ("orin_nano", {"/sys/class/hwmon/hwmon1/in1_label": None}, "tegrastats", "hwmon"),
    ],
)
def test_why_a_sensor_is_missing(system, name, changes, sensor, words):
    _, missing = meters(system(name, changes))
    assert words in {m["sensor"]: m["why"] for m in missing}[sensor]


def test_other_chips(system):
    """Rails of one chip are added; of Apple's the first is the total."""
    files = {
        f"/sys/class/hwmon/hwmon{i}/{key}": value
        for i, name in enumerate(["ina231", "macsmc_hwmon", "amdgpu"])
        for key, value in (
            ("name", name),
            ("power1_input", 1500000),
            ("power2_input", 500000),
            ("power1_average", 9),
        )
    }
    found = {m.name: m.read() for m in meters(system("vm", files))[0]}
    assert found == {"ina231": 2.0, "macsmc_hwmon": 1.5}


def test_rails_of_jetpack_4(system):
    folder = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {}
    for i, (rail, milli) in enumerate(
        [("POM_5V_IN", 3000), ("POM_5V_GPU", 40), ("POM_5V_CPU", 900)]
    ):
        files |= {f"{folder}/rail_name_{i}": rail, f"{folder}/in_power{i}_input": milli}
    (meter,), _ = meters(system("jetson_nano", files))
    assert (meter.name, meter.covers, meter.read()) == ("INA3221", "the whole module", 3.0)


def test_lines_of_tegrastats():
    assert tegrastats_watts("RAM 1/2MB VDD_IN 4521mW/4500mW VDD_SOC 1000mW/900mW") == 4.521
    assert tegrastats_watts("VDD_GPU_SOC 2000mW/1mW VDD_CPU_CV 500mW/1mW") == 2.5
    assert tegrastats_watts("RAM 1766/3964MB CPU [24%@1224]") is None
    assert tegrastats_watts("") is None


def test_throttling(system):
    told = throttling.throttling(system("pi4"))["get_throttled"]
    assert [what for what, value in told.items() if value] == [
        "throttled now",
        "too low a supply voltage since the start",
        "throttled since the start",
    ]
    assert throttling.throttling(system("vm")) == {}
    assert set(throttling.throttling(system("pi5"))) == {"get_throttled"}
    assert throttling.throttling(system("orin_nano")) == {
        "cooling devices": {"cooling by cpufreq-cpu0 now": 0},
        "soctherm_oc": {f"power limit oc{i} (count)": n for i, n in ((1, 0), (2, 0), (3, 3))},
    }
    assert throttling.throttling(system("laptop"))["thermal_throttle"] == {
        "cores too hot (count)": 28,
        "package too hot (count)": 40,
    }


def test_throttling_between(system):
    between = throttling.between
    assert between({}, {}) == (None, [])
    slowed, why = between(*[throttling.throttling(system("pi4"))] * 2)
    assert slowed and why == ["get_throttled: throttled now"]  # the old trouble does not count
    s = system("laptop")
    before = throttling.throttling(s)
    assert between(before, before) == (False, [])
    change(s, "/sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_count", 4)
    after = throttling.throttling(s)
    assert between(before, after) == (True, ["thermal_throttle: cores too hot (count)"])
    points = [{"throttling": told} for told in (before, after, after)]
    assert throttling.summary(points) == (True, ["thermal_throttle: cores too hot (count)"])
    assert throttling.summary(points[1:]) == (False, [])
    assert throttling.summary([]) == (None, [])


@pytest.mark.parametrize(
    "name, cores, clusters, counts",
    [
        ("pi4", {"Cortex-A72": 4}, [[0, 1, 2, 3]], [(1, None), (2, None), (4, None)]),
        ("orin_nano", {"Cortex-A78AE": 6}, [[0, 1, 2, 3, 4, 5]], [(n, None) for n in (1, 2, 4, 6)]),
        (
            "laptop",
            {"12th Gen Intel(R) Core(TM) i5-1240P": 8},
            [[0, 1, 2, 3], [4, 5, 6, 7]],
            [*((n, [0, 1, 2, 3]) for n in (1, 2, 4)), (8, list(range(8)))],
        ),
        (
            "phone",
            {"Cortex-A510": 4, "Cortex-A710": 3, "Cortex-X2": 1},
            [[7], [4, 5, 6], [0, 1, 2, 3]],
            [(1, [7]), (4, [7, 4, 5, 6]), (8, [7, 4, 5, 6, 0, 1, 2, 3])],
        ),
        ("vm", {"Intel(R) Xeon(R) Processor": 2}, [[0, 1]], [(1, None), (2, None)]),
    ],
)
def test_clusters(system, monkeypatch, name, cores, clusters, counts):
    s = system(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    told = identity.describe(s)
    assert told["cores"] == cores
    assert [c["cpus"] for c in told["clusters"]] == clusters
    assert processors.thread_counts(told["clusters"], 256) == counts


def test_threads_within_a_mask_and_a_quota(system):
    s = system("phone")
    found = processors.clusters(s, [0, 1, 4, 5])
    assert [c["cpus"] for c in found] == [[4, 5], [0, 1]]
    assert processors.thread_counts(found, 3) == [(1, [4, 5]), (2, [4, 5]), (3, [4, 5, 0, 1])]
    assert processors.thread_counts(found, 1) == [(1, [4, 5])]
    # a container with 1.5 CPUs on 16: two threads at most
    sixteen = [{"cpus": list(range(16)), "capacity": None, "max_mhz": None}]
    assert processors.thread_counts(sixteen, 2) == [(1, None), (2, None)]


def test_clusters_by_clock_rate(system):
    """Favoured cores, a little faster, are of the same cluster; no capacities are told."""
    files = {f"/sys/devices/system/cpu/cpu{i}/cpu_capacity": None for i in range(8)}
    for cpu, khz in ((0, 4700000), (5, 3400000)):
        files[f"/sys/devices/system/cpu/cpufreq/policy{cpu}/cpuinfo_max_freq"] = khz
    found = processors.clusters(system("laptop", files), range(8))
    assert [c["cpus"] for c in found] == [[0, 1, 2, 3], [5, 4, 6, 7]]


@pytest.mark.parametrize("text, cpus", [("0-3,6", [0, 1, 2, 3, 6]), ("2 5", [2, 5]), ("x", [])])
def test_lists_of_cpus(text, cpus):
    assert processors.cpu_list(text) == cpus


@pytest.mark.parametrize(
    "name, secrets",
    [
        ("pi4", ["10000000abcdef01", "c03114"]),
        ("orin_nano", ["1421234567890"]),
        ("laptop", ["PF3SECRET", "1234"]),
        ("phone", ["R5CT1234567"]),
    ],
)
def test_no_serial_numbers(system, name, secrets):
    s = system(name)
    assert all(secret in DEVICES[name].read_text() for secret in secrets)
    told = repr((identity.describe(s), meters(s), throttling.throttling(s)))
    assert not any(secret in told for secret in secrets)


def test_boards(system):
    boards = {
        "pi5": ("Raspberry Pi 5 Model B Rev 1.0", "Debian GNU/Linux 12 (bookworm)", 8245232),
        "laptop": ("LENOVO 21A0X", "Fedora Linux 42", 16165488),
        "phone": ("samsung SM-S901B", "Android 14", 7693596),
        "vm": (None, "Debian GNU/Linux 12 (bookworm)", 24612004),
    }
    for name, (board, os_name, kib) in boards.items():
        told = identity.describe(system(name))
        assert (told["board"], told["os"]) == (board, os_name)
        assert told["memory_bytes"] == 1024 * kib


def test_this_system():
    """Whatever machine this is, nothing fails, and what is told is sensible."""
    s = System()
    told = identity.describe(s)
    assert 1 <= told["default_threads"] <= max(told["usable_cpus"], told["default_threads"])
    assert told["memory_bytes"] > 1 << 28
    assert s.text("/none") is None and s.number("/proc/version") is None
    assert s.paths("/none/*") == []


def test_programs():
    assert run_program("echo", "a") == "a\n"
    assert run_program("false") is None
    assert run_program("gwq-no-such-program") is None
    assert next(stream_program("yes")) == "y\n"
    assert list(stream_program("gwq-no-such-program")) == []
