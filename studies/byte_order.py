"""Where the bits above a code should come from: quality and instructions of other neighbours.

    studies/byte_order FOLDER         the tables of docs/results/byte_order.md, on stdout
    studies/byte_order --no-quality   instructions, cycles and time alone

FOLDER is a Hugging Face folder (default: the bundled model). A window of four bits is a code and
bits of its neighbour. In version 1 of the format the neighbour is the row before, in a ring of 8
rows. Here it lies in the same byte or in the same four bytes (version 2: "same 4 bytes: 16 columns"
and "24 bits of three bytes: 8 columns"), or two codes are read together. Quality is
byte_order_lab's and byte_order_search.c's; the kernels, byte_order_kernels.c and
byte_order_kernels.cu, are counted by byte_order_counts.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export.quantization.recipe import TABLES
from studies import byte_order_counts as counts
from studies import byte_order_lab as lab
from studies.block_cycles import llvm_mca
from studies.paths import REFERENCE


@dataclass(frozen=True)
class Layout:
    """kernel: in byte_order_kernels.c, if there is one.

    cuda, shared: in byte_order_kernels.cu, the second with its table in shared memory.
    """

    name: str
    coding: lab.Coding
    kernel: str | None = None
    cuda: str | None = None
    shared: str | None = None


FOUR_ROWS, FOUR_COLUMNS = (4, 16), (4, 4)  # of a byte: 16 rows or 4 columns apart
Coding = lab.Coding
LAYOUTS = (
    Layout("row before: 8 rows (version 1)", Coding(2, 8, 1, 2), "row2_columns", "row2"),
    Layout("none", Coding(2, 1, 1), "none2_columns", "none2"),
    Layout(
        "same byte: 4 columns",
        Coding(2, 1, 4, 2, column_order=FOUR_COLUMNS),
        "byte2_columns",
        "byte2",
        "byte_shared2",
    ),
    Layout("same byte: 4 rows", Coding(2, 4, 1, 2, row_order=FOUR_ROWS), "byte2_rows"),
    Layout(
        "same byte, then the row before: 16 rows",
        Coding(2, 16, 1, 2, row_order=FOUR_ROWS),
        "lane2_rows",
    ),
    Layout(
        "same 4 bytes: 4 rows x 4 columns",
        Coding(2, 4, 4, 2, row_order=FOUR_ROWS),
        "word2_mixed",
    ),
    Layout(
        "same 4 bytes: 16 columns",
        Coding(2, 1, 16, 2, column_order=FOUR_COLUMNS),
        "word2_columns",
        "word2",
        "word_shared2",
    ),
    Layout(
        "table of pairs: 2 columns",
        Coding(2, 1, 2, index=lab.pairs(), column_order=FOUR_COLUMNS),
        "pair2_columns",
        "pair2",
        "byte_shared2",
    ),
    Layout("table of pairs: 2 rows", Coding(2, 2, 1, index=lab.pairs()), "pair2_rows"),
    Layout(
        "table of 256 x 4: 4 columns",
        Coding(2, 1, 4, index=lab.any_byte(), column_order=FOUR_COLUMNS),
        shared="byte_shared2",
    ),
    Layout("row before: 8 rows (version 1)", Coding(3, 8, 1, 1), "row3_columns", "row3"),
    Layout("none", Coding(3, 1, 1), "none3_columns", "none3"),
    Layout(
        "same byte of the lines: 4 columns",
        Coding(3, 1, 4, 1, column_order=(4, 8)),
        "byte3_columns",
        "byte3",
    ),
    Layout("same byte of the lines: 4 rows", Coding(3, 4, 1, 1, row_order=FOUR_ROWS), "byte3_rows"),
    Layout(
        "same byte of the lines, then the row before: 16 rows",
        Coding(3, 16, 1, 1, row_order=FOUR_ROWS),
        "lane3_rows",
    ),
    Layout(
        "24 bits of three bytes: 8 columns",
        Coding(3, 1, 8, 1, column_order=(8, 4)),
        "stream3_columns",
        "stream3",
    ),
    Layout(
        "24 bits of three bytes: 4 rows x 2 columns",
        Coding(3, 4, 2, 1, row_order=FOUR_ROWS, column_order=(2, 4)),
        "stream3_mixed",
    ),
)


def decibels(parts):
    """Of [(error, whole)], each part as much as the others."""
    return float(np.mean([-10 * np.log10(error / whole) for error, whole in parts]))


def print_row(cells):
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def print_head(cells):
    print_row(cells)
    print("|" + " --- |" * len(cells))


# What is scored of a checkpoint's matrices: under the Hessian of their inputs?, options of `encode`
SCORES = {
    "weights": (False, {"rounds": 1}),
    "outputs": (True, {"rounds": 1}),
    "outputs, version 1's search of scales": (True, {}),
    "outputs, columns of a ring apart": (True, {"rounds": 1, "joint": False}),
}


def applies(coding, options):
    """Whether options make a difference to a coding."""
    return coding.columns > 1 if "joint" in options else coding.rows > 1 or bool(options)


def score(lib, coding, table, matrices, outputs, options):
    """[(error, whole)] of matrices."""
    parts = []
    for m in matrices:
        hessian = m.hessian if outputs else None
        coded = lab.encode(lib, coding, table, m.weight, hessian, **options)
        parts.append(lab.loss(coding, coded, hessian))
    return parts


def gain(parts, others):
    """Mean and standard error of the decibels by which parts are better than others."""
    found = [decibels([a]) - decibels([b]) for a, b in zip(parts, others, strict=True)]
    return f"{np.mean(found):+.2f} ± {np.std(found, ddof=1) / len(found) ** 0.5:.2f}"


def tables_of(lib, coding, starts, weights):
    """The tables for Gaussian weights and, integers, for those given."""
    known = []
    if coding.history:  # the format passes a code's lowest bits on, the search its topmost
        window = np.arange(16)
        code = window & ((1 << coding.bits) - 1)
        low = (code << coding.history | code >> coding.bits - coding.history) & code.max()
        known = [np.array(TABLES["trellis"][f"gwq{coding.bits}"])[low | window - code] / 13]
    table = lab.fit_gaussian(lib, coding, np.random.default_rng(1), starts, first=known)
    return table, lab.fit_real(lib, coding, table, weights)


def quality(args, folder):
    """Print how well every layout stores Gaussian weights and those of a checkpoint."""
    from studies.byte_order_data import matrices

    lib = lab.library(folder)
    found = matrices(args.folder, (args.fit_at, *args.score_at), args.rows, args.samples)
    to_fit = [m.weight[: args.fit_rows] for m in found if m.depth == args.fit_at]
    to_score = [m for m in found if m.depth in args.score_at]
    print(f"{args.rows} rows each of {', '.join(m.name for m in to_score)}. Decibels.\n")
    test = np.random.default_rng(5).standard_normal((512, 512)).astype(np.float32)
    print_head(("bits", "neighbour", "Gaussian", *SCORES, "outputs beside version 1", "table"))
    today = {}
    for layout in LAYOUTS:
        coding = layout.coding
        for_gaussian, table = tables_of(lib, coding, args.starts, to_fit)
        target, _, value = lab.gaussian(lib, coding, for_gaussian, test)
        cells = [decibels([(((target - value) ** 2).sum(), (target**2).sum())])]
        parts = {
            name: score(lib, coding, table, to_score, outputs, options)
            for name, (outputs, options) in SCORES.items()
            if applies(coding, options)
        }
        cells += [decibels(parts[name]) if name in parts else None for name in SCORES]
        beside = today.setdefault(coding.bits, parts["outputs"])  # version 1 comes first
        entries = " ".join(f"{t:.0f}" for t in table) if len(table) <= 32 else len(table)
        shown = ("" if cell is None else f"{cell:.2f}" for cell in cells)
        print_row((coding.bits, layout.name, *shown, gain(parts["outputs"], beside), entries))


def counted(args, folder):
    """Print instructions, cycles by llvm-mca, and time."""
    columns, missing = {}, []
    for isa, (compiler, _, _, cpus) in counts.TARGETS.items():
        path = counts.assembly(isa, folder)
        if path is None:
            missing.append(f"{isa}: no {compiler}")
            continue
        columns[f"{isa}: instructions"] = counts.instructions(isa, path)
        try:
            llvm_mca()
        except GwqError:
            missing.append(f"{isa}: no llvm-mca")
            continue
        for cpu in cpus:
            columns[f"cycles, {cpu}"] = counts.cycles(isa, path, cpu)
    cuda = counts.cuda_instructions(folder)
    if cuda is None:
        missing.append("CUDA: no nvcc or no cuobjdump")
    kernels = [layout.kernel for layout in LAYOUTS if layout.kernel]
    if counts.has_avx2():
        columns["ns, here"] = counts.times(counts.Kernels(folder), kernels, args.rounds)
    else:
        missing.append("time: no AVX2 here")
    print(f"For {counts.COUNTED} weights (16 rows x 64 columns).\n")
    threads = "sm_87: instructions of a thread"
    print_head(("bits", "neighbour", *columns, threads, "table in shared memory"))
    for layout in LAYOUTS:
        cells = [
            f"{column[layout.kernel]:.0f}" if layout.kernel else "" for column in columns.values()
        ]
        for name in (layout.cuda, layout.shared):
            cells.append(f"{cuda[name]:.0f}" if cuda and name else "")
        print_row((layout.coding.bits, layout.name, *cells))
    for reason in missing:
        print(f"\nLeft out: {reason}.")


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", nargs="?", default=REFERENCE, metavar="FOLDER", type=Path)
    p.add_argument("--no-quality", action="store_true", help="instructions alone")
    p.add_argument("--no-instructions", action="store_true", help="quality alone")
    p.add_argument(
        "--rows", type=int, default=128, metavar="N", help="of each matrix (default: 128)"
    )
    p.add_argument(
        "--fit-rows", type=int, default=64, metavar="N", help="that tables see (default: 64)"
    )
    p.add_argument(
        "--samples", type=int, default=32, metavar="N", help="of 256 tokens (default: 32)"
    )
    p.add_argument("--starts", type=int, default=4, metavar="N", help="random tables (default: 4)")
    p.add_argument("--rounds", type=int, default=9, metavar="N", help="of timing (default: 9)")
    p.set_defaults(fit_at=0.5, score_at=(0.35, 0.7))
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as name:
            if not args.no_instructions:
                counted(args, Path(name))
            if not args.no_quality:
                print()
                quality(args, Path(name))
    except GwqError as e:
        sys.exit(f"byte_order: error: {e}")


if __name__ == "__main__":
    main()
