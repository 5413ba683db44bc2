"""What the instructions of an ARM product of one token do, class by class.

    studies/arm_classes [--type gwq4] [--row dotprod]

QEMU logs the address of each instruction, as for studies/arm_instructions, and objdump says what
lies there. Printed for a tile, 16 rows x 256 columns, of a matrix of 32 x 1024; what the walk over
row groups takes is in it.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gwq_export import GwqError
from gwq_export.format.types import ROWS as TILE_ROWS
from gwq_export.format.types import TILE, TYPES
from studies.arm_instructions import CC, OURS, ROWS, SHAPE, emulator, our_program, run

# what is printed -> instructions, as objdump writes them; the first that matches counts
VECTOR = r" \{?[vqds]\d"
CLASSES = {
    "products of bytes": r"(sdot|smull2?|smlal2?) ",
    "look-ups": r"tbl ",
    "masks, shifts and the like, of codes and of a block's scales": (
        rf"(and|ushr|shl|sli|sri|eor|cmtst|dup){VECTOR}"
    ),
    "scales as numbers of 32 bits": rf"(usubl2?|sxtl2?|sub){VECTOR}",
    "times scales": rf"(mul|mla){VECTOR}",
    "sums of pairs": r"(addp|saddlp) ",
    "copies from register to register, constants": rf"(mov|movi){VECTOR}",
    "to float, times the activations' scale": r"(scvtf|fmla|fmul|fadd|fcvtl) ",
    "loads of vectors": rf"(ld1|ld1r|ldr|ldp|ldur){VECTOR}",
    "stores of vectors": rf"(st1|str|stp|stur){VECTOR}",
    "prefetches": "prfm ",
    "addresses, loops, calls": "",
}


def listing(program: Path) -> dict[int, str]:
    """address -> instruction, of a whole program."""
    objdump = CC.replace("gcc", "objdump")
    lines = run([objdump, "-d", "--no-show-raw-insn", program]).splitlines()
    found = (re.match(r"\s*([0-9a-f]+):\s+(\S.*)", line) for line in lines)
    return {int(m[1], 16): " ".join(m[2].split()) + " " for m in found if m}


def executed(program: Path, row: str, type_name: str) -> Counter[int]:
    """address -> how often one product more executes it."""
    counts: list[Counter[int]] = []
    for times in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            arguments = [row, TYPES[type_name].id, *SHAPE, 1, 0, times]
            run([*emulator(), "-D", log, "-cpu", ROWS[row], program, *arguments])
            with open(log) as f:  # Trace 0: 0x... [flags/address/flags/...] name
                where = (line.split("/", 2)[1] for line in f if line.startswith("Trace"))
                counts.append(Counter(int(address, 16) for address in where))
    counts[1].subtract(counts[0])
    return counts[1]


def classes(program: Path, row: str, type_name: str) -> dict[str, float]:
    """What is printed -> instructions of a tile."""
    instruction = listing(program)
    tiles = SHAPE[0] * SHAPE[1] / (TILE_ROWS * TILE)
    found = dict.fromkeys(CLASSES, 0.0)
    for address, times in executed(program, row, type_name).items():
        name = next(n for n, form in CLASSES.items() if re.match(form, instruction[address]))
        found[name] += times / tiles
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Count an ARM kernel's instructions by class.")
    parser.add_argument("--type", default="gwq4", choices=OURS, help="of the matrix (gwq4)")
    parser.add_argument("--row", default="dotprod", choices=list(ROWS), help="kernels (dotprod)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    args = parser().parse_args(argv)
    emulator()
    with tempfile.TemporaryDirectory() as folder:
        found = classes(our_program(Path(folder)), args.row, args.type)
    print(f"| {args.type}, {args.row} | of a tile | of a weight |\n| --- | --- | --- |")
    for name, count in [*found.items(), ("all", sum(found.values()))]:
        if count:
            print(f"| {name} | {count:.0f} | {count / (TILE_ROWS * TILE):.3f} |")


if __name__ == "__main__":
    try:
        main()
    except GwqError as e:
        raise SystemExit(f"studies/arm_classes: {e}") from None
