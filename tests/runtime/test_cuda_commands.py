"""The commands with --device cuda, on the host over native/cuda/shim.h."""

import json

import numpy as np
import pytest

from gwq_export.bench import cases, kernels
from gwq_export.native.cuda import Cuda
from gwq_export.native.library import Pool
from gwq_export.native.ops import Ops
from tests.support.cli import assert_one_line, call
from tests.support.forward import PROMPT

pytestmark = pytest.mark.usefixtures("cuda_device")


def test_the_command(bundled, capsys):
    run = "run", bundled, "-p", PROMPT, "-n", 8, "--temp", 0, "--json"
    results = []
    for device in ("cpu", "cuda"):
        status, out, _ = call(capsys, *run, "--device", device)
        assert status == 0
        results.append(json.loads(out.splitlines()[-1])["text"])
    assert results[0] == results[1]


def test_evaluation(bundled, capsys, tmp_path):
    (tmp_path / "text").write_text(PROMPT * 20)
    ppl = []
    for device in ("cpu", "cuda"):
        options = "--text", tmp_path / "text", "--ctx", 32, "--json", "--device", device
        status, out, _ = call(capsys, "eval", bundled, *options)
        assert status == 0
        ppl.append(json.loads(out.splitlines()[-1])["ppl"])
    assert abs(ppl[0] - ppl[1]) < 1e-2 * ppl[0]


def test_the_list_of_devices(capsys, shim):
    status, out, _ = call(capsys, "info", "--devices", "--json")
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and "cuda:0  host shim, compute capability 9.0" in out
    assert found["cuda"][0]["usable"] and found["why_no_cuda"] is None
    shim.gwq_shim_machine(-1, 90)
    status, out, _ = call(capsys, "info", "--devices")
    assert status == 0 and "no CUDA device: " in out and "install or update" in out
    status, _, err = call(capsys, "info")
    assert_one_line("info", status, err, "FILE.gguf is missing")


def test_the_bench(bundled, capsys, monkeypatch):
    monkeypatch.setattr("gwq_export.bench.roof.WORKING_SET", 1 << 20)
    bench = "bench", bundled, "-p", 4, "-n", 2, "-r", 1, "--json", "--device", "cuda"
    status, out, err = call(capsys, *bench)
    assert status == 0, err
    prompt, decoded = json.loads(out.splitlines()[-1])["rows"]
    assert decoded["gpu_info"] == "host shim" and decoded["backends"] == "gwq-cuda"
    assert decoded["n_gpu_layers"] == 5
    assert prompt["avg_ts"] > 0 and decoded["gbps"] > 0 and decoded["roof_gbps"] > 0
    status, _, err = call(capsys, *bench, "--against", bundled)
    assert_one_line("bench", status, err, "--against runs on the CPU")


def test_kernels_on_the_device():
    """One as a graph, one by one where there are more tokens than a program has."""
    small = [
        cases.Case("gemv", "gwq3", (64, 256), 1, 0.01),
        cases.Case("gemm", "f16", (64, 256), 8),
        cases.Case("attention", "q8_0", (40, 128), 2),
        cases.Case("add", "f32", (8, 256), 8),
    ]
    rows, roof = kernels.kernel_rows(small, repeats=2, working_set=100_000, device="cuda")
    assert [row["op"] for row in rows] == ["gemv", "gemm", "attention", "add"]
    for row in rows:
        assert row["isa"] == "cuda" and row["gpu_info"] == "host shim"
        assert row["ns"] > 0 and row["of_roof"] > 0 and len(row["samples_ns"]) == 2
    assert roof[0]["gbps"] > 0


def test_a_program_of_kernels_is_what_they_compute(monkeypatch):
    """Every call of it writes what the CPU's writes."""
    case = cases.Case("gemv", "gwq4", (64, 256), 2, 0.01)
    results = []
    for pool in (Pool(1), Cuda()):
        ops = Ops(pool)
        made, real = [], pool.floats
        with monkeypatch.context() as m:
            m.setattr(
                pool, "floats", lambda x, made=made, real=real: made.append(real(x)) or made[-1]
            )
            calls, _, _ = cases.build(case, ops, 50_000)
        y = made[1]
        runs, each = kernels._runs(case, ops, calls)
        next(runs)()
        assert each == (len(calls) if pool.on_device else 1) and len(calls) > 1
        results.append(y.array.copy())
    assert np.abs(results[0] - results[1]).max() < 0.02 * np.abs(results[0]).max() > 0


def test_profile_of_the_device(bundled, capsys):
    options = "--ops-profile", "-p", 4, "-n", 2, "-r", 1, "--device", "cuda"
    status, out, err = call(capsys, "bench", bundled, *options)
    assert status == 0 and out.rstrip().endswith("cuda, host shim"), err
    status, out, _ = call(capsys, "bench", bundled, *options, "-ngl", 2, "--json")
    rows = json.loads(out.splitlines()[-1])["rows"]
    attention = {row["isa"]: row["calls"] for row in rows if row["op"] == "attention"}
    assert attention.pop("cuda") == 1 and list(attention.values()) == [3]
    status, _, err = call(capsys, "bench", "--kernels", "--device", "cuda", "-ngl", 2)
    assert_one_line("bench", status, err, "--gpu-layers goes with a file")
