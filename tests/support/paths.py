"""Where the data and the library are, and which instruction sets there may be."""

import os

from studies.paths import DATA, REFERENCE, ROOT, SHARED  # noqa: F401

NATIVE = ROOT / "native"
LIBRARY = os.environ.get("GWQ_LIBRARY", ROOT / "gwq_export" / "native" / "libgwq.so")
ISAS = ["scalar", "avx2", "avxvnni", "avx512", "avx512vbmi"]
ISAS += [f"{isa}-simde" for isa in ("avxvnni", "avx512", "avx512vbmi")]
ISAS += ["cuda"]  # its kernels on the host, over native/cuda/shim.h
