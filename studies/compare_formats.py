"""Speed of the file format beside the layout that was proposed before it, in one run: what freezing
the format rests on.

    tools/compare_formats                     a Markdown table on stdout; needs this repository's
    history, not only its files tools/compare_formats --threads 1 --isa avx512 tools/compare_formats
    --predict           what llvm-mca says of the kernels on CPUs that are not at hand
    (block_cycles.py)

The proposal had an FP16 scale for every 64 columns of a row, codes without a table and no trellis:
4.25, 3.25 and 2.25 bits per weight. Its kernels are compiled from the commit that still had them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export.bench.cases import SHAPES, TILE_TYPES, random_bytes
from gwq_export.format.types import TYPES, ffi
from gwq_export.machine import cpu_name
from gwq_export.native.library import pointer
from studies.block_cycles import CPUS, SCALE_BYTES, block_bytes, cycles
from studies.paths import ROOT

PROPOSAL = "85e5f43"


def proposal(folder):
    """The proposal's native code, unpacked into `folder`. Raises GwqError without the history."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", PROPOSAL, "native"], capture_output=True
    )
    if archive.returncode:
        raise GwqError(
            f"commit {PROPOSAL} is not in this clone: run it in a whole clone (git fetch --unshallow)"
        )
    packed = Path(folder, "native.tar")
    packed.write_bytes(archive.stdout)
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    return Path(folder, "native")


def compiled(native):
    """Its library."""
    out = native.parent / "out"
    subprocess.run(
        [sys.executable, native / "build.py", "--out", out], check=True, capture_output=True
    )
    return out / "libgwq.so"


class Library:
    """One of the two, with matrices of random bytes in its own format.

    What is called here has not changed since the proposal.
    """

    def __init__(self, path, name, threads):
        self.lib, self.name = ffi.dlopen(str(path)), name
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
        return [
            self._matrix(type, shape, [part.copy() for part in parts])
            for _ in range(working_set // nbytes + 1)
        ], nbytes

    def _proposed(self, type, rows, cols):
        data = np.random.default_rng(0).integers(
            0, 256, self.lib.gwq_matrix_bytes(type.id, rows, cols), np.uint8
        )
        blocks, block = -(-cols // 64), block_bytes("proposal", type)
        for group in data.reshape(-1, blocks * block):
            for first in range(
                0, blocks, 4
            ):  # a tile: the scales of up to 4 blocks, then their codes
                at, scales = first * block, min(4, blocks - first) * SCALE_BYTES
                group[at + 1 : at + scales : 2] &= 0xBF  # keeps the exponent far from infinity
        return data

    def _matrix(self, type, shape, parts):
        m = ffi.new("gwq_matrix *", {"type": type.id, "rows": shape[0], "cols": shape[1]})
        for part, field, size in zip(
            parts,
            ("data", "outliers", "offsets"),
            ("data_bytes", "outlier_bytes", "offset_bytes"),
            strict=False,
        ):
            setattr(m, field, pointer(part, "void *" if field == "data" else "uint8_t *"))
            setattr(m, size, part.nbytes)
        if self.lib.gwq_matrix_check(m):
            raise GwqError(f"{self.name}: made a bad {type.name} matrix")
        return m, parts

    def seconds(self, matrices, x, y):
        """Of one product of each matrix with x."""
        scratch = np.empty(self.lib.gwq_scratch_bytes(1, len(x)), np.uint8)
        px, out, space = pointer(x), ffi.new("float *[]", [pointer(y)]), pointer(scratch, "void *")
        lists = [ffi.new("gwq_matrix *[]", [m]) for m, _ in matrices]
        start = time.perf_counter()
        for one in lists:
            self.lib.gwq_matmul(self.pool, one, 1, px, 1, out, space, scratch.nbytes)
        return (time.perf_counter() - start) / len(lists)


def compare(libraries, type, shape, outliers, working_set, rounds):
    """[(bytes per second of the one over that of the other, weights per second likewise)] of each
    round.
    """
    x, y = np.random.default_rng(0).random(shape[1], np.float32), np.empty(shape[0], np.float32)
    made = [library.matrices(type, shape, outliers, working_set) for library in libraries]
    rates = []
    for i in range(rounds + 1):
        seconds = [
            library.seconds(copies, x, y)
            for library, (copies, _) in zip(libraries, made, strict=True)
        ]
        if i:  # the first round only warms up
            ratio = seconds[1] / seconds[0]
            rates.append((ratio * made[0][1] / made[1][1], ratio))
    return rates


def predict(cpus, native, folder):
    """Print what llvm-mca says."""
    print(
        "| CPU model | instruction set | type | cycles a block, format | proposal | bytes a cycle, format | proposal |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for cpu in cpus:
        if cpu not in CPUS:
            raise GwqError(f"--predict {cpu}: choose from {', '.join(CPUS)}")
        found = {
            name: cycles(name, path, cpu, folder)
            for name, path in (("format", ROOT / "native" / "x86"), ("proposal", native))
        }
        for name in reversed(TILE_TYPES):
            speed = {k: block_bytes(k, TYPES[name]) / v[name] for k, v in found.items()}
            cells = [
                *(f"{v[name]:.0f}" for v in found.values()),
                *(f"{v:.1f}" for v in speed.values()),
            ]
            print(f"| {cpu} | {CPUS[cpu]} | {name} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--threads",
        metavar="N,...",
        default="1,2" if os.cpu_count() > 1 else "1",
        help="(default: 1,2)",
    )
    parser.add_argument(
        "--isa",
        metavar="NAME,...",
        default="avx2,avx512",
        help="as far as this CPU has them (default: avx2,avx512)",
    )
    parser.add_argument(
        "--outliers",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="of the weights (default: 0.01)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        metavar="N",
        help="alternating rounds of each row (default: 9)",
    )
    parser.add_argument(
        "--working-set",
        type=int,
        default=400,
        metavar="MB",
        help="copies of a matrix, at least (default: 400)",
    )
    parser.add_argument(
        "--predict",
        metavar="CPU,...",
        nargs="?",
        const=",".join(CPUS),
        help=f"by llvm-mca, of {', '.join(CPUS)}",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        native = proposal(folder)
        if args.predict:
            return predict(args.predict.split(","), native, folder)
        old, new = compiled(native), ROOT / "gwq_export" / "native" / "libgwq.so"
        print(
            f"{cpu_name()}; {100 * args.outliers:g} % outliers, medians of {args.rounds} alternating rounds [quartiles].\n"
        )
        print(
            "| instruction set | type | shape | threads | bytes/s, format over proposal | weights/s |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for threads in map(int, args.threads.split(",")):
            libraries = [Library(new, "format", threads), Library(old, "proposal", threads)]
            for isa in args.isa.split(","):
                if any(library.lib.gwq_isa_select(isa.encode()) for library in libraries):
                    continue
                for shape in SHAPES:
                    for name in reversed(TILE_TYPES):
                        rates = compare(
                            libraries,
                            TYPES[name],
                            shape,
                            args.outliers,
                            args.working_set << 20,
                            args.rounds,
                        )
                        cells = []
                        for column in zip(*rates, strict=True):
                            low, middle, high = statistics.quantiles(column, n=4)
                            cells.append(f"{middle:.2f} [{low:.2f}, {high:.2f}]")
                        print(
                            f"| {isa} | {name} | {shape[0]} x {shape[1]} | {threads} | {' | '.join(cells)} |",
                            flush=True,
                        )


if __name__ == "__main__":
    try:
        main()
    except GwqError as error:
        sys.exit(f"compare_formats: error: {error}")
