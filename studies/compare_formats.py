"""Speed of the file format beside the layout that was proposed before it, in one run.

    studies/compare_formats              a Markdown table on stdout, that of docs/format.md; needs
                                         this repository's history, not only its files
    studies/compare_formats --threads 1 --isa avx512
    studies/compare_formats --predict    what llvm-mca says of the kernels on CPUs that are not at
                                         hand (studies/block_cycles.py)

Freezing the format rests on this. The proposal had an FP16 scale for every 64 columns of a row,
codes without a table and no trellis: 4.25, 3.25 and 2.25 bits per weight. Its kernels are compiled
from the commit that still had them.
"""

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export.bench.cases import SHAPES, random_bytes
from gwq_export.format.types import TYPES, ffi
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.library import pointer
from studies.block_cycles import CPUS, SCALE_BYTES, TILE_TYPES, block_bytes, cycles
from studies.paths import ROOT

PROPOSAL = "85e5f43"
FORMAT_LIBRARY = ROOT / "gwq_export" / "native" / "libgwq.so"
PREDICTED = (
    "CPU model",
    "instruction set",
    "type",
    "cycles a block, format",
    "proposal",
    "bytes a cycle, format",
    "proposal",
)
MEASURED = (
    "instruction set",
    "type",
    "shape",
    "threads",
    "bytes/s, format over proposal",
    "weights/s",
)


def proposal(folder):
    """The proposal's native code, unpacked into `folder`. Raises GwqError without the history."""
    command = ["git", "-C", ROOT, "archive", PROPOSAL, "native"]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        raise GwqError(
            f"commit {PROPOSAL} is not in this clone: "
            "run it in a whole clone (git fetch --unshallow)"
        )
    packed = Path(folder, "native.tar")
    packed.write_bytes(archive.stdout)
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    return Path(folder, "native")


