"""Meters read by threads, the energy between two moments, and the state around runs."""

import ctypes
import shutil
import subprocess
import time

import pytest

from gwq_export.sensors import watch as watching
from gwq_export.sensors.meters import Meter, Reading
from gwq_export.sensors.nvml import Nvml
from gwq_export.sensors.power import meters
from gwq_export.sensors.watch import Watch
from tests.support.devices import change, device

QUIET = lambda *step: None  # noqa: E731


def meter(read, counts=False, interval=0.01, least=0.0):
    return Meter("m", "all", "by hand", counts, interval, least, read)


def test_watts_are_integrated(monkeypatch):
    """A ramp from 0 to 10 W in 10 s, then 10 W: 50 J, then 10 J per second."""
    moments = iter([0.0, 5.0, 10.0, 20.0])
    values = iter([0.0, 5.0, 10.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    reading = Reading(meter(lambda: next(values)))
    assert reading.joules(0, 1) is None
    for _ in range(4):
        reading.now()
    assert reading.joules(0, 10) == pytest.approx(50)
    assert reading.joules(10, 20) == pytest.approx(100)
    average = reading.average([(0, 10), (10, 20)])
    assert average == {"watts": 7.5, "seconds": 20, "hz": 5 / 20}


def test_counters_are_subtracted(monkeypatch):
    moments, values = iter([0.0, 10.0, 20.0]), iter([100.0, 150.0, None, 180.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    reading = Reading(meter(lambda: next(values), counts=True, least=5.0))
    for _ in range(3):
        reading.now()
    assert reading.joules(0, 10) == 50
    assert reading.average([(0, 10)])["watts"] == 5
    assert reading.average([(0, 4)]) is None  # shorter than it takes


def test_a_thread_reads(monkeypatch):
    count = iter(range(10**6))
    reading = Reading(meter(lambda: float(next(count)), interval=0.002))
    reading.start()
    start = time.perf_counter()
    while next(count) < 5 and time.perf_counter() < start + 10:
        time.sleep(0.01)
    reading.close()
    stopped = next(count)
    time.sleep(0.02)
    assert stopped >= 5 and next(count) == stopped + 1


def test_idle_power_and_runs(tmp_path, monkeypatch):
    """A Jetson that draws 6 W idle and 9 W while it runs."""
    monkeypatch.setattr(watching, "IDLE", 0.05)
    s = device("orin_nano", tmp_path)
    watch = Watch(s)
    (meter,) = watch.meters
    assert (meter.name, meter.least) == ("INA3221", 0.5)
    object.__setattr__(meter, "least", 0.01)
    phases = []
    with watch:
        watch.rest(lambda *step: phases.append(step))
        windows = []
        change(s, "/sys/class/hwmon/hwmon1/curr1_input", 1800)
        for _ in range(2):
            with watch.window(windows):
                time.sleep(0.02)
        (energy,) = watch.energy(windows)
    assert energy["watts"] == pytest.approx(9.0) and energy["idle_watts"] == pytest.approx(6.0)
    assert energy["seconds"] >= 0.04 and energy["hz"] > 0
    assert energy["meter"] == "INA3221" and "VDD_IN" in energy["method"]
    assert {name for name, *_ in phases} == {"idle power"}


def test_state(tmp_path):
    state = Watch(device("pi4", tmp_path)).state()
    assert state["governor"] == "ondemand" and state["mhz"] == 1000 and state["celsius"] == 81.304
    assert state["throttling"]["get_throttled"]["throttled now"]


def test_missing_sensors_are_said(tmp_path):
    told = {m["sensor"]: m["why"] for m in Watch(device("vm", tmp_path)).missing}
    assert {"temperature", "clock rate", "throttling", "power mode", "RAPL"} <= set(told)
    assert all(told.values())


def test_slow_meters_want_long_runs(tmp_path):
    s = device("phone", tmp_path)
    watch = Watch(s)
    assert watch.meters == []
    told = {m["sensor"]: m["why"] for m in watch.missing}
    assert told["Termux"] == "it takes runs of 60 s: use --suite edge or --minutes"
    assert [m.name for m in Watch(s, patient=True).meters] == ["Termux"]


NVML = """
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    *out = (void *)(long)(i + 1);
    return i > 1 ? 2 : 0;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {
    *out = (void *)1;
    return bus[5] == '3' ? 0 : 6; /* 0000:3b:00.0 */
}
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *out) {
    static unsigned long long joules = 7;
    *out = 1000 * joules++;
    return d == (void *)1 ? 0 : 3;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *out) { *out = 70500; return d ? 0 : 1; }
int nvmlDeviceGetTemperature(void *d, int kind, unsigned *out) { *out = 41 + kind; return !d; }
int nvmlDeviceGetClockInfo(void *d, int kind, unsigned *out) { *out = 1979 + kind; return !d; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *out) {
    *out = d == (void *)1 ? 0x1 : 0x40;
    return 0;
}
"""


@pytest.fixture
def nvml_library(tmp_path, monkeypatch):
    """A library with NVML's functions; GPU 1 has no energy counter and is too hot."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    monkeypatch.setenv("GWQ_NVML_LIBRARY", str(library))
    return ctypes.CDLL(str(library))


def test_a_gpu(nvml_library, tmp_path):
    gpu = Nvml(0)
    assert (gpu.joules(), gpu.joules()) == (7, 8)
    assert (gpu.watts(), gpu.celsius(), gpu.mhz(), gpu.slowed()) == (70.5, 41, 1980, False)
    s = device("vm", tmp_path / "vm")
    assert [(m.name, m.counts) for m in meters(s, 0)[0]] == [("NVML", True)]
    second = Watch(s, gpu=1)
    assert [(m.name, m.counts, m.read()) for m in second.meters] == [("NVML", False, 70.5)]
    state = second.state()
    assert state["celsius"] == 41 and state["mhz"] == 1980
    assert state["throttling"] == {"NVML": {"heat or power limit now": 1}}
    with pytest.raises(OSError, match="nvmlDeviceGetHandleByIndex_v2 answers 2"):
        Nvml(5)
    assert Nvml("0000:3b:00.0").watts() == 70.5
    with pytest.raises(OSError, match="nvmlDeviceGetHandleByPciBusId_v2 answers 6"):
        Nvml("0000:01:00.0")
    assert "answers 2" in {m["sensor"]: m["why"] for m in meters(s, 5)[1]}["NVML"]


def test_without_nvml(monkeypatch, tmp_path):
    monkeypatch.setenv("GWQ_NVML_LIBRARY", str(tmp_path / "none.so"))
    watch = Watch(device("vm", tmp_path), gpu=0)
    assert watch.celsius() is None and watch.mhz() is None
    assert "NVML" in {m["sensor"] for m in watch.missing}
