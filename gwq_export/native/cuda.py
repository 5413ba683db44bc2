"""A CUDA device in the place of a Pool: opens libgwq_cuda, and owns what lies in its memory.

GWQ_CUDA_LIBRARY names another library than libgwq_cuda.so beside this file; tests run
libgwq_cuda_host.so, the same code on the host.
"""

import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.errors import GwqError, NoMemory
from gwq_export.format.types import ffi
from gwq_export.machine import free_memory, size
from gwq_export.native import library
from gwq_export.native.library import F32, NULL, Pointer, Pool, check, open_library, pointer
from gwq_export.native.matrix import Matrix
from gwq_export.native.ops import Best

BUILD_CUDA = "python -m native.build_cuda"
OLDEST = "7.5"  # compute capability that the kernels are built for
MAX_HEAD: int = ffi.typeof("enum gwq_cuda_limits").relements["GWQ_CUDA_HEAD"]
_WITHOUT = "or use --device cpu"


class DeviceBytes:
    """Memory of a device. Freed with the object.

    count: bytes. Raises NoMemory.
    """

    def __init__(self, lib: Any, count: int) -> None:
        out = ffi.new("void **")
        status = lib.gwq_cuda_alloc(count, out)
        if status == lib.GWQ_E_MEMORY:
            raise NoMemory(f"{size(count)} more do not fit the GPU's memory")
        check(status, "memory of the GPU")
        self.ptr = ffi.gc(out[0], lib.gwq_cuda_free)
        self.nbytes = count


class DeviceF32(F32):
    """float32 numbers in a device's memory, and their pointer.

    Reading `array` copies them from the device, assigning it copies there.
    """

    def __init__(self, lib: Any, shape_or_array: int | tuple[int, ...] | np.ndarray) -> None:
        self._lib = lib
        if isinstance(shape_or_array, np.ndarray):
            self._shape: tuple[int, ...] = shape_or_array.shape
        else:
            self._shape = tuple(np.atleast_1d(shape_or_array).tolist())
        self._memory = DeviceBytes(lib, 4 * self.size)
        self.ptr = ffi.cast("float *", self._memory.ptr)
        if isinstance(shape_or_array, np.ndarray):
            self.array = shape_or_array
        else:
            check(lib.gwq_cuda_zero(self.ptr, 4 * self.size), "memory of the GPU")

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self._shape)

    @property
    def array(self) -> np.ndarray:
        """A copy in the host's memory."""
        out = np.empty(self._shape, np.float32)
        self.fetch(out)
        return out

    @array.setter
    def array(self, values: np.ndarray) -> None:
        self.put(np.ascontiguousarray(values, np.float32))

    def fetch(self, out: np.ndarray) -> None:
        """As F32.fetch."""
        check(self._lib.gwq_cuda_read(pointer(out), self.ptr, out.nbytes), "download")

    def put(self, values: np.ndarray) -> None:
        """As F32.put."""
        check(self._lib.gwq_cuda_write(self.ptr, pointer(values), values.nbytes), "upload")


