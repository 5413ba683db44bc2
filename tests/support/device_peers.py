"""What a machine with a GPU may have beside it, opened where it is there: cuBLAS, and NVML.

Declarations are those of NVIDIA's documentation of cuBLAS.
"""

import glob
import threading
import time
from pathlib import Path

import numpy as np
from cffi import FFI

from gwq_export.sensors.nvml import Nvml

CUBLAS = ("libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so")
WHEELS = Path(np.__file__).parents[1] / "nvidia/*/lib/libcublas.so.1?"  # PyPI's
TOOLKITS = "/usr/local/cuda*/lib64/libcublas.so.1?"
OP_N, OP_T = 0, 1
CUDA_R_16F = 2
COMPUTE_32F = 68
GEMM_DEFAULT = -1
PERIOD = 0.02  # seconds between two readings of the power

ffi = FFI()
ffi.cdef("""
    int cublasCreate_v2(void **handle);
    int cublasDestroy_v2(void *handle);
    int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                     const void *a, int atype, int lda, const void *b, int btype, int ldb,
                     const void *beta, void *c, int ctype, int ldc, int compute, int algo);
""")


class Missing(Exception):
    """A library is not there, or does not work: the sentence says which and why."""


def opened(names):
    """The first of the libraries that opens."""
    why = "not found"
    for name in names:
        try:
            return ffi.dlopen(name)
        except OSError as e:
            why = str(e)
    raise Missing(f"{names[0]}: {why}")


class Cublas:
    """Products of FP16 matrices in a device's memory, summed in FP32. Raises Missing."""

    def __init__(self, device):
        others = [path for found in (WHEELS, TOOLKITS) for path in sorted(glob.glob(str(found)))]
        self.lib = opened([*CUBLAS, *others])
        self.device = device
        handle = ffi.new("void **")
        if status := self.lib.cublasCreate_v2(handle):
            raise Missing(f"cuBLAS: cublasCreate says {status}")
        self._handle = ffi.gc(handle[0], self.lib.cublasDestroy_v2)
        self._one, self._zero = ffi.new("float *", 1.0), ffi.new("float *", 0.0)

    def multiply(self, w, x, y, rows, cols, n):
        """y (n, rows) = x (n, cols) @ w (rows, cols).T, of FP16 numbers at integer addresses."""
        to = [ffi.cast("void *", p) for p in (w, x, y)]
        status = self.lib.cublasGemmEx(
            self._handle, OP_T, OP_N, rows, n, cols, self._one, to[0], CUDA_R_16F, cols,
            to[1], CUDA_R_16F, cols, self._zero, to[2], CUDA_R_16F, rows, COMPUTE_32F, GEMM_DEFAULT,
        )  # fmt: skip
        if status:
            raise Missing(f"cuBLAS: cublasGemmEx says {status}")


class Energy:
    """Energy that a GPU takes in a block: by its counter, else from its power, read every PERIOD.

    bus: where the GPU is on the PCI bus, as CUDA says it: NVML numbers GPUs otherwise. joules:
    after the block. Raises Missing.
    """

    def __init__(self, bus):
        try:
            self.nvml = Nvml(bus)
        except OSError as e:
            raise Missing(f"NVML: {e}") from None
        if self.nvml.joules() is None and self.nvml.watts() is None:
            raise Missing("NVML: this GPU tells neither its energy nor its power")
        self.joules = 0.0

    def __enter__(self):
        self._readings = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._counted = self.nvml.joules()
        self._start = time.perf_counter()
        if self._counted is None:
            self._thread.start()
        return self

    def _read(self):
        while True:
            self._readings.append(self.nvml.watts())
            if self._end.wait(PERIOD):
                return

    def __exit__(self, *_):
        seconds = time.perf_counter() - self._start
        if self._counted is not None:
            self.joules = self.nvml.joules() - self._counted
            return
        self._end.set()
        self._thread.join()
        self.joules = float(np.mean(self._readings)) * seconds
