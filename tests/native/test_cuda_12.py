"""The CUDA sources compiled as CUDA 12, where clang and its headers are.

PyPI's packages of CUDA 12 have headers, device library and ptxas, but no nvcc; clang compiles CUDA
by these. Nothing runs, and nothing is linked.
"""

import os
import re
import shutil
import subprocess

import pytest

from native.build import INCLUDE_FLAGS
from native.build_cuda import SOURCES
from tests.support.paths import NATIVE

WHEELS = NATIVE.parent / ".cuda12" / "nvidia"
CLANG = shutil.which("clang++")
# clang 14 is older than CUDA 12: it declares textures, which that has dropped, and includes a
# header of another package
FLAGS = "-x cuda -std=c++17 -ffp-contract=off -Wall -Wno-unknown-cuda-version -Wno-pass-failed"
OLD = "-D__CLANG_CUDA_TEXTURE_INTRINSICS_H__"
MISSING = "curand_mtgp32_kernel.h"

pytestmark = [
    pytest.mark.skipif(
        not (WHEELS / "cuda_nvcc" / "bin" / "ptxas").exists(),
        reason="no CUDA 12: tools/build_cuda --tools12 brings what PyPI has of it",
    ),
    pytest.mark.skipif(not CLANG, reason="no clang++ (Debian: clang)"),
]


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory):
    """Folder with the wheels' parts in the places where clang looks for them."""
    folder = tmp_path_factory.mktemp("cuda12")
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir()
    shutil.copy(WHEELS / "cuda_nvcc" / "bin" / "ptxas", folder / "bin")
    (folder / "bin" / "ptxas").chmod(0o755)
    os.symlink(WHEELS / "cuda_nvcc" / "nvvm", folder / "nvvm")
    for wheel in ("cuda_nvcc", "cuda_runtime"):
        for path in (WHEELS / wheel / "include").iterdir():
            if path.suffix != ".py" and path.name != "__pycache__":
                os.symlink(path, folder / "include" / path.name)
    (folder / "include" / MISSING).touch()
    return folder


def test_the_headers_are_those_of_cuda_12(toolkit):
    text = (toolkit / "include" / "cuda.h").read_text()
    assert re.search(r"#define CUDA_VERSION 12\d+", text)


@pytest.mark.parametrize("name", SOURCES)
def test_compiles(toolkit, tmp_path, name):
    """Kernels to machine code, and what the host does."""
    flags = f"{FLAGS} {OLD} {INCLUDE_FLAGS} --cuda-path={toolkit} --cuda-gpu-arch=sm_80"
    common = [CLANG, *flags.split(), "-I", toolkit / "include", '-DGWQ_ABI_HASH="x"']
    out = tmp_path / "kernels.cubin"
    for options in (
        ["-O1", "--cuda-device-only", "-c", "-o", out],
        ["--cuda-host-only", "-fsyntax-only"],
    ):
        command = [*common, *options, NATIVE / "cuda" / name]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode and not done.stderr, done.stderr[:3000]
    assert out.read_bytes()[:4] == b"\x7fELF"


def test_what_cuda_12_lacks_is_found(toolkit, tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("#include <cuda_runtime.h>\nint f() { return cudaNoSuchFunction(); }\n")
    flags = f"{FLAGS} {OLD} --cuda-path={toolkit} --cuda-gpu-arch=sm_80 --cuda-host-only"
    command = [CLANG, *flags.split(), "-fsyntax-only", "-I", toolkit / "include", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "cudaNoSuchFunction" in done.stderr
