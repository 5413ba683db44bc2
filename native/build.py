"""Compile libgwq with ninja, and put the library and its declarations into the Python package.

    python native/build.py [--out FOLDER] [--cc COMPILER] [--asan] [--simde]
    python native/build.py --program [--static] [--out FOLDER] [--cc COMPILER]

The wheel calls `build` too (backend.py). A cross compiler is recognised by its own macros, so
`--cc aarch64-linux-gnu-gcc` builds the aarch64 library. --program builds gwq-bench-native instead,
the benchmark for machines without Python, of the same objects.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
PACKAGE = NATIVE.parent / "gwq_export" / "native"  # where Python looks for both
PROGRAM = "gwq-bench-native"
PROGRAM_FOLDER = "bench"  # its sources, beside those of the library
INCLUDE = NATIVE / "include"
HEADERS = (
    "gwq_format.h",
    "gwq.h",
    "gwq_program.h",
    "gwq_maps.h",
    "gwq_cuda.h",
)  # of the include folder, in the order of abi_hash
INCLUDE_FLAGS = f"-I{INCLUDE} -I{NATIVE}"  # x86/ and the like name headers of cpu/ by their folder
WARNINGS = "-Wall -Wextra -Werror=implicit"
CFLAGS = f"-std=gnu11 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -pthread {WARNINGS}"
SANITIZERS = "-fsanitize=address,undefined"
SANITIZED = f"{SANITIZERS} -g"

AVX2 = "-mavx2 -mfma -mf16c"
AVXVNNI = f"-mavxvnni -mgfni {AVX2}"
AVX512 = f"-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni {AVX2}"
VBMI = f"-mavx512vbmi {AVX512}"
# GCC would load all lines of a block before the first product, and store most of them to the stack,
# and copy sums from register to register; Clang does neither, nor knows the flags.
NEON = "-fno-schedule-insns -fno-tree-ter -fweb -Wno-ignored-optimization-argument"
DOTPROD = f"-march=armv8.2-a+dotprod {NEON}"
I8MM = f"-march=armv8.2-a+dotprod+i8mm {NEON}"
EMULATED = "-DGWQ_SIMDE -O1"  # -O3 compiles them for minutes, for the same numbers
VECTORS = "-Wno-psabi"  # the encoder's vectors may be wider than registers, but are never passed
# Without vectors of eight it is so much code that these passes of GCC take two thirds of a minute.
PLAIN_VECTORS = f"{VECTORS} -fno-tree-pre -fno-gcse -fno-gcse-after-reload"

# what --simde compiles with the headers of that name
SIMDE = (
    "avxvnni.c",
    *("avx512.c", "avx512_ggml.c", "avx512_ops.c", "avx512vbmi.c"),
    *("attend_avx512.c", "encode_avx512.c", "gemm_avx512.c"),
)

Sources = dict[str, str]  # source file -> its own compiler flags


def on(*machines: str) -> Callable[[str], bool]:
    """Whether a target (see `machine`) is one of these."""
    return lambda target: target in machines


def everywhere(target: str) -> bool:
    """For folders of plain C."""
    return True


# folder -> its sources and the targets that they are compiled for
FOLDERS: dict[str, tuple[Sources, Callable[[str], bool]]] = {
    "cpu": (
        {
            "dispatch.c": "",
            "check.c": "",
            "matrix.c": "",
            "matmul.c": "",
            "massive.c": "",
            "ops.c": "",
            "attention.c": "",
            "prompt_attention.c": "",
            "attend_scalar.c": VECTORS,
            "kv_cache.c": "",
            "recurrent.c": "",
            "program.c": "",
            "top.c": "",
            "encode.c": VECTORS,
            "threads.c": "",
            "maps.c": "",
            "scalar.c": "",
            "scalar_ggml.c": "",
            "scalar_ops.c": "",
            "encode_scalar.c": PLAIN_VECTORS,
            "gemm.c": "",
            "gemm_scalar.c": VECTORS,
        },
        everywhere,
    ),
    "x86": (
        {
            "avx2.c": AVX2,
            "avx2_ggml.c": AVX2,
            "avx2_ops.c": AVX2,
            "avx2_functions.c": AVX2,
            "attend_avx2.c": f"{AVX2} {VECTORS}",
            "encode_avx2.c": f"-mavx2 {VECTORS}",
            "gemm_avx2.c": f"{AVX2} {VECTORS}",
            "avxvnni.c": AVXVNNI,
            "avx512.c": AVX512,
            "avx512_codes.c": AVX512,
            "avx512_ggml.c": AVX512,
            "avx512_ops.c": AVX512,
            "avx512vbmi.c": VBMI,
            "attend_avx512.c": f"{AVX512} {VECTORS}",
            "encode_avx512.c": f"{AVX512} {VECTORS}",
            "gemm_avx512.c": f"{AVX512} {VECTORS}",
        },
        on("x86_64", "amd64"),
    ),
    "arm": (
        {
            "features.c": "",
            "neon.c": NEON,
            "neon_ggml.c": NEON,
            "neon_ops.c": "",
            "neon_attention.c": "",
            "neon_functions.c": "",
            "dotprod.c": DOTPROD,
            "i8mm.c": I8MM,
            "attend_neon.c": VECTORS,
            "encode_neon.c": VECTORS,
            "gemm_neon.c": VECTORS,
        },
        on("aarch64", "arm64"),
    ),
}


def sources(target: str) -> Sources:
    """What the library of a target is made of: 'cpu/matmul.c' -> its own flags."""
    return {
        f"{folder}/{name}": flags
        for folder, (files, when) in FOLDERS.items()
        if when(target)
        for name, flags in files.items()
    }


def program_sources() -> Sources:
    """What the program is made of beside the library."""
    names = sorted(path.name for path in (NATIVE / PROGRAM_FOLDER).glob("*.c"))
    return {f"{PROGRAM_FOLDER}/{name}": f'-DGWQ_VERSION=\\"{version()}\\"' for name in names}


def version() -> str:
    """The version of the package."""
    text = (NATIVE.parent / "gwq_export" / "version.py").read_text()
    return re.findall(r'^__version__ = "(.+)"$', text, re.M)[0]


def abi_hash() -> str:
    """SHA-256 of the headers, compiled into the library and compared when it is loaded."""
    return hashlib.sha256(b"".join((INCLUDE / name).read_bytes() for name in HEADERS)).hexdigest()


def write_declarations(folder: Path) -> None:
    """folder/_abi.py: `ffi` of all headers, parsed here, which takes 40 ms, and their HASH."""
    try:
        import cffi
    except ImportError:
        raise SystemExit("native/build.py: cffi is missing: pip install cffi") from None
    text = "".join((INCLUDE / name).read_text() for name in HEADERS)
    # what cffi cannot parse: the wrapper for C++, and preprocessor directives
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
    text = re.sub(r"^#.*$", "", text, flags=re.M)
    ffi = cffi.FFI()
    ffi.set_source("gwq_abi", None)
    ffi.cdef(text)
    path = folder / f"_abi.{os.getpid()}"
    with contextlib.redirect_stdout(None):  # says that it does
        ffi.emit_python_code(str(path))
    with open(path, "a") as f:
        f.write(f'HASH = "{abi_hash()}"\n')
    path.replace(folder / "_abi.py")


def machine(cc: str) -> str:
    """What the compiler compiles for: 'x86_64', 'aarch64', ..."""
    command = [*cc.split(), "-dumpmachine"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split("-")[0]


def compiler(cc: str | None) -> str:
    """The compiler's command: the one asked for, $CC, or what the system has."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    cc = cc or os.environ.get("CC") or next(filter(None, found), None)
    if not cc or not shutil.which(cc.split()[0]):
        raise SystemExit(
            "native/build.py: no C compiler found: "
            "install one (Debian: apt-get install gcc libc6-dev) or set CC"
        )
    return cc


