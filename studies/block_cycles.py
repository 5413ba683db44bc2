"""Cycles a block takes by llvm-mca's models of CPUs that are not at hand.

This is an estimate from the compiled code, not a measurement. The kernels of both formats are
compiled as the library is, with marks around the product of one block in a loop over blocks. The
model knows neither memory nor outliers; these cost both formats alike, so files differ by less than
the figures do.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from gwq_export import GwqError
from gwq_export.format.types import TYPES
from native.build import CFLAGS, FOLDERS, INCLUDE_FLAGS

SCALE_BYTES = 32  # of a block of the proposal: 16 rows, FP16

TILE_TYPES = ["gwq2", "gwq3", "gwq4"]  # what there was a proposal for

# CPU of llvm-mca -> the instruction set that it runs
CPUS = {
    "znver3": "avx2",
    "skylake": "avx2",
    "cascadelake": "avx512",
    "icelake-server": "avx512",
    "znver4": "avx512",
}

# name -> arguments of the loop, and the product of one block; p: the block's scales, q: 64
# activations
LOOPS = {
    "format": (
        "const uint8_t *table, const int16_t *bias,",
        "block{bits}(table, p, p + gwq_scale_bytes({bits}), q, dx[i], bias + 8 * i, y);",
    ),
    "proposal": (
        "const int32_t *sum,",
        "block({bits}, QUADS{bits}, quads{bits}, "
        f"p, p + {SCALE_BYTES}, q, dx[i], sum[i], y);",
    ),
}
LOOP = """
void loop{bits}({arguments} const uint8_t *p, const int8_t *q, const float *dx, float *y,
                int64_t blocks) {{
    for (int64_t i = 0; i < blocks; i++, p += {nbytes}, q += GWQ_BLOCK) {{
        __asm__ volatile("# LLVM-MCA-BEGIN {type}" ::: "memory");
        {product}
        __asm__ volatile("# LLVM-MCA-END" ::: "memory");
    }}
}}
"""


def block_bytes(name, type):
    """Bytes of a block of 16 rows x 64 columns of the "format" or of the "proposal"."""
    return type.unit_bytes if name == "format" else SCALE_BYTES + 128 * type.bits


def llvm_mca():
    """Its newest version here. Raises GwqError where there is none."""
    names = [*(f"llvm-mca-{version}" for version in range(30, 14, -1)), "llvm-mca"]
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise GwqError("--predict needs llvm-mca: install it (Debian: apt-get install llvm)")
    return found


def cycles(name, kernels, cpu, folder):
    """{type name: cycles of one block} with the kernels (avx2.c, avx512.c) of a folder.

    name: of the format, as in LOOPS. Raises GwqError.
    """
    mca = llvm_mca()
    source = Path(folder, f"{name}.c")
    assembly = Path(folder, f"{name}.s")
    arguments, product = LOOPS[name]
    loops = [
        LOOP.format(
            bits=t.bits,
            type=t.name,
            nbytes=block_bytes(name, t),
            arguments=arguments,
            product=product.format(bits=t.bits),
        )
        for t in map(TYPES.get, TILE_TYPES)
    ]
    isa = f"{CPUS[cpu]}.c"
    source.write_text(f'#include "{kernels / isa}"\n' + "".join(loops))
    own_flags, _ = FOLDERS["x86"]
    flags = f"{CFLAGS} {INCLUDE_FLAGS} {own_flags[isa]}".split()
    run([*os.environ.get("CC", "gcc").split(), *flags, "-S", source, "-o", assembly])
    report = json.loads(run([mca, f"-mcpu={cpu}", "-json", assembly]))
    summaries = {region["Name"]: region["SummaryView"] for region in report["CodeRegions"]}
    return {name: s["TotalCycles"] / s["Iterations"] for name, s in summaries.items()}


def run(command):
    """The stdout of a command. Raises GwqError with its last line when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise GwqError(f"{command[0]} failed: {said[-1]}")
    return done.stdout
