"""tools/gpu-check as far as the host can run it: beside stand-ins for cuBLAS and NVML."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from gwq_export.sensors.nvml import LIBRARY
from native import build_cuda
from tests.support import device_peers
from tests.support.device_check import Budget, Wrong, check_matrix
from tests.support.device_peers import Cublas, Energy, Missing
from tests.support.device_times import check_cublas
from tests.support.kernel_cases import none
from tests.support.paths import NATIVE

ROOT = NATIVE.parent
STUBS = ROOT / "tests" / "native" / "cuda_peers.c"


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """peers(*flags) -> folder with libraries of the names that are tried first."""
    made = {}

    def make(*flags):
        if flags not in made:
            cc = shutil.which("cc") or pytest.skip("no C compiler")
            made[flags] = tmp_path_factory.mktemp("peers")
            for name in (device_peers.CUBLAS[0], LIBRARY):
                out = made[flags] / name
                command = [cc, "-O2", "-shared", "-fPIC", *flags, STUBS, "-o", out, "-lm"]
                subprocess.run(command, check=True)
        return made[flags]

    return make


def run_check(cuda_library, folder, *options):
    command = [sys.executable, "-m", "tests.support.device_check", "--small", *options]
    env = {"GWQ_CUDA_LIBRARY": str(cuda_library), "PYTHONPATH": str(ROOT)}
    env["LD_LIBRARY_PATH"] = str(folder)
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


def test_all_of_it(cuda_library, peers):
    done = run_check(cuda_library, peers())
    assert not done.returncode and not done.stderr, done.stdout + done.stderr
    out = done.stdout
    assert "skipped" not in out and "left out" not in out
    counted = re.search(r"(\d+) of (\d+) matrices: decoded to the bit", out)
    assert counted[1] == counted[2] != "0"
    assert out.count("runs repeat to the bit") == 5 and "largest numbers: those of the CPU" in out
    assert re.search(r"Copy rate \d+ GB/s", out)
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1  # one table
    for name in (
        "gwq4, 0.25% outliers, 64 x 256 | 4",
        "cuBLAS f16, 64 x 256 | 1 ",
        "7B gwq4, prompt",
    ):
        assert any(line.startswith(f"| {name}") for line in table), name
    for name in ("7B", "1.1B"):
        (decoding,) = (line for line in table if line.startswith(f"| {name} gwq4, decoding"))
        joules = float(re.search(r"([\d.]+) J per token", decoding)[1])
        each = float(re.search(r"\| ([\d.]+) ms", decoding)[1]) / 1000
        assert joules == pytest.approx(250 * each, rel=0.2)


def test_without_peers_it_says_so(cuda_library, peers):
    done = run_check(cuda_library, peers("-DSTATUS=1"))
    assert not done.returncode, done.stdout + done.stderr
    assert "left out: cuBLAS: cuBLAS: cublasCreate says 1" in done.stdout
    assert "energy: NVML: nvmlInit_v2 answers 1" in done.stdout and "J per token" not in done.stdout


def test_without_time_it_says_what_is_skipped(cuda_library, peers):
    done = run_check(cuda_library, peers(), "--seconds", "2")
    assert not done.returncode
    assert "skipped, as " in done.stdout and "left: a model of 1.1B" in done.stdout
    done = run_check(cuda_library, peers(), "--start", str(time.time() - 1000))
    assert done.stdout.count("skipped, as 0 s are left: ") == 16


def test_without_a_library(peers):
    done = run_check("/nowhere", peers())
    assert done.returncode == 1 and "/nowhere is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_kernel_is_found(cuda_device, monkeypatch):
    from gwq_export.native.cuda import Cuda
    from tests.support import device_check

    device = Cuda()
    assert check_matrix(device, "gwq4", 32, 128, none) <= 1
    monkeypatch.setattr(device_check, "expect", lambda case, x: (x[:, :32] + 99, abs(x[:, :32])))
    with pytest.raises(Wrong, match=r"gwq4 32x128 none: 1 tokens are .* bounds off"):
        check_matrix(device, "gwq4", 32, 128, none)


def test_steps_within_the_time():
    budget, ran = Budget(100, time.time()), []
    budget.run("first", 99, lambda: ran.append(1))
    budget.run("second", 101, lambda: ran.append(2))
    assert ran == [1] and 99 < budget.left <= 100


def test_peers(cuda_device, peers, monkeypatch):
    """cuBLAS is called as it wants to be; what is wrong, or not there, is said."""
    from gwq_export.native.cuda import Cuda

    device = Cuda()
    for flags, words in (((), None), (("-DSHIFT=1",), "not what they have to be")):
        names = [str(peers(*flags) / device_peers.CUBLAS[0])]
        monkeypatch.setattr(device_peers, "CUBLAS", names)
        if words:
            with pytest.raises(Missing, match=words):
                check_cublas(device, Cublas(device))
        else:
            check_cublas(device, Cublas(device))
        monkeypatch.undo()
    bus = "0000:3b:00.0"
    for flags in ((), ("-DNO_COUNTER=1",)):
        monkeypatch.setenv("GWQ_NVML_LIBRARY", str(peers(*flags) / LIBRARY))
        with Energy(bus) as energy:
            time.sleep(0.1)
        assert 24 < energy.joules < 250
        with pytest.raises(Missing, match="nvmlDeviceGetHandleByPciBusId_v2 answers 6"):
            Energy("0000:00:00.0")
    monkeypatch.setenv("GWQ_NVML_LIBRARY", "libnothing.so.1")
    with pytest.raises(Missing, match=r"libnothing\.so\.1: "):
        Energy(bus)


@pytest.mark.parametrize(
    "said, arch",
    [("9.0\n", ["90"]), ("8.7\n8.6\n", ["87"]), ("10.3\n", ["100"]), ("6.1\n", []), ("", [])],
)
def test_the_architecture_of_this_machine(tmp_path, monkeypatch, said, arch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_cuda.of_this_machine() == []
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n".replace("\n'", "\\n'"))
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert build_cuda.of_this_machine() == arch
