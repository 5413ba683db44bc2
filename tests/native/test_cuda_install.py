"""GWQ_CUDA=1 pip install: which library goes into the wheel, with a stand-in for nvcc."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.paths import NATIVE

# what pip runs, but for libgwq, which others build
HOOK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from setuptools.dist import Distribution
from native import backend
package = Path("gwq_export/native").absolute()
backend._module = lambda name: SimpleNamespace(PACKAGE=package, build=lambda folder: None)
backend.build_py.run = lambda self: None
command = backend.BuildPy(Distribution())
command.build_lib, command.editable_mode = "wheel", False
command.run()
"""
# compiles every source to an object of nothing
NVCC = """#!/bin/sh
case "$1" in
--list-gpu-code) echo sm_90; exit ;;
--dryrun) echo '#$ TOP={toolkit}' >&2; exit ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
    -o) out=$2 ;;
    -MF) echo "nothing:" > "$2" ;;
    esac
    shift
done
echo "int of_$(basename "$out" .cu.o);" | cc -x c -fPIC -c - -o "$out"
"""


@pytest.fixture
def copy(tmp_path):
    """A folder with the sources, and a toolkit whose nvcc is the stand-in."""
    if not shutil.which("cc") or not shutil.which("c++"):
        pytest.skip("no C and C++ compiler (Debian: gcc, g++)")
    shutil.copytree(NATIVE, tmp_path / "native", ignore=shutil.ignore_patterns("build"))
    toolkit = tmp_path / "toolkit"
    for name in ("bin", "lib64"):
        (toolkit / name).mkdir(parents=True)
    (toolkit / "bin" / "nvcc").write_text(NVCC.replace("{toolkit}", str(toolkit)))
    (toolkit / "bin" / "nvcc").chmod(0o755)
    (toolkit / "lib64" / "libcudart_static.a").write_bytes(b"!<arch>\n")
    return tmp_path


def install(copy, first="", **environment):
    return subprocess.run(
        [sys.executable, "-c", first + HOOK],
        cwd=copy,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(copy)} | environment,
    )


def test_the_library_is_built_when_asked_for(copy):
    library = copy / "wheel" / "gwq_export" / "native" / "libgwq_cuda.so"
    nvcc = str(copy / "toolkit" / "bin" / "nvcc")
    done = install(copy, NVCC=nvcc, GWQ_CUDA="0")
    assert done.returncode == 0 and not library.exists(), done.stderr
    done = install(copy, NVCC=nvcc, GWQ_CUDA="1")
    assert done.returncode == 0 and library.read_bytes()[:4] == b"\x7fELF", done.stderr


def test_without_nvcc_it_says_so(copy):
    none = "from native import build_cuda\nbuild_cuda.find_nvcc = lambda: None\n"
    done = install(copy, none, GWQ_CUDA="1")
    assert done.returncode and "no nvcc found: run tools/build_cuda, or set NVCC" in done.stderr
    assert "Traceback" not in done.stderr
