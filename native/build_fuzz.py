"""Compile the fuzz targets of native/fuzz, for which tools/fuzz calls this.

    python -m native.build_fuzz matrix|product|record [--replay] [--out FOLDER] [--cc COMPILER]

With AddressSanitizer, UBSan and Clang's libFuzzer, or with --replay as a program that any compiler
can build and that runs the inputs it is given.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from native.build import SANITIZED, Sources, compiler, library_sources, make, program_sources

TARGETS = ("matrix", "product", "record")  # the last one is of the program
RECORD = ("record", "link", "link_ops", "pass", "sha256")  # what it takes of that
STOPS = "-fno-sanitize-recover=all -O1"  # a report ends the program; -O3 compiles for minutes
COVERAGE = "-fsanitize=fuzzer-no-link"
UNCOUNTED = "-fno-sanitize=fuzzer-no-link"
PLAIN = ("cpu/", "bench/", "fuzz/")  # folders of code that every machine runs
# Code of an instruction set: which way it goes follows from the shape alone, which the rest tells,
# and with everything in it it compiles for minutes. Its memory is looked after all the same.
IN_KERNELS = "-fno-sanitize=undefined -g0"
UNREACHED = ("encode", "gemm")  # sources that no byte of a file reaches: they are only linked


def fuzz_sources(target: str, replay: bool) -> Sources:
    """What a target is made of beside the library. replay: it runs inputs, with no fuzzer."""
    names = [target, "input", *(["replay"] if replay else [])]
    files = {f"fuzz/{name}.c": "" for name in names}
    if target == "record":
        files |= {name: f for name, f in program_sources().items() if Path(name).stem in RECORD}
    return files


def _flags_of(name: str, uncounted: str) -> str:
    """Flags of a source beside its own. uncounted: those that take its coverage away."""
    if Path(name).name.startswith(UNREACHED):
        return f"-fno-sanitize=all -O0 {uncounted}"
    return "" if name.startswith(PLAIN) else f"{IN_KERNELS} {uncounted}"


def build_fuzzer(
    target: str,
    out: str | Path | None = None,
    cc: str | None = None,
    replay: bool = False,
    verbose: bool = False,
) -> Path:
    """Compile one of TARGETS into a folder, by default that of the objects; returns its path.

    cc: None for Clang, whose libFuzzer it takes. replay: a program instead that runs the inputs it
    is given, with any compiler. Raises SystemExit.
    """
    cc = compiler(cc if replay else cc or "clang")
    files = library_sources(cc) | fuzz_sources(target, replay)
    files = {n: f"{f} {_flags_of(n, '' if replay else UNCOUNTED)}" for n, f in files.items()}
    return make(
        f"{'replay' if replay else 'fuzz'}-{target}",
        files,
        cc=cc,
        link="" if replay else "-fsanitize=fuzzer",
        out=out,
        flags=f"{SANITIZED} {STOPS} {'' if replay else COVERAGE}",
        variant="-replay" if replay else "-fuzz",
        verbose=verbose,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile a fuzz target with ninja.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--out", help="folder for it (default: its objects' in native/build)")
    parser.add_argument("--cc", help="C compiler (default: clang)")
    parser.add_argument(
        "--replay",
        action="store_true",
        help="a program that any compiler can build and that runs the inputs it is given",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command")
    args = parser.parse_args(argv)
    built = build_fuzzer(args.target, args.out, args.cc, args.replay, args.verbose)
    print(built, file=sys.stderr)


if __name__ == "__main__":
    main()
