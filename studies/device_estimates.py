"""What to expect of devices that nobody has measured: tokens/s by datasheets and instructions.

    studies/device_estimates

Two limits, of which the lower one counts. Memory: every weight is read once for a token, so the
datasheet's rate over the bytes; CPUs reach some share of it, SHARES, small boards the lower one.
Instructions: cores x GHz x instructions a cycle over instructions a weight, which
docs/results/arm.md (printed by studies/arm_instructions) and docs/results/cuda.md
(studies/cuda_kernels, for AVX2) have. How many instructions a core completes in a cycle is an
assumption: about half of the vector instructions that it can begin. Attention, norms and what
starts a token are left out, so small models are slower than this.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from studies.paths import ROOT

SHARES = (0.35, 0.7)  # of the datasheet's rate that decoding reads memory at, from and to
TYPE, BITS = "gwq4", 4.6  # bits of a weight with scales and 0.25 % outliers
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Device:
    """isa: column of the instruction counts. per_cycle: instructions that a core completes.

    gbps: of the memory, by the datasheet.
    """

    name: str
    cores: int
    ghz: float
    isa: str
    per_cycle: float
    gbps: float


DEVICES = (
    Device("Raspberry Pi 3 (4 x Cortex-A53)", 4, 1.2, "neon", 0.5, 3.6),
    Device("Raspberry Pi 4 (4 x Cortex-A72)", 4, 1.8, "neon", 1.0, 12.8),
    Device("Raspberry Pi 5 (4 x Cortex-A76)", 4, 2.4, "dotprod", 1.0, 17.1),
    Device("Jetson Orin Nano, its CPU (6 x Cortex-A78AE)", 6, 1.5, "dotprod", 1.0, 68.3),
    Device("phone, the big cores (4 x Cortex-A78)", 4, 2.4, "dotprod", 1.0, 34.1),
    Device("Intel N100 (4 x Gracemont)", 4, 2.9, "avx2", 1.5, 38.4),
)
MODELS = {"135M": 135e6, "0.5B": 494e6, "1.1B": 1.1e9}  # weights that a token reads


def cell(page: str, column: str, row: str) -> float:
    """A figure of the first Markdown table of a page that has both. Raises ValueError."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page, re.M):
        lines = [[c.strip() for c in line.strip("| ").split("|")] for line in table.splitlines()]
        found = [line for line in lines if line[0] == row]
        if column in lines[0] and found:
            return float(found[0][lines[0].index(column)])
    raise ValueError(f"no table has a column {column!r} and a row {row!r}")


def counts() -> dict[str, float]:
    """{instruction set: instructions for a weight of TYPE, one token}, as the pages have them."""
    arm, cuda = ((RESULTS / name).read_text(encoding="utf-8") for name in ("arm.md", "cuda.md"))
    return {
        "neon": cell(arm, "neon", TYPE),
        "dotprod": cell(arm, "dotprod", TYPE),
        "avx2": cell(cuda, "AVX2", f"{TYPE}, 1 token"),
    }


def limits(device: Device, weights: float, per_weight: float) -> tuple[float, float]:
    """Tokens/s of a model of so many weights: what memory's whole rate and instructions allow."""
    cores = device.cores * device.ghz * 1e9 * device.per_cycle
    return device.gbps * 1e9 / (weights * BITS / 8), cores / (per_weight * weights)


def expected(memory: float, instructions: float) -> str:
    """Tokens/s, from and to."""
    low, high = (min(share * memory, instructions) for share in SHARES)
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f}-{high:.0f}"


def table(devices: Sequence[Device] = DEVICES) -> str:
    """Markdown: a row for each device, tokens/s for each model, and which limits hold it back."""
    each = counts()
    lines = [
        "| device | GB/s | cores x GHz | instructions a cycle | a weight | limit | "
        + " | ".join(f"{name} at 4 bits" for name in MODELS)
        + " |",
        "| " + "--- | " * (6 + len(MODELS)),
    ]
    for d in devices:
        both = [limits(d, weights, each[d.isa]) for weights in MODELS.values()]
        memory, instructions = both[0]
        reached = [share * memory > instructions for share in SHARES]
        limit = {0: "memory", 1: "either", 2: "instructions"}[sum(reached)]
        speeds = " | ".join(expected(*pair) for pair in both)
        lines.append(
            f"| {d.name} | {d.gbps} | {d.cores} x {d.ghz} | {d.per_cycle} | {each[d.isa]:.3f} |"
            f" {limit} | {speeds} |"
        )
    return "\n".join(lines).replace("--- | \n", "--- |\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return argparse.ArgumentParser(description="Estimate what devices decode.")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser().parse_args(argv)
    print(table())


if __name__ == "__main__":
    main()