class Cuda(Pool):
    """A CUDA device, on which operations run in the order of the calls.

    device: its number. threads: of the CPU, for what runs there; None: all CPUs. Raises GwqError:
    no library, no driver, no such device, too old a one.
    """

    on_device = True

    def __init__(self, device: int = 0, threads: int | None = None) -> None:
        self.threads = 1
        self.device = device
        self._host_threads = threads
        self.ptr = NULL
        found = devices()
        if not 0 <= device < len(found):
            raise GwqError(
                f"--device cuda:{device}: {_counted(len(found))}; choose another, {_WITHOUT}"
                if found
                else "--device cuda: this machine has no CUDA device; use --device cpu"
            )
        this = found[device]
        if not this["usable"]:
            raise GwqError(
                f"--device cuda: {this['name']} (compute capability {this['capability']}) is older"
                f" than {OLDEST}, the oldest that the kernels are built for; use --device cpu"
            )
        status = self.lib.gwq_cuda_open(device)
        if status == self.lib.GWQ_E_ARGUMENT:
            raise GwqError("another CUDA device is in use: a process uses one of them")
        if status == self.lib.GWQ_E_ISA:
            raise GwqError(
                f"--device cuda: {this['name']} (compute capability {this['capability']}) is none"
                f" of those that the library was built for ({_said(self.lib)}): build it again"
                f" with `{BUILD_CUDA}`, {_WITHOUT}"
            )
        if status:
            raise GwqError(f"--device cuda: {this['name']}: {_said(self.lib)}; {_WITHOUT}")
        self.name = this["name"]

    @property
    def lib(self) -> Any:
        """The library whose functions compute: libgwq_cuda."""
        return cuda_lib()

    @functools.cached_property
    def host(self) -> Pool:
        """As Pool.host: threads of the CPU, started when they are first asked for."""
        return Pool(self._host_threads)

    def floats(self, shape_or_array: int | tuple[int, ...] | np.ndarray) -> F32:
        """As Pool.floats, in the device's memory."""
        return DeviceF32(self.lib, shape_or_array)

    def output(self, out: np.ndarray) -> F32:
        """As Pool.output."""
        return DeviceF32(self.lib, out.shape)

    def scratch(self, count: int) -> tuple[Any, Pointer]:
        """As Pool.scratch, in the device's memory."""
        memory = DeviceBytes(self.lib, max(count, 1))
        return memory, memory.ptr

    def wait(self) -> None:
        """Wait until everything is computed that was asked for."""
        check(self.lib.gwq_cuda_read(NULL, NULL, 0), "the device")

    def best(self, x: Pointer, n: int, k: int) -> Best:
        """The k largest of n numbers, 1 <= k <= n. Raises GwqError where one is not finite."""
        ids, values = np.empty(k, np.int32), np.empty(k, np.float32)
        status = self.lib.gwq_cuda_best(x, n, k, pointer(ids, "int32_t *"), pointer(values))
        check(status, "the model's logits")
        return Best(ids, values)

    def ids(self, at: Pointer, count: int) -> np.ndarray:
        """A copy of int32 numbers (count,) in the device's memory."""
        out = np.empty(count, np.int32)
        check(self.lib.gwq_cuda_read(pointer(out, "void *"), at, out.nbytes), "download")
        return out

    def gather(
        self, x: Pointer, most: int, rows: np.ndarray, dim: int, work: Pointer, out: Pointer
    ) -> None:
        """out (n, dim) = rows (n,) int32 of x (most, dim). work: n numbers."""
        ids = pointer(rows, "int32_t *")
        work = ffi.cast("int32_t *", work)
        check(self.lib.gwq_cuda_gather(x, most, ids, rows.size, dim, work, out), "experts")

    def combine(
        self,
        x: Pointer,
        most: int,
        rows: np.ndarray,
        weights: Pointer,
        dim: int,
        work: Pointer,
        out: Pointer,
    ) -> None:
        """out (n, dim) = sum over j of weights[i, j] * x[rows[i, j]].

        x (most, dim); rows (n, used) int32, of the host; weights (n, used). work: n * used numbers.
        """
        ids = pointer(rows, "int32_t *")
        work = ffi.cast("int32_t *", work)
        n, used = rows.shape
        check(self.lib.gwq_cuda_combine(x, most, ids, weights, n, used, dim, work, out), "experts")

    def matrix(self, matrix: Matrix) -> Matrix:
        """As Pool.matrix: a copy of the matrix in the device's memory. Raises GwqError."""
        out = ffi.gc(ffi.new("gwq_matrix *"), self.lib.gwq_cuda_forget)
        status = self.lib.gwq_cuda_upload(matrix.struct, out, NULL)
        if status == self.lib.GWQ_E_MEMORY:
            raise NoMemory(
                f"the layers do not fit the GPU's memory (tensor {matrix.name} of"
                f" {size(matrix.nbytes)} is left over): give fewer --gpu-layers, {_WITHOUT}"
            )
        _check_upload(status, matrix)
        return matrix.moved(out)