def _accepts(cc: str, flags: str) -> bool:
    """Whether the compiler knows the flags."""
    command = [*cc.split(), *flags.split(), "-E", "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


# flags that not every compiler knows -> those in their place
IN_PLACE = {
    AVXVNNI: f"{AVX2} -DGWQ_OLD_COMPILER",  # of GCC 10, Clang 11
    DOTPROD: f"{NEON} -DGWQ_OLD_COMPILER",  # of GCC 7
    I8MM: f"{NEON} -DGWQ_OLD_COMPILER",  # of GCC 9, Clang 10
    PLAIN_VECTORS: VECTORS,  # of Clang
}


def fitted(files: Sources, cc: str) -> Sources:
    """The sources with flags that the compiler knows."""
    unknown = [flags for flags in IN_PLACE if not _accepts(cc, flags)]
    return {name: IN_PLACE[flags] if flags in unknown else flags for name, flags in files.items()}


def library_sources(cc: str, simde: bool = False) -> Sources:
    """Those of the library for what a compiler compiles for. simde: as `build` has it."""
    files = fitted(sources(machine(cc)), cc)
    if simde:
        files |= {f"x86/{name}": f"{AVX2} {VECTORS} {EMULATED}" for name in SIMDE}
    return files


def _write_ninja(folder: Path, cc: str, flags: str, files: Sources, built: Path, link: str) -> None:
    """folder/build.ninja: an object for every source, all linked into what is built.

    link: how, of the linker's flags. Sources are called by their way from there: the same library
    wherever the clone lies.
    """
    from ninja.ninja_syntax import Writer

    native = os.path.relpath(NATIVE, folder)
    flags += f" -I{native}/{INCLUDE.name} -I{native}"
    sanitizers = SANITIZERS if SANITIZERS in flags else ""
    with open(folder / "build.ninja", "w") as f:
        n = Writer(f, width=10**6)
        compile_one = f"{cc} {flags} $isa -MMD -MF $out.d -c $in -o $out"
        n.rule("cc", compile_one, depfile="$out.d", deps="gcc")
        n.rule("link", f"{cc} {link} -pthread {sanitizers} $in -lm -o $out.tmp && mv $out.tmp $out")
        objects = []
        for name, isa in files.items():
            to = str(Path(name).with_suffix(".o"))
            objects += n.build(to, "cc", f"{native}/{name}", variables={"isa": isa})
        n.build(str(built), "link", objects)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build in a folder of objects at a time: of two, the second finds what the first made."""
    with open(folder / "lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def build(
    out: str | Path = PACKAGE,
    cc: str | None = None,
    asan: bool = False,
    simde: bool = False,
    verbose: bool = False,
) -> Path:
    """Compile into `out` and write the declarations there; returns the library's path.

    asan: with AddressSanitizer and UBSan. simde: AVX-512 code as plain C of the SIMDe headers, so
    that any x86 CPU can test it (slowly). Raises SystemExit, with a sentence.
    """
    cc = compiler(cc)
    library = make(
        "libgwq.so",
        library_sources(cc, simde),
        cc=cc,
        link="-shared",
        out=out,
        flags=SANITIZED if asan else "",
        variant=("-asan" if asan else "") + ("-simde" if simde else ""),
        verbose=verbose,
    )
    write_declarations(library.parent)
    return library


def build_program(
    out: str | Path | None = None,
    cc: str | None = None,
    static: bool = False,
    asan: bool = False,
    verbose: bool = False,
) -> Path:
    """Compile the program into a folder, by default that of the objects; returns its path.

    static: it needs no library of the system, not even the C library. Raises SystemExit.
    """
    cc = compiler(cc)
    return make(
        PROGRAM,
        library_sources(cc) | program_sources(),
        cc=cc,
        link="-static" if static else "",
        out=out,
        flags=SANITIZED if asan else "",
        variant="-asan" if asan else "",
        verbose=verbose,
    )


def make(
    name: str,
    files: Sources,
    *,
    cc: str,
    link: str,
    out: str | Path | None,
    flags: str,
    variant: str,
    verbose: bool,
) -> Path:
    """Compile sources and link them to `name` in `out`; returns its path.

    cc: as `compiler` has it. link: how, of the linker's flags. out: None for the folder of the
    objects. flags: of all sources, before their own. variant: what the flags are called, as
    "-asan": objects of each lie in a folder of their own. Raises SystemExit.
    """
    try:
        import ninja
    except ImportError:
        raise SystemExit("native/build.py: ninja is missing: pip install ninja") from None

    target = machine(cc)
    command = Path(cc.split()[0]).name.removeprefix(f"{target}-linux-gnu-")
    of_compiler = "" if command in ("cc", "gcc") else f"-{command}"
    folder = NATIVE / "build" / f"{target}{of_compiler}{variant}"
    built = Path(out or folder).resolve() / name
    for path in (built.parent, folder):
        path.mkdir(parents=True, exist_ok=True)
    flags = f'{CFLAGS} -DGWQ_ABI_HASH=\\"{abi_hash()}\\" {flags}'.rstrip()
    noise = "-v" if verbose else "--quiet"
    with _alone(folder):
        _write_ninja(folder, cc, flags, files, built, link)
        if subprocess.run([Path(ninja.BIN_DIR, "ninja"), "-C", folder, noise]).returncode:
            raise SystemExit("native/build.py: the compiler failed; its message is above")
    return built


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile libgwq with ninja.")
    parser.add_argument(
        "--out",
        help="folder for the library and its declarations (default: the package),"
        " or for the program (default: its objects' in native/build)",
    )
    parser.add_argument("--cc", help="C compiler (default: $CC, cc, gcc or clang)")
    parser.add_argument("--asan", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument(
        "--simde",
        action="store_true",
        help="run the AVX-512 code on any x86 CPU, for tests (needs libsimde-dev)",
    )
    parser.add_argument(
        "--program",
        action="store_true",
        help=f"build {PROGRAM}, the benchmark for machines without Python, instead",
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="with --program: so that it needs nothing else (also with --cc musl-gcc)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every command")
    args = parser.parse_args(argv)
    if (args.static and not args.program) or (args.simde and args.program):
        parser.error("--static goes with --program, and --simde without it")
    if args.program:
        built = build_program(args.out, args.cc, args.static, args.asan, args.verbose)
    else:
        built = build(args.out or PACKAGE, args.cc, args.asan, args.simde, args.verbose)
    print(built, file=sys.stderr)


if __name__ == "__main__":
    main()
