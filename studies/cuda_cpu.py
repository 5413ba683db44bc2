"""Instructions per weight of the CPU's products, beside those of the CUDA kernels.

QEMU counts those of the CPU, as studies/arm_instructions does: no figure here is a speed.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gwq_export.format.types import TYPES
from studies.arm_instructions import CC, OURS, SHAPE, emulator, instructions, our_program
from studies.cuda_loops import PIECE, Loop

ARCH = "90"
TOKENS = (1, 4)
LANES = 32  # threads of a warp
# instruction set -> machine, compiler, CPU that QEMU plays
CPUS = {
    "AVX2": ("x86_64", "gcc", "max", "avx2"),
    "ARM, dotprod": ("aarch64", CC, "cortex-a76", "dotprod"),
}
Counts = dict[tuple[str, int], dict[str, float]]


def cpu_counts() -> Counts:
    """{(type, tokens): {instruction set: instructions of a weight and token}}. Raises GwqError."""
    rows, cols = SHAPE
    found: Counts = {}
    for name, (machine, cc, cpu, isa) in CPUS.items():
        emulator(machine)
        with tempfile.TemporaryDirectory() as folder:
            program = our_program(Path(folder), cc)
            for type in OURS:
                for tokens in TOKENS:
                    arguments = isa, TYPES[type].id, rows, cols, tokens, 0
                    count = instructions(cpu, program, *arguments, machine=machine)
                    found.setdefault((type, tokens), {})[name] = count / (rows * cols * tokens)
    return found


def beside(found: Mapping[str, Sequence[Loop]], counts: Counts) -> str:
    """A table, Markdown. found: loops of GEMV kernels, by architecture."""
    lines = [
        "",
        f"| instructions per weight and token | a thread, sm_{ARCH} | a warp | "
        + " | ".join(CPUS)
        + " |",
        "| --- |" + " --- |" * (2 + len(CPUS)),
    ]
    for loop in found.get(ARCH, ()):
        bits, tokens = map(int, re.findall(r"\d+", loop.kernel))
        if tokens not in TOKENS:
            continue
        each = loop.instructions / PIECE / tokens
        of_cpu = counts[f"gwq{bits}", tokens]
        cells = [f"{each:.2f}", f"{each / LANES:.3f}", *(f"{of_cpu[name]:.3f}" for name in CPUS)]
        name = f"gwq{bits}, {tokens} token{'s' if tokens > 1 else ''}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