def upload_bytes(matrix: Matrix) -> int:
    """Bytes of a device's memory that a matrix would take. Raises GwqError."""
    out = ffi.new("uint64_t *")
    _check_upload(cuda_lib().gwq_cuda_upload_bytes(matrix.struct, out), matrix)
    return int(out[0])


def room_of(device: int) -> int:
    """Bytes of a device's memory that are free. Raises GwqError.

    Where it is the system's memory, what that would give: CUDA does not count the page cache, in
    which the file itself lies.
    """
    out, this = ffi.new("uint64_t *"), ffi.new("gwq_cuda_device *")
    check(cuda_lib().gwq_cuda_room(device, out), f"CUDA device {device}")
    check(cuda_lib().gwq_cuda_describe(device, this), f"CUDA device {device}")
    room = int(out[0])
    return max(room, free_memory() or 0) if this.integrated else room


def _check_upload(status: int, matrix: Matrix) -> None:
    """Raise unless a matrix can be brought to a device."""
    if status == cuda_lib().GWQ_E_COLUMN:
        raise GwqError(
            f"tensor {matrix.name}: {matrix.cols} columns and outliers are more than the CUDA"
            " kernels take; use --device cpu"
        )
    check(status, f"tensor {matrix.name}")


def _said(lib: Any) -> str:
    """The driver's own words."""
    return ffi.string(lib.gwq_cuda_error()).decode(errors="replace") or "the driver failed"


def _counted(count: int) -> str:
    return f"this machine has {count} CUDA device{'s' if count > 1 else ''}"


@functools.cache
def cuda_lib() -> Any:
    """libgwq_cuda, opened once. Raises GwqError when it is missing or of other headers."""
    named = os.environ.get("GWQ_CUDA_LIBRARY")
    path = Path(named) if named else Path(__file__).parent / "libgwq_cuda.so"
    if not path.exists():
        raise GwqError(
            f"--device cuda: {path} is missing: build it with `{BUILD_CUDA}` (see docs/cuda.md),"
            f" {_WITHOUT}"
        )
    found = open_library(path, BUILD_CUDA)
    library.device_words = functools.partial(_said, found)
    return found


def devices() -> list[dict[str, Any]]:
    """[{name, capability, processors, bytes, bus, usable}] of this machine's CUDA devices.

    Raises GwqError without library or driver.
    """
    lib = cuda_lib()
    count = lib.gwq_cuda_devices()
    if count < 0:
        raise GwqError(
            f"--device cuda: {_said(lib)}: install or update the NVIDIA driver, {_WITHOUT}"
        )
    found = []
    for i in range(count):
        d = ffi.new("gwq_cuda_device *")
        check(lib.gwq_cuda_describe(i, d), f"CUDA device {i}")
        found.append(
            {
                "name": ffi.string(d.name).decode(errors="replace"),
                "capability": f"{d.major}.{d.minor}",
                "processors": d.processors,
                "bytes": d.bytes,
                "bus": ffi.string(d.bus).decode(errors="replace"),
                "usable": bool(d.usable),
            }
        )
    return found


def pool_of(device: str, threads: int | None = None) -> Pool:
    """Where operations run: a Pool of CPU threads for "cpu", a Cuda for "cuda" or "cuda:N".

    threads: of the CPU; None: all CPUs. Raises GwqError.
    """
    kind, _, number = device.partition(":")
    if device == "cpu":
        return Pool(threads)
    if kind == "cuda" and (not number or number.isdecimal()) and not device.endswith(":"):
        return Cuda(int(number or 0), threads)
    raise GwqError(f"--device {device} is not known: choose cpu, cuda or cuda:N")
