"""gwq-bench --suite edge and --minutes: the document, the page, Ctrl-C, quotas."""

import dataclasses
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gwq_export import GwqError, machine
from gwq_export.bench import contender, schema, suite
from gwq_export.bench.suite import SUITES, run_suite
from gwq_export.bench.sustained import kept
from gwq_export.sensors import power
from gwq_export.sensors import watch as watching
from tests.support.cli import assert_one_line, call
from tests.support.devices import device
from tests.support.paths import ROOT

# a set that takes seconds
QUICK = {"STARTS": 1, "SWEEP": 2, "PROMPTS": (2, 4), "GEN": 3, "DEPTHS": (8, 16), "REPEATS": 2}
QUICK |= {"RUNS": 3, "MINUTES": 0.02, "PROBE": (4, 2)}
STEPS = ["threads", "starts", "speed", "depth", "sustained"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in QUICK.items():
        monkeypatch.setattr(suite, name, value)


def test_a_run(exported, tmp_path, capsys, monkeypatch):
    path = exported(type="gwq4")[0]
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a result.json"
    status, text, err = call(capsys, "bench", path, "--suite", "edge", "--out", out, "--json")
    assert status == 0, err
    found = json.loads(out.read_text())
    assert found == json.loads(text.splitlines()[-1])
    assert schema.mistake(found) is None
    assert found["complete"] and found["suite"] == "edge"
    cpus = machine.default_threads()
    states = {s["step"]: s["state"] for s in found["steps"]}
    assert list(states) == STEPS
    assert set(states.values()) <= ({"done"} if cpus > 1 else {"done", "skipped"})
    tests = [(r["step"], r["n_prompt"], r["n_gen"], r["n_depth"]) for r in found["rows"]]
    assert [t for t in tests if t[0] != "threads"] == [
        ("speed", 2, 0, 0),
        ("speed", 4, 0, 0),
        ("speed", 0, 3, 0),
        ("depth", 0, 2, 8),
        ("depth", 0, 2, 16),
    ]
    assert all(len(r["samples_ts"]) == 2 for r in found["rows"])
    sweep = {r["n_threads"]: r["median_ts"] for r in found["rows"] if r["step"] == "threads"}
    assert found["best_threads"] == (max(sweep, key=sweep.get) if cpus > 1 else cpus)
    assert {r["n_threads"] for r in found["rows"] if r["step"] != "threads"} == {
        found["best_threads"]
    }
    assert [s["cold"] for s in found["starts"]] == [True, False]
    assert found["starts"][1]["ready_ns"] < found["starts"][1]["start_ns"]
    sustained = found["sustained"]
    assert sustained["points"] and sustained["seconds"] >= 1.2
    assert found["model"]["file"] == "model.gguf" and len(found["model"]["sha256_head"]) == 64
    assert [line for line in err.splitlines() if line.startswith("step ")] == [
        line for line in err.splitlines() if " left)" in line
    ]
    assert "step 1 of 5: thread sweep (about" in err and "step 5 of 5" in err
    assert "a result.html shows it" in text
    # nobody can be told from it
    page = out.with_suffix(".html").read_text()
    for told in (out.read_text(), page):
        for secret in (str(tmp_path), str(path.parent), socket.gethostname(), str(Path.home())):
            assert secret not in told
        if len(user := getpass.getuser()) > 4:
            assert user not in told
    assert not list(tmp_path.glob("*.part"))


def test_a_device_with_sensors(exported, tmp_path, monkeypatch):
    """Temperature, clock rate and power over time, from a Jetson's files."""
    system = device("orin_nano", tmp_path)
    monkeypatch.setattr(watching, "IDLE", 0.2)
    monkeypatch.setattr(watching, "System", lambda: system)
    meters = [dataclasses.replace(m, least=0.001, interval=0.005) for m in power.ina3221(system)]
    monkeypatch.setitem(power.SENSORS, "INA3221", lambda system: meters)
    saved = []
    found = run(exported(type="gwq4")[0], "sustained", minutes=0.03, save=saved.append)
    assert schema.mistake(found) is None and saved[-1] is found
    assert found["device"]["board"].startswith("NVIDIA Jetson Orin Nano")
    (energy,) = found["sustained"]["energy"]
    assert energy["watts"] == pytest.approx(6) and energy["joules_per_token"] == pytest.approx(0)
    assert energy["tokens_per_joule"] is None  # no more than idle: nothing to divide by
    point = found["sustained"]["points"][-1]
    assert (point["celsius"], point["mhz"], point["watts"]) == (54.25, 1728, pytest.approx(6))
    assert found["sustained"]["throttled"] is False
    assert found["rows"] == [] and found["starts"] == []


def test_files_are_opened_before_the_work(exported, tmp_path):
    with pytest.raises(GwqError, match=r"none\.gguf does not exist"):
        run(exported(type="gwq4")[0], against=[tmp_path / "none.gguf"], save=pytest.fail)


def quiet(*step):
    pass


def run(path, name="edge", against=(), threads=(1,), minutes=None, save=quiet, progress=quiet):
    return run_suite(name, path, against, "cpu", list(threads), minutes, progress, quiet, save)


def test_what_does_not_fit_the_context_is_skipped(exported, tiny, monkeypatch):
    monkeypatch.setattr(suite, "DEPTHS", (512,))
    monkeypatch.setattr(suite, "PROMPTS", (4, 512))
    found = run(exported(tiny("llama"), type="f16")[0])  # a context of 256
    states = {s["step"]: (s["state"], s["why"]) for s in found["steps"]}
    assert states["depth"] == ("skipped", "the model's context is 256 tokens")
    assert states["threads"] == ("skipped", "there is one thread count to try")
    assert found["complete"]
    assert [r["n_prompt"] for r in found["rows"] if r["step"] == "speed"] == [4, 0]


def test_a_step_that_fails(exported, monkeypatch):
    """The others are taken, and the reason names no folder."""
    path = exported(type="gwq4")[0]
    answer = contender.Contender.run

    def broken(self, prompt, gen, depth=0):
        if depth:
            raise GwqError(f"{path}: gwq ended (out of memory)")
        return answer(self, prompt, gen, depth)

    monkeypatch.setattr(contender.Contender, "run", broken)
    found = run(path)
    states = {s["step"]: (s["state"], s["why"]) for s in found["steps"]}
    assert states["depth"] == ("failed", "model.gguf: gwq ended (out of memory)")
    assert states["sustained"][0] == "done" and not found["complete"]
    assert schema.mistake(found) is None

    monkeypatch.setattr(suite, "SUITES", {"edge": ["depth"]})
    with pytest.raises(GwqError, match="out of memory"):
        run(path)


def test_ctrl_c_keeps_what_was_measured(exported, tmp_path):
    """In a process of its own, as a terminal sends it: to the engines, too."""
    path = exported(type="gwq4")[0]
    out = tmp_path / "r.json"
    code = (
        "from gwq_export.bench import suite, roof; from gwq_export import cli; import signal, sys\n"
        # a background job hands on that Ctrl-C is to be ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"for name, value in {QUICK!r}.items(): setattr(suite, name, value)\n"
        "roof.WORKING_SET, roof.ROUNDS = 4 << 20, 1\n"
        f"sys.exit(cli.main('bench', [{str(path)!r}, '--suite', 'edge', '--minutes', '5',"
        f" '--out', {str(out)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        end = time.monotonic() + 400
        while time.monotonic() < end and process.poll() is None:
            if out.exists() and json.loads(out.read_text())["steps"][4]["state"] == "running":
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"what was measured is in {out}" in err and "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    found = json.loads(out.read_text())
    assert schema.mistake(found) is None and not found["complete"]
    assert [s["state"] for s in found["steps"]][-1] == "interrupted"
    assert found["rows"] and found["starts"]
    assert out.with_suffix(".html").read_text().startswith("<!DOCTYPE html>")


def test_an_interrupted_step_keeps_its_points(exported):
    calls = iter(range(100))

    def interrupt(phase, done, total):
        if phase.endswith("decode") and next(calls) == 2:
            raise KeyboardInterrupt

    saved = []
    with pytest.raises(KeyboardInterrupt):
        run(
            exported(type="gwq4")[0],
            *("sustained", (), [1], 5),
            lambda found: saved.append(json.dumps(found)),
            interrupt,
        )
    found = json.loads(saved[-1])
    assert schema.mistake(found) is None
    assert [s["state"] for s in found["steps"]] == ["interrupted"]
    assert len(found["sustained"]["points"]) == 2 and not found["complete"]
    assert json.loads(saved[0])["steps"][0]["state"] == "running"


@pytest.mark.parametrize("quota, threads", [(0.5, 1), (1.5, 2)])
def test_under_a_quota(exported, monkeypatch, quota, threads):
    """A container with 1.5 CPUs of 16 starts two threads."""
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    found = run(exported(type="gwq4")[0], threads=[None])
    counts = {r["n_threads"] for r in found["rows"]}
    assert max(counts) <= threads and found["device"]["default_threads"] == threads


def test_kept():
    points = [{"s": float(s), "tps": 100.0 if s < 300 else 60.0} for s in range(1, 601)]
    assert kept(points) == {"window_s": 60, "first_tps": 100, "last_tps": 60, "kept": 0.6}
    assert kept(points[:2])["window_s"] == 1 and kept(points[:1])["kept"] is None
    assert kept([])["kept"] is None


def test_minutes_alone(exported, tmp_path, capsys):
    path = exported(type="gwq4")[0]
    out = tmp_path / "s.json"
    status, text, err = call(capsys, "bench", path, "--minutes", 0.02, "--out", out)
    assert status == 0, err
    found = json.loads(out.read_text())
    assert found["suite"] == "sustained" and [s["step"] for s in found["steps"]] == ["sustained"]
    assert "Without a pause:" in text and SUITES["sustained"] == ["sustained"]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--suite", "none"], "invalid choice"),
        (["--suite", "edge", "-p", "4"], "fixed set"),
        (["--suite", "edge", "--ops-profile"], "leave out"),
        (["--minutes", "0"], "more than 0"),
        (["--minutes", "nan"], "more than 0"),
        (["--minutes", "1", "--against", "m.gguf"], "runs one file"),
        (["--out", "a.json"], "--out is where"),
        (["--suite", "edge", "--out", "a.html"], "ends in .json"),
        (["--suite", "edge", "--out", "none/a.json"], "does not exist"),
        (["--suite", "edge"], "m.gguf does not exist"),
        (["--suite", "edge", "-o", "csv"], "leave out -o"),
        (["--suite", "edge", "--against", "n.gguf", "--device", "cuda"], "runs on the CPU"),
        (["--compare", "a.json"], "measures nothing"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, "bench", "m.gguf", *args)
    assert_one_line("bench", status, err, words)
    assert list(tmp_path.iterdir()) == []
