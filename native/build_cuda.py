"""Compile libgwq_cuda: the functions of libgwq on CUDA devices.

    python -m native.build_cuda [--out FOLDER] [--nvcc NVCC] [--arch 80 90 ... | native]
    python -m native.build_cuda --host [--tsan]

The first needs nvcc (tools/build_cuda brings it from PyPI). The second compiles the same sources as
host C++, over a stand-in for CUDA (native/cuda/shim.h), into libgwq_cuda_host.so: slow, and for
tests alone.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from native.build import CFLAGS, INCLUDE_FLAGS, NATIVE, PACKAGE, abi_hash

SOURCES = sorted(p.name for p in (NATIVE / "cuda").glob("*.cu"))
SHIM = ("shim.cpp", "shim_runtime.cpp")  # CUDA's place on the host
TOOLS = NATIVE.parent / ".cuda"  # where tools/build_cuda puts the wheels
ARCHS = ("75", "80", "86", "87", "89", "90", "100", "120")  # what there is machine code for
PTX = "90"  # which drivers compile for architectures to come: nothing newer is used
# No contraction of products and sums: decoded weights are defined to the bit. What may be fused is
# written as such (fmaf).
KERNEL_FLAGS = "-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden"
# a device reads 16 bytes from multiples of 16 alone; a host that does not mind would hide a mistake
ALIGNED = "-fsanitize=alignment -fsanitize-undefined-trap-on-error"
HOST_FLAGS = (
    f"-x c++ -std=gnu++17 -O2 -ffp-contract=off -fPIC -fvisibility=hidden -pthread {ALIGNED}"
)
HOST_WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas"
TSAN = "-fsanitize=thread -g"


def find_nvcc() -> str | None:
    """The nvcc to use: $NVCC, that of tools/build_cuda, or the system's; None if there is none."""
    ours = sorted(map(str, TOOLS.glob("nvidia/*/bin/nvcc")))
    named = [os.environ.get("NVCC", ""), *ours, "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, named)), None)


def offered(nvcc: str, wanted: Sequence[str] = ARCHS) -> list[str]:
    """Those of the architectures that the compiler has code for, such as "90"."""
    text = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(re.findall(r"sm_(\d+)", text))
    return [arch for arch in wanted if arch in known]


def of_this_machine() -> list[str]:
    """The architecture whose code this machine's first GPU runs; none without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True).stdout
    except OSError:
        return []
    if not (found := re.match(r"(\d+)\.(\d+)", said)):
        return []
    major, minor = map(int, found.groups())
    # code of a major version runs on its later minor ones
    same = [a for a in ARCHS if int(a) // 10 == major and int(a) % 10 <= minor]
    return same[-1:]


def targets(archs: Sequence[str]) -> str:
    """Flags for machine code of every architecture, and PTX for those to come."""
    codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in archs]
    ptx = PTX if PTX in archs else archs[-1]
    return " ".join([*codes, f"-gencode arch=compute_{ptx},code=compute_{ptx}"])


def _toolkit(nvcc: str) -> Path:
    """The folder that has the toolkit's include and lib, whatever links led to nvcc."""
    text = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+)$", text, re.M)
    return Path(found[1] if found else Path(nvcc).resolve().parents[1]).resolve()


def _library_folder(toolkit: Path) -> Path:
    """Where libcudart_static.a is: lib in wheels, lib64 elsewhere."""
    for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (toolkit / name / "libcudart_static.a").exists():
            return toolkit / name
    raise SystemExit(f"native/build_cuda.py: {toolkit} has no libcudart_static.a")


def _ninja(folder: Path) -> None:
    import ninja

    jobs = str(min(8, len(os.sched_getaffinity(0))))  # each takes up to 1 GB
    command = [Path(ninja.BIN_DIR, "ninja"), "-C", folder, "--quiet", "-j", jobs]
    if subprocess.run(command).returncode:
        raise SystemExit("native/build_cuda.py: the compiler failed; its message is above")