def compiled(native):
    """Its library."""
    out = native.parent / "out"
    command = [sys.executable, native / "build.py", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    return out / "libgwq.so"


class Library:
    """One of the two, with matrices of random bytes in its own format.

    What is called here has not changed since the proposal.
    """

    def __init__(self, path, name, threads):
        self.lib = ffi.dlopen(str(path))
        self.name = name
        pool = ffi.new("gwq_pool **")
        if self.lib.gwq_pool_new(threads, pool):
            raise GwqError(f"{name}: no pool of {threads} threads")
        self.pool = pool[0]

    def matrices(self, type, shape, outliers, working_set):
        """Copies of a random matrix, more than `working_set` bytes of them; and the bytes of one.

        Outliers are alike in both formats.
        """
        data, table = random_bytes(type, shape, outliers, np.random.default_rng(0))
        if self.name == "proposal":
            data = self._proposed(type, *shape)
        parts = [data, *(table or ())]
        nbytes = sum(part.nbytes for part in parts)
        count = working_set // nbytes + 1
        copies = [self._matrix(type, shape, [p.copy() for p in parts]) for _ in range(count)]
        return copies, nbytes

    def _proposed(self, type, rows, cols):
        """uint8: a matrix of the proposal, its FP16 scales far from infinity."""
        size = self.lib.gwq_matrix_bytes(type.id, rows, cols)
        data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        blocks = -(-cols // 64)
        block = block_bytes("proposal", type)
        for group in data.reshape(-1, blocks * block):
            # a tile: the scales of up to 4 blocks, then their codes
            for first in range(0, blocks, 4):
                at = first * block
                scales = min(4, blocks - first) * SCALE_BYTES
                group[at + 1 : at + scales : 2] &= 0xBF  # bounds the exponent
        return data

    def _matrix(self, type, shape, parts):
        """(gwq_matrix, what it points to). parts: codes and, with outliers, their two tables."""
        m = ffi.new("gwq_matrix *", {"type": type.id, "rows": shape[0], "cols": shape[1]})
        fields = ("data", "data_bytes"), ("outliers", "outlier_bytes"), ("offsets", "offset_bytes")
        for part, (field, size) in zip(parts, fields, strict=False):
            setattr(m, field, pointer(part, "void *" if field == "data" else "uint8_t *"))
            setattr(m, size, part.nbytes)
        if self.lib.gwq_matrix_check(m):
            raise GwqError(f"{self.name}: made a bad {type.name} matrix")
        return m, parts

    def seconds(self, matrices, x, y):
        """Of one product of each matrix with x."""
        scratch = np.empty(self.lib.gwq_scratch_bytes(1, len(x)), np.uint8)
        space = pointer(scratch, "void *")
        px = pointer(x)
        out = ffi.new("float *[]", [pointer(y)])
        lists = [ffi.new("gwq_matrix *[]", [m]) for m, _ in matrices]
        start = time.perf_counter()
        for one in lists:
            self.lib.gwq_matmul(self.pool, one, 1, px, 1, out, space, scratch.nbytes)
        return (time.perf_counter() - start) / len(lists)


def compare(libraries, type, shape, outliers, working_set, rounds):
    """[(ratio of bytes per second, ratio of weights per second)] of each round.

    Both are those of the first library over those of the second.
    """
    x = np.random.default_rng(0).random(shape[1], np.float32)
    y = np.empty(shape[0], np.float32)
    made = [library.matrices(type, shape, outliers, working_set) for library in libraries]
    rates = []
    for i in range(rounds + 1):
        first, second = (
            library.seconds(copies, x, y)
            for library, (copies, _) in zip(libraries, made, strict=True)
        )
        if i:  # the first round only warms up
            ratio = second / first
            rates.append((ratio * made[0][1] / made[1][1], ratio))
    return rates


def print_head(names):
    print("| " + " | ".join(names) + " |")
    print("|" + " --- |" * len(names))


def predict(cpus, native, folder):
    """Print what llvm-mca says. native: the proposal's."""
    print_head(PREDICTED)
    for cpu in cpus:
        if cpu not in CPUS:
            raise GwqError(f"--predict {cpu}: choose from {', '.join(CPUS)}")
        kernels = {"format": ROOT / "native" / "x86", "proposal": native}
        found = {name: cycles(name, path, cpu, folder) for name, path in kernels.items()}
        for type in reversed(TILE_TYPES):
            taken = {name: by_type[type] for name, by_type in found.items()}
            cells = [f"{t:.0f}" for t in taken.values()]
            cells += [f"{block_bytes(name, TYPES[type]) / t:.1f}" for name, t in taken.items()]
            print(f"| {cpu} | {CPUS[cpu]} | {type} | {' | '.join(cells)} |", flush=True)


def measure(args, native):
    """Print how fast both are. native: the proposal's."""
    print(
        f"{cpu_name()}; {100 * args.outliers:g} % outliers, medians of {args.rounds} alternating "
        "rounds [quartiles].\n"
    )
    print_head(MEASURED)
    old = compiled(native)
    extent = args.outliers, args.working_set << 20, args.rounds
    for threads in map(int, args.threads.split(",")):
        libraries = [
            Library(FORMAT_LIBRARY, "format", threads),
            Library(old, "proposal", threads),
        ]
        for isa in args.isa.split(","):
            if any(library.lib.gwq_isa_select(isa.encode()) for library in libraries):
                continue
            for shape in SHAPES:
                for name in reversed(TILE_TYPES):
                    rates = compare(libraries, TYPES[name], shape, *extent)
                    cells = [isa, name, f"{shape[0]} x {shape[1]}", f"{threads}"]
                    for column in zip(*rates, strict=True):
                        low, middle, high = statistics.quantiles(column, n=4)
                        cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
                    print(f"| {' | '.join(cells)} |", flush=True)


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--threads",
        metavar="N,...",
        default="1,2" if default_threads() > 1 else "1",
        help="(default: 1,2)",
    )
    p.add_argument(
        "--isa",
        metavar="NAME,...",
        default="avx2,avx512",
        help="as far as this CPU has them (default: avx2,avx512)",
    )
    p.add_argument(
        "--outliers",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="of the weights (default: 0.01)",
    )
    p.add_argument(
        "--rounds",
        type=int,
        default=9,
        metavar="N",
        help="alternating rounds of each row (default: 9)",
    )
    p.add_argument(
        "--working-set",
        type=int,
        default=400,
        metavar="MB",
        help="copies of a matrix, at least (default: 400)",
    )
    p.add_argument(
        "--predict",
        metavar="CPU,...",
        nargs="?",
        const=",".join(CPUS),
        help=f"by llvm-mca, of {', '.join(CPUS)}",
    )
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            native = proposal(folder)
            if args.predict:
                predict(args.predict.split(","), native, folder)
            else:
                measure(args, native)
    except GwqError as e:
        sys.exit(f"compare_formats: error: {e}")


if __name__ == "__main__":
    main()
