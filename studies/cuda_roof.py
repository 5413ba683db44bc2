"""Whether memory or instructions should limit a GEMV: an estimate from datasheets and machine code.

Of a GPU's memory, at the datasheet's rate, so many weights come in a cycle for each multiprocessor;
that many it would have to multiply. Where that is more than it can, instructions are the limit.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studies.cuda_loops import Loop

BITS = {2: 2.25, 3: 3.25, 4: 4.5}  # of a weight in a device's memory (native/cuda/layout.h)


@dataclass(frozen=True)
class Gpu:
    """gbps: of its memory, by the datasheet. ghz: of the multiprocessors under load, about."""

    name: str
    arch: str
    gbps: float
    processors: int
    ghz: float

    def weights(self, bits: int) -> float:
        """Weights that memory delivers in a cycle for each multiprocessor."""
        return self.gbps * 8 / BITS[bits] / (self.processors * self.ghz)


GPUS = (
    Gpu("Jetson Orin AGX", "87", 205, 16, 1.3),
    Gpu("RTX 3090", "86", 936, 82, 1.7),
    Gpu("RTX 4090", "89", 1008, 128, 2.5),
    Gpu("H100 SXM", "90", 3350, 132, 1.75),
    Gpu("H200", "90", 4800, 132, 1.75),
)


def shares(gpu: Gpu, loops: Sequence[Loop], bits: int) -> dict[int, float]:
    """{tokens: what memory delivers over what can be multiplied}; above 1: not all of it can be."""
    found = {}
    for loop in loops:
        of_loop, tokens = map(int, re.findall(r"\d+", loop.kernel))
        if of_loop == bits:
            found[tokens] = gpu.weights(bits) / loop.rate
    return found


def estimate(found: Mapping[str, Sequence[Loop]]) -> str:
    """A table, Markdown. found: loops of GEMV kernels, by architecture."""
    lines = [
        "",
        "| GPU | GB/s | multiprocessors x GHz | type | weights a cycle from memory |"
        " of what 1 token allows | of what 4 allow | time of 4 over 1 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gpu in GPUS:
        for bits in sorted(BITS, reverse=True) if gpu.arch in found else ():
            share = shares(gpu, found[gpu.arch], bits)
            lines.append(
                f"| {gpu.name} | {gpu.gbps:.0f} | {gpu.processors} x {gpu.ghz} | gwq{bits} |"
                f" {gpu.weights(bits):.1f} | {share[1]:.0%} | {share[4]:.0%} |"
                f" {max(1, share[4]) / max(1, share[1]):.2f} |"
            )
    return "\n".join(lines)