def _write(folder: Path, library: Path, compile_one: str, link: str, extra: str = "") -> None:
    """folder/build.ninja: an object for every source and for the check of matrices, linked."""
    from ninja.ninja_syntax import Writer

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "build.ninja", "w") as f:
        n = Writer(f, width=10**6)
        n.rule("kernels", compile_one, depfile="$out.d", deps="gcc")
        n.rule(
            "cc", f"cc {CFLAGS} {INCLUDE_FLAGS} -MMD -MF $out.d -c $in -o $out", depfile="$out.d"
        )
        n.rule("link", f"{link} -o $out.tmp && mv $out.tmp $out")
        objects = n.build("check.o", "cc", str(NATIVE / "cpu" / "check.c"))
        for name in SOURCES:
            objects += n.build(f"{name}.o", "kernels", str(NATIVE / "cuda" / name))
        if extra:
            n.rule("extra", f"{extra} -MMD -MF $out.d -c $in -o $out", depfile="$out.d")
            for name in SHIM:
                objects += n.build(f"{name}.o", "extra", str(NATIVE / "cuda" / name))
        n.build(str(library), "link", objects)


def build_host(out: str | Path = PACKAGE, tsan: bool = False) -> Path:
    """Compile for the host, over the shim; returns the path of libgwq_cuda_host.so.

    tsan: the kernels under ThreadSanitizer. Raises SystemExit, with a sentence.
    """
    cxx = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not cxx:
        raise SystemExit("native/build_cuda.py: no C++ compiler: apt-get install g++, or set CXX")
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    library = out / "libgwq_cuda_host.so"
    define = f'{INCLUDE_FLAGS} -DGWQ_ABI_HASH=\\"{abi_hash()}\\" -DGWQ_CUDA_HOST'
    shim = f"{cxx} {HOST_FLAGS} {HOST_WARNINGS} {define}"
    kernels = f"{shim} {TSAN if tsan else ''} -MMD -MF $out.d -c $in -o $out"
    link = f"{cxx} -shared -pthread {TSAN if tsan else ''} $in -lm"
    folder = NATIVE / "build" / ("cuda-host-tsan" if tsan else "cuda-host")
    _write(folder, library, kernels, link, f"{shim} {'-DGWQ_SHIM_TSAN' if tsan else ''}")
    _ninja(folder)
    return library


def build(out: str | Path = PACKAGE, nvcc: str | None = None, archs: Sequence[str] = ()) -> Path:
    """Compile for CUDA devices; returns the path of libgwq_cuda.so.

    nvcc: None for the one that `find_nvcc` finds. archs: those of ARCHS that the compiler offers.
    Raises SystemExit, with a sentence.
    """
    nvcc = nvcc or find_nvcc()
    if not nvcc:
        raise SystemExit("native/build_cuda.py: no nvcc found: run tools/build_cuda, or set NVCC")
    archs = offered(nvcc, archs or ARCHS)
    if not archs:
        raise SystemExit(f"native/build_cuda.py: {nvcc} offers none of the architectures")
    toolkit = _toolkit(nvcc)
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    library = out / "libgwq_cuda.so"
    define = f'{INCLUDE_FLAGS} -DGWQ_ABI_HASH=\\"{abi_hash()}\\"'
    flags = f"{KERNEL_FLAGS} {define} {targets(archs)} -Xptxas -v"
    kernels = f"{nvcc} {flags} -MMD -MF $out.d -c $in -o $out 2> $out.log || (cat $out.log; exit 1)"
    link = (
        f"c++ -shared -pthread $in -L{_library_folder(toolkit)} -lcudart_static -ldl -lrt "
        "-static-libgcc -static-libstdc++ -Wl,--exclude-libs,ALL"
    )
    folder = NATIVE / "build" / "cuda"
    _write(folder, library, kernels, link)
    _ninja(folder)
    return library


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile libgwq_cuda.")
    parser.add_argument("--out", default=PACKAGE, help="folder for it (default: the package)")
    parser.add_argument("--nvcc", help="CUDA compiler (default: $NVCC, tools/build_cuda's, nvcc)")
    parser.add_argument(
        "--arch",
        nargs="*",
        default=(),
        help="such as 80 90, or native, that of this machine's GPU (default: all known)",
    )
    parser.add_argument("--host", action="store_true", help="for the host, over the shim")
    parser.add_argument("--tsan", action="store_true", help="that, under ThreadSanitizer")
    args = parser.parse_args(argv)
    if args.host or args.tsan:
        print(build_host(args.out, args.tsan), file=sys.stderr)
    else:
        archs = of_this_machine() if list(args.arch) == ["native"] else args.arch
        print(build(args.out, args.nvcc, archs), file=sys.stderr)


if __name__ == "__main__":
    main()
