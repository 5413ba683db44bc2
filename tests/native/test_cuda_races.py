"""The CUDA kernels under ThreadSanitizer, on the host over native/cuda/shim.h."""

import shutil
import subprocess

import pytest

from native.build import INCLUDE_FLAGS
from native.build_cuda import HOST_FLAGS, HOST_WARNINGS, SHIM, TSAN
from tests.support.paths import NATIVE

# Sources of kernels; the others are what the host does
KERNELS = (
    "attention",
    "attention_many",
    "best",
    "choice",
    "codes",
    "gemm",
    "gemv",
    "halves",
    "ops",
    "repack",
)
KERNELS += ("rows", "rows_gemm", "rows_gemv")
RACE = NATIVE.parent / "tests" / "native" / "cuda_race.cpp"


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A program of kernels under ThreadSanitizer; the shim itself is not instrumented."""
    cxx = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if not cxx:
        pytest.skip("no C++ compiler (Debian: g++)")
    folder = tmp_path_factory.mktemp("race")
    plain = f"{HOST_FLAGS} {HOST_WARNINGS} {INCLUDE_FLAGS}".split()
    kernels = [NATIVE / "cuda" / f"{name}.cu" for name in KERNELS]
    shim = [folder / f"{name}.o" for name in SHIM]
    commands = [
        [cxx, *plain, "-DGWQ_SHIM_TSAN", "-c", NATIVE / "cuda" / name, "-o", out]
        for name, out in zip(SHIM, shim, strict=True)
    ]
    program = ["-x", "none", *shim, "-o", folder / "race"]
    for command in (*commands, [cxx, *plain, *TSAN.split(), RACE, *kernels, *program]):
        done = subprocess.run(command, capture_output=True, text=True)
        if "cannot find" in done.stderr and "tsan" in done.stderr:
            pytest.skip("this compiler has no ThreadSanitizer")
        assert not done.returncode, done.stderr
    return folder / "race"


def under_tsan(program, *words):
    # addresses are laid out as old versions of ThreadSanitizer expect them
    prefix = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*prefix, program, *words], capture_output=True, text=True)


def test_no_two_threads_race(race):
    done = under_tsan(race)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-3000:]


@pytest.mark.parametrize("name", ["race", "late_race"])
def test_a_race_is_found(race, name):
    done = under_tsan(race, name)
    assert done.returncode and "data race" in done.stderr and f"{name}_kernel" in done.stderr
