"""NVIDIA's management library: energy, temperature and clock rate of a GPU.

GWQ_NVML_LIBRARY names another library than the driver's.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
# of NVML's enums
GPU_TEMPERATURE = 0
SM_CLOCK = 1
# bits of the reasons for a low clock rate that are heat or power: software power cap, hardware
# slowdown, software and hardware thermal slowdown, power brake
SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Nvml:
    """One GPU. which: its number as NVML counts, or its place on the PCI bus as CUDA says it.

    CUDA numbers GPUs in another order, and CUDA_VISIBLE_DEVICES hides some from it alone. Raises
    OSError where library, driver or GPU is missing.
    """

    def __init__(self, which: int | str = 0) -> None:
        self._lib = ctypes.CDLL(os.environ.get("GWQ_NVML_LIBRARY", LIBRARY))
        self._device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        device = ctypes.byref(self._device)
        if isinstance(which, str):
            self._call("nvmlDeviceGetHandleByPciBusId_v2", which.encode(), device)
        else:
            self._call("nvmlDeviceGetHandleByIndex_v2", which, device)

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            status = getattr(self._lib, name)(*arguments)
        except AttributeError:
            raise OSError(f"{LIBRARY} has no {name}") from None
        if status:
            raise OSError(f"{name} answers {status}")

    def _get(self, name: str, kind: Any, *arguments: Any) -> int | None:
        out = kind()
        try:
            self._call(name, self._device, *arguments, ctypes.byref(out))
        except OSError:
            return None
        return int(out.value)

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None before Volta."""
        milli = self._get("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        return None if milli is None else milli / 1000

    def watts(self) -> float | None:
        """Power of the board."""
        milli = self._get("nvmlDeviceGetPowerUsage", ctypes.c_uint)
        return None if milli is None else milli / 1000

    def celsius(self) -> float | None:
        """Temperature of the GPU."""
        return self._get("nvmlDeviceGetTemperature", ctypes.c_uint, GPU_TEMPERATURE)

    def mhz(self) -> float | None:
        """Clock rate of the multiprocessors."""
        return self._get("nvmlDeviceGetClockInfo", ctypes.c_uint, SM_CLOCK)

    def slowed(self) -> bool | None:
        """Whether heat or a power limit holds the clock rate down at this moment."""
        why = self._get("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong)
        return None if why is None else bool(why & SLOWED)
