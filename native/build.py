"""Compile libgwq with ninja: writes native/build/build.ninja, runs it, puts the library and headers
beside the package.

    python native/build.py [--out FOLDER] [--cc COMPILER] [--asan] [--simde]

The wheel calls `build` too (backend.py). A cross compiler is recognised by its own macros, so
`--cc aarch64-linux-gnu-gcc` builds the aarch64 library (scalar kernels).
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
PACKAGE = NATIVE.parent / "gwq_export" / "native"
HEADERS = ("gwq_format.h", "gwq.h")
CFLAGS = "-std=gnu11 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -pthread -Wall -Wextra -Werror=implicit"
# source -> its own flags; the x86 files are left out for other machines
COMMON = {
    "gwq.c": "",
    "ops.c": "",
    "attention.c": "",
    "massive.c": "",
    "threads.c": "",
    "scalar.c": "",
    "encode.c": "-Wno-psabi",
}
X86 = {
    "avx2.c": "-mavx2 -mfma -mf16c",
    "avx2_stock.c": "-mavx2 -mfma -mf16c",
    "avx2_ops.c": "-mavx2 -mfma -mf16c",
    "avx2_functions.c": "-mavx2 -mfma -mf16c",
    "encode_avx2.c": "-mavx2 -Wno-psabi",
    "avx512.c": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c",
}


def abi_hash():
    """SHA-256 of the headers, compiled into the library and compared when it is loaded."""
    return hashlib.sha256(b"".join((NATIVE / name).read_bytes() for name in HEADERS)).hexdigest()


def machine(cc):
    """What the compiler compiles for: 'x86_64', 'aarch64', ..."""
    return subprocess.run(
        [*cc.split(), "-dumpmachine"], check=True, capture_output=True, text=True
    ).stdout.split("-")[0]


def build(out=PACKAGE, cc=None, asan=False, simde=False, verbose=False):
    """Compile into `out` and copy the headers there; returns the library's path. SystemExit with a
    sentence on failure.

    asan: with AddressSanitizer and UBSan. simde: AVX-512 code as plain C of the SIMDe headers, so
    that any x86 CPU can test it (slowly).
    """
    try:
        import ninja
    except ImportError:
        raise SystemExit("native/build.py: ninja is missing: pip install ninja") from None
    from ninja.ninja_syntax import Writer

    cc = (
        cc
        or os.environ.get("CC")
        or shutil.which("cc")
        or shutil.which("gcc")
        or shutil.which("clang")
    )
    if not cc or not shutil.which(cc.split()[0]):
        raise SystemExit(
            "native/build.py: no C compiler found: install one (Debian: apt-get install gcc libc6-dev) or set CC"
        )
    target = machine(cc)
    sources = COMMON | (X86 if target in ("x86_64", "amd64") else {})
    if simde:
        sources["avx512.c"] = f"{X86['avx2.c']} -DGWQ_SIMDE"
    flags = f'{CFLAGS} -DGWQ_ABI_HASH=\\"{abi_hash()}\\"' + (
        " -fsanitize=address,undefined -g" if asan else ""
    )
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    folder = NATIVE / "build" / (target + "-asan" * asan + "-simde" * simde)
    folder.mkdir(parents=True, exist_ok=True)
    library = out / "libgwq.so"
    with open(folder / "build.ninja", "w") as f:
        n = Writer(f, width=10**6)
        n.rule(
            "cc", f"{cc} {flags} $isa -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        n.rule(
            "link",
            f"{cc} -shared -pthread {'-fsanitize=address,undefined' if asan else ''} $in -lm -o $out.tmp && mv $out.tmp $out",
        )
        objects = [
            n.build(f"{Path(s).stem}.o", "cc", str(NATIVE / s), variables={"isa": isa})[0]
            for s, isa in sources.items()
        ]
        n.build(str(library), "link", objects)
    done = subprocess.run(
        [Path(ninja.BIN_DIR, "ninja"), "-C", folder, *(["-v"] if verbose else ["--quiet"])]
    )
    if done.returncode:
        raise SystemExit("native/build.py: the compiler failed; its message is above")
    for name in HEADERS:
        shutil.copyfile(NATIVE / name, out / name)
    return library


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compile libgwq with ninja.")
    parser.add_argument(
        "--out",
        default=PACKAGE,
        help="folder for the library and its headers (default: the package)",
    )
    parser.add_argument("--cc", help="C compiler (default: $CC, cc, gcc or clang)")
    parser.add_argument("--asan", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument(
        "--simde",
        action="store_true",
        help="run the AVX-512 code on any x86 CPU, for tests (needs libsimde-dev)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command")
    args = parser.parse_args(argv)
    print(build(args.out, args.cc, args.asan, args.simde, args.verbose), file=sys.stderr)


if __name__ == "__main__":
    main()
