"""What a machine with a GPU may have beside it, opened where it is there: cuBLAS, and NVML.

Declarations are those of NVIDIA's documentation of both libraries.
"""

import glob
import threading
import time
from pathlib import Path

import numpy as np
from cffi import FFI

CUBLAS = ("libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so")
NVML = ("libnvidia-ml.so.1",)
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
    int nvmlInit_v2(void);
    int nvmlShutdown(void);
    int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device);
    int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts);
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


class Power:
    """Energy that a GPU takes in a block, from its power, read every PERIOD. Raises Missing.

    joules: after the block; from the mean of the readings.
    """

    def __init__(self, index):
        self.lib = opened(NVML)
        if status := self.lib.nvmlInit_v2():
            raise Missing(f"NVML: nvmlInit says {status}")
        device = ffi.new("void **")
        if status := self.lib.nvmlDeviceGetHandleByIndex_v2(index, device):
            raise Missing(f"NVML: nvmlDeviceGetHandleByIndex says {status}")
        self._device = device[0]
        self.joules = 0.0
        self.watts()

    def watts(self):
        """The power at this moment."""
        out = ffi.new("unsigned int *")
        if status := self.lib.nvmlDeviceGetPowerUsage(self._device, out):
            raise Missing(f"NVML: nvmlDeviceGetPowerUsage says {status}")
        return out[0] / 1000

    def __enter__(self):
        self._readings = [self.watts()]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def _read(self):
        while not self._end.wait(PERIOD):
            self._readings.append(self.watts())

    def __exit__(self, *_):
        seconds = time.perf_counter() - self._start
        self._end.set()
        self._thread.join()
        self.joules = float(np.mean(self._readings)) * seconds
