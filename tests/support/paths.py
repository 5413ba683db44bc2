"""Where the data and the library are, and which instruction sets there may be."""

import os
import platform

from studies.paths import DATA, REFERENCE, ROOT, SHARED  # noqa: F401

NATIVE = ROOT / "native"
LIBRARY = os.environ.get("GWQ_LIBRARY", ROOT / "gwq_export" / "native" / "libgwq.so")
if platform.machine() in ("aarch64", "arm64"):
    ISAS = ["scalar", "neon", "dotprod", "i8mm"]
else:
    ISAS = ["scalar", "avx2", "avxvnni", "avx512", "avx512vbmi"]
    ISAS += [f"{isa}-simde" for isa in ("avxvnni", "avx512", "avx512vbmi")]
ISAS += ["cuda"]  # its kernels on the host, over native/cuda/shim.h
