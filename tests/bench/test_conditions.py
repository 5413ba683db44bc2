"""gwq-bench: depths, starts, clusters, and the conditions under which rows were measured."""

import dataclasses
import json
import mmap
import os
import statistics
import time

import pytest

from gwq_export import machine
from gwq_export.bench import contender, models, runs, starts
from gwq_export.bench.models import Plan
from gwq_export.format.reader import Reader
from gwq_export.runtime import page_cache
from gwq_export.sensors import power, processors
from gwq_export.sensors import watch as watching
from tests.support.cli import call
from tests.support.devices import change, device


def test_prompts_and_depths(exported, capsys):
    path = exported(type="gwq4")[0]
    lengths = ["-p", "4,6", "-n", 2, "--depth", "0,16", "-r", 2, "-t", 1]
    status, out, err = call(capsys, "bench", path, *lengths, "--json")
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows]
    assert tests == [(p, g, d) for d in (0, 16) for p, g in ((4, 0), (6, 0), (0, 2))]
    assert "pp6 @ d16" in out and "tg2 @ d16" in out and "| pp6 |" in out


def test_depth_is_not_timed(exported):
    """The tokens before the test are computed once, and those after them from there."""
    reader = Reader(exported(type="f16")[0])
    (c,) = contender.start(reader, ["gwq"], 1, 512)
    try:
        c.run(1, 1, 400)
        deep = min(c.run(1, 1, 400)[0] for _ in range(5))
        long = min(c.run(401, 1)[0] for _ in range(3))
        assert deep < long / 4
    finally:
        c.close()


def test_starts(exported):
    """Cold or warm, a start takes longer than what the process itself measures of it."""
    path = exported(type="gwq4")[0]
    (row,), _ = models.model_rows(path, Plan([2], 0, threads=[1], repeats=1))
    assert row["load_ns"] < row["ready_ns"] < row["start_ns"] < 60e9
    assert row["first_token_ns"] < row["start_ns"]
    if row["why_not_cold"] is None:
        assert 10e6 < row["start_cold_ns"] < 60e9
    else:
        assert "page cache" in row["why_not_cold"] and row["start_cold_ns"] is None


def test_a_cold_file_is_on_the_disk(exported, tmp_path):
    path = exported(type="f32")[0]
    reader = Reader(path)
    why = starts.put_out_of_cache(reader)
    if why is None:
        assert page_cache.resident(path) <= starts.LEFT
        page_cache.read_through(path)
        assert page_cache.resident(path) == 1
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as file:
        assert sum(file[:: mmap.PAGESIZE]) >= 0  # has every page mapped
        why = starts.put_out_of_cache(reader)
        assert why and "another program has it open" in why


def test_conditions_and_energy(exported, tmp_path, monkeypatch, capsys):
    """On a Jetson that draws 6 W idle and 9 W when it is asked to run."""
    system = device("orin_nano", tmp_path)
    run = contender.Contender.run

    def hot(self, *args):
        change(system, "/sys/class/hwmon/hwmon1/curr1_input", 1800)
        change(system, "/sys/class/thermal/thermal_zone8/temp", 88000)
        change(system, "/sys/class/hwmon/hwmon2/oc3_event_cnt", time.perf_counter_ns())
        return run(self, *args)

    monkeypatch.setattr(contender.Contender, "run", hot)
    monkeypatch.setattr(watching, "IDLE", 0.2)
    monkeypatch.setattr(watching, "System", lambda: system)
    meters = power.ina3221(system)
    quick = [dataclasses.replace(m, least=0.001, interval=0.005) for m in meters]
    monkeypatch.setitem(power.SENSORS, "INA3221", lambda system: quick)
    path = exported(type="gwq4")[0]
    status, out, err = call(capsys, "bench", path, "-p", 64, "-n", 32, "-r", 3, "-t", 1, "--json")
    assert status == 0, err
    answer = json.loads(out.splitlines()[-1])
    prompt, decode = answer["rows"]
    assert decode["meter"] == "INA3221" and decode["power_mode"] == "nvpmodel 25W"
    assert decode["watts"] == pytest.approx(9) and decode["idle_watts"] == pytest.approx(6)
    seconds = statistics.median(decode["samples_ns"]) / 32e9
    assert decode["joules_per_token"] == pytest.approx(3 * seconds, rel=1e-3)
    assert decode["tokens_per_joule"] == pytest.approx(1 / (3 * seconds), rel=1e-3)
    assert decode["governor"] == "schedutil" and decode["mhz_after"] == 1728
    assert decode["celsius_after"] == 88
    assert decode["throttled"] and decode["throttled_why"] == [
        "soctherm_oc: power limit oc3 (count)"
    ]
    tokens, first = 64 / prompt["median_ts"], prompt["median_ts"]
    assert decode["localscore"] == pytest.approx(
        10 * (first * decode["median_ts"] * 1000 / (1000 * tokens)) ** (1 / 3), rel=1e-2
    )
    assert prompt["localscore"] is None
    assert "RAPL" in {m["sensor"] for m in answer["missing"]}
    for words in ("| tokens/J |", "governor schedutil; power mode nvpmodel 25W; 1728 to 1728 MHz"):
        assert words in out
    assert "throttled (soctherm_oc" in out and "idle 6.00 W, which is subtracted" in out


def test_localscore():
    """100 tokens/s of a prompt of 100 tokens, 8 of decoding, so 1000 ms to the first token."""
    assert runs.localscore(100, 8, 1.0) == pytest.approx(10 * (100 * 8 * 1) ** (1 / 3))
    assert runs.localscore(1000, 1000, 0.001) == pytest.approx(10000)


def test_kept_on_cpus():
    mask = os.sched_getaffinity(0)
    one = min(mask)
    with machine.kept_on([one]):
        assert os.sched_getaffinity(0) == {one}
        with machine.kept_on(None):
            assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == mask


def test_a_sweep_over_clusters(exported, tmp_path, monkeypatch, capsys):
    """A phone's thread counts, each kept on the CPUs that this machine has of the cluster."""
    mask = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(processors, "clusters", lambda system, usable: CLUSTERS)
    CLUSTERS = [
        {"cpus": [mask[-1]], "capacity": 1024, "max_mhz": 2900},
        {"cpus": [mask[0]], "capacity": 300, "max_mhz": 1800},
    ]
    seen = []
    start = contender.start

    def noted(*args):
        seen.append((args[2], os.sched_getaffinity(0)))
        return start(*args)

    monkeypatch.setattr(contender, "start", noted)
    monkeypatch.setattr(machine, "_quota", lambda: None)
    path = exported(type="gwq4")[0]
    status, out, err = call(
        capsys, "bench", path, "-p", 0, "-n", 2, "-r", 1, "-t", "sweep", "--json"
    )
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    if len(mask) > 1:
        assert [(r["n_threads"], r["cpus"]) for r in rows] == [
            (1, [mask[-1]]),
            (2, [mask[-1], mask[0]]),
        ]
        assert seen == [(1, {mask[-1]}), (2, {mask[-1], mask[0]})]
    assert sorted(os.sched_getaffinity(0)) == mask
