"""Instructions, cycles and time of the kernels of studies/byte_order_kernels.c and .cu.

Instructions are counted in the compiled text between the marks around a block, which has no loops;
cycles are what llvm-mca's models of CPUs say of it; time is measured here, in the cache.
"""

import ctypes
import json
import re
import shutil
import statistics
import time
from collections import Counter

import numpy as np

from gwq_export.native.library import isas
from native.build import AVX2, AVX512, INCLUDE_FLAGS
from studies.block_cycles import llvm_mca, run
from studies.paths import ROOT

SOURCE = ROOT / "studies" / "byte_order_kernels.c"
CUDA_SOURCE = SOURCE.with_suffix(".cu")
FLAGS = f"-std=gnu11 -O3 -ffp-contract=off -fPIC -fvisibility=hidden {INCLUDE_FLAGS}"
COUNTED = 1024  # weights: 16 rows x 64 columns

# instruction set -> compiler, its flags, how a comment begins, and CPUs of llvm-mca
TARGETS = {
    "avx2": ("gcc", AVX2, "#", ("znver3", "skylake")),
    "avx512": ("gcc", AVX512, "#", ("cascadelake",)),
    "neon": (
        "aarch64-linux-gnu-gcc",
        "-march=armv8.2-a+dotprod",
        "//",
        ("cortex-a55", "cortex-a76"),
    ),
}


def groups(kernel):
    """Row groups of 16 rows in a block of a kernel."""
    return 1 if kernel.endswith("_columns") else 4


def assembly(isa, folder):
    """The kernels as assembler text; None without the compiler."""
    compiler, flags, *_ = TARGETS[isa]
    if not shutil.which(compiler):
        return None
    path = folder / f"byte_order_{isa}.s"
    run([compiler, *FLAGS.split(), *flags.split(), "-S", SOURCE, "-o", path])
    return path


def instructions(isa, path):
    """{kernel: instructions for COUNTED weights}."""
    comment = re.escape(TARGETS[isa][2])
    found, name = Counter(), None
    for line in path.read_text().splitlines():
        if mark := re.match(rf"\s*{comment} LLVM-MCA-(BEGIN|END) ?(\S*)", line):
            name = mark[2] or None
        elif name and re.match(r"\s+[a-z]", line):
            found[name] += 1
    return {name: count / groups(name) for name, count in found.items()}


def cycles(isa, path, cpu):
    """{kernel: cycles for COUNTED weights} by llvm-mca."""
    command = [llvm_mca(), f"-mcpu={cpu}", "-json"]
    if isa == "neon":
        command += ["-march=aarch64", "-mattr=+dotprod"]
        path = _for_llvm(path)
    report = json.loads(run([*command, path]))
    return {
        region["Name"]: region["SummaryView"]["TotalCycles"]
        / region["SummaryView"]["Iterations"]
        / groups(region["Name"])
        for region in report["CodeRegions"]
    }


def _for_llvm(path):
    """The text of gcc for AArch64 as llvm-mca 14 reads it.

    It wants marks in C comments and bytes without the 1 bits that gcc writes above them, and an
    .arch line would take the dot products away again.
    """
    text = re.sub(r"^\s*\.arch .*", "", path.read_text(), flags=re.M)
    text = re.sub(r"// (LLVM-MCA-.*)", r"/* \1*/", text)
    text = re.sub(r"0xf{14}(?=[0-9a-f]{2}\b)", "0x", text)
    clean = path.with_suffix(".llvm.s")
    clean.write_text(text)
    return clean


def cuda_tools():
    """(nvcc, cuobjdump), None for one that is missing."""
    return shutil.which("nvcc"), shutil.which("cuobjdump")


def cuda_instructions(folder, arch="sm_87"):
    """{layout: instructions of a thread for COUNTED weights}; None without the tools."""
    nvcc, cuobjdump = cuda_tools()
    if not nvcc or not cuobjdump:
        return None
    cubin = folder / "byte_order.cubin"
    run([nvcc, "-O3", f"-arch={arch}", "-cubin", "-o", cubin, CUDA_SOURCE])
    found, name = Counter(), None
    for line in run([cuobjdump, "-sass", cubin]).splitlines():
        if function := re.search(r"Function : (\w+)", line):
            name = function[1]
        elif operation := re.match(r"\s+/\*[0-9a-f]{4}\*/\s+(?:@!?\w+ )?([A-Z]\w*)", line):
            found[name] += operation[1] not in ("NOP", "BRA")
    return {
        name.removesuffix("_1"): (found[name.removesuffix("1") + "3"] - count)
        / 2  # units
        * COUNTED
        / (128 if "2_" in name else 256)  # weights of a unit
        for name, count in found.items()
        if name.endswith("_1")
    }


def has_avx2():
    """Whether this machine can run the AVX2 kernels."""
    return "avx2" in isas()


class Kernels:
    """The AVX2 kernels, to be called."""

    def __init__(self, folder):
        path = folder / "byte_order_kernels.so"
        run(["gcc", *FLAGS.split(), *AVX2.split(), "-shared", SOURCE, "-o", path])
        self.lib = ctypes.CDLL(str(path))

    def call(self, kernel, table, data, q, dx, bias, y, times=1):
        """y (16 or 64 rows) += 256 times the product of blocks in a row, `times` times.

        table: uint8 (2, 64), entries + 32. data: uint8, the blocks, each its scales and its lines.
        q: int8 (columns), a multiple of 64. dx: float32 (blocks). bias: int16 (8 blocks).
        """
        arrays = table, bias, data, q, dx, y
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
        self.lib.again(
            ctypes.c_int64(times), getattr(self.lib, kernel), *pointers, ctypes.c_int64(len(dx))
        )

    def seconds(self, kernel, bits, repeat=1000):
        """CPU seconds of COUNTED weights, when 64 blocks of 16 x 64 are read again and again."""
        blocks = 64 // groups(kernel)
        rng = np.random.default_rng(0)
        data = rng.integers(0, 256, 64 * (24 + 128 * bits), np.uint8)
        table = rng.integers(0, 64, (2, 64), np.uint8)
        q = rng.integers(-127, 128, 64 * blocks, np.int8)
        dx, bias = np.ones(blocks, np.float32), np.zeros(8 * blocks, np.int16)
        y = np.zeros(16 * groups(kernel), np.float32)
        self.call(kernel, table, data, q, dx, bias, y)
        start = time.thread_time()
        self.call(kernel, table, data, q, dx, bias, y, repeat)
        return (time.thread_time() - start) / repeat / 64


def times(kernels, names, rounds):
    """{kernel: median nanoseconds for COUNTED weights} of alternating rounds."""
    found = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(1e9 * kernels.seconds(name, int(name.split("_")[0][-1])))
    return {name: statistics.median(values) for name, values in found.items()}
