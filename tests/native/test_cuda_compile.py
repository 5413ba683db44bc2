"""The CUDA library compiled for all architectures, where there is nvcc. Nothing runs.

Bounds are those of docs/results/cuda.md: a kernel that needs more registers leaves fewer threads to
wait for memory.
"""

import re
import subprocess
import sys

import pytest

from native.build_cuda import ARCHS, find_nvcc, offered
from studies import cuda_kernels
from studies.cuda_loops import PIECE
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(
    not find_nvcc(), reason="no nvcc: tools/build_cuda --tools brings it"
)
needs_disassembler = pytest.mark.skipif(
    not cuda_kernels.disassembler(),
    reason="no cuobjdump and nvdisasm: tools/build_cuda --tools brings them",
)
TENSOR = [f"gemm_kernel<{bits}>" for bits in (2, 3, 4, 5, 6)]
TENSOR += [f"rows_gemm_kernel<{kind}>" for kind in (11, 12, 13)]
FULL = 128  # registers with which two blocks of 256 threads fit a multiprocessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def kernels(folder):
    return cuda_kernels.compiled(out=folder)


def test_every_architecture_has_every_kernel(kernels):
    archs = offered(find_nvcc())
    assert {"75", "80", "86", "89", "90"} <= set(archs) <= set(ARCHS)
    names = {k.name for k in kernels}
    assert {f"gemv_kernel<{bits}, {n}>" for bits in (2, 3, 4, 5, 6) for n in (1, 2, 4)} <= names
    assert {f"few_kernel<{bits}, 2>" for bits in (2, 3, 4, 5, 6)} | set(TENSOR) <= names
    assert {(k.name, k.arch) for k in kernels} == {(name, a) for name in names for a in archs}


def test_the_page_has_every_kernel(kernels):
    page = (ROOT / "docs" / "results" / "cuda.md").read_text()
    assert {k.name for k in kernels} == set(re.findall(r"^\| `(\w+(?:<.*?>)?)` \| \d", page, re.M))


def test_nothing_spills(kernels):
    assert [k for k in kernels if k.spills] == []
    # arrays in local memory: only where a byte is looked up that no product waits for
    assert {k.name for k in kernels if k.stack} <= {"repack_rows_kernel"}


def test_registers_and_shared_memory(kernels):
    for k in kernels:
        long_heads = k.name.startswith("attend_kernel") and k.name.endswith(", 4>")
        # sums of 32 rows and 64 tokens in a warp's registers, or of 16 queries
        tiles = k.name in TENSOR or k.name.startswith("attend_many_kernel")
        assert k.registers <= (240 if tiles else 168 if long_heads else FULL), k
        # so that of the least that a device has, 64 KB, two blocks get enough, else three or more
        assert k.shared <= (32 if tiles else 20) << 10, k
        if k.name in {f"gemv_kernel<{bits}, 1>" for bits in (2, 4, 6)}:
            assert k.registers <= 80, k


@needs_disassembler
def test_inner_loops_read_16_bytes_at_a_time(kernels):
    # what the issue slots of a multiprocessor must give for a weight, of 1 and of 4 tokens
    most = {2: (2.1, 3.4), 3: (2.8, 4.0), 4: (2.1, 3.4), 5: (2.9, 4.2), 6: (1.9, 3.2)}
    for arch in sorted({k.arch for k in kernels}):
        for loop in cuda_kernels.loops(arch):
            bits, tokens = map(int, re.findall(r"\d+", loop.kernel))
            assert loop.local == 0, loop
            assert loop.wide == bits + 3 * tokens, loop
            if tokens != 2:
                assert loop.instructions <= most[bits][tokens == 4] * PIECE, loop


@needs_disassembler
def test_tensor_cores_get_most_of_the_time(kernels):
    """A product of fragments takes 8 cycles of a quarter of a multiprocessor on the fastest of
    these (docs/results/cuda.md), an integer instruction 2, any other one.
    """
    for arch in ("80", "90"):
        found = {loop.kernel: loop for loop in cuda_kernels.tensor_loops(arch)}
        for name in TENSOR:
            loop = found[name]
            assert loop.products == 128 and loop.local == 0, loop
            assert loop.instructions <= 5.2 * loop.products, loop
            assert 2 * loop.integer <= 0.8 * 8 * loop.products, loop
            assert loop.wide >= 32, loop
        for dim in (64, 128):  # a turn of 16 queries and 32 keys
            loop = found[f"attend_many_kernel<1, {dim}, 0>"]
            assert loop.products == dim // 2 and loop.local == 0, loop
            assert loop.instructions <= 750, loop


@needs_disassembler
def test_weights_are_decoded_without_fused_sums(kernels):
    """The format's arithmetic rounds a product before it is added."""
    code = cuda_kernels.machine_code("rows.cu", "90")
    assert "FMUL" in code and "FADD" in code and "FFMA" not in code


def test_without_a_gpu_the_library_opens_and_says_so(kernels, folder):
    code = """
from gwq_export.native import cuda
try:
    print(cuda.devices())
except cuda.GwqError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"GWQ_CUDA_LIBRARY": str(folder / "libgwq_cuda.so"), "PYTHONPATH": str(ROOT)},
    )
    line = done.stdout.strip()
    assert not done.stderr and (line.startswith("[{'name'") or "install or update" in line), done
