"""Instructions that ARM kernels take for a weight, ours beside llama.cpp's.

    studies/arm_instructions [--llama FOLDER]

QEMU runs the compiled kernels one instruction at a time and logs each; what a product repeated
twice takes more than the same product once is counted, so that nothing but the product is. It says
how much work there is, not how long it takes: no figure here is a speed. Both programs are built by
the same compiler with -O3.

--llama: llama.cpp's ggml folder (default: fetched from PyPI, see tools/llama_cpp.sh).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gwq_export import GwqError
from gwq_export.format.types import TYPES
from native import build as native_build
from studies.paths import ROOT

NATIVE = ROOT / "native"
CC = "aarch64-linux-gnu-gcc"
SHAPE = (32, 1024)  # rows, columns
MANY = (32, 512, 64)  # rows, columns, tokens of a prompt

OURS = ["gwq2", "gwq3", "gwq4", "gwq5", "gwq6"]
ROWS = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}  # row -> CPU emulated

# instruction set -> -march of llama.cpp's files, CPU emulated
LLAMA_BUILDS = {
    "neon": ("armv8-a", "cortex-a72"),
    "dotprod": ("armv8.2-a+dotprod+fp16", "cortex-a76"),
    "i8mm": ("armv8.2-a+dotprod+fp16+i8mm", "max"),
}
# what is printed -> function, instruction sets on which llama.cpp may call it
ONE_TOKEN = {
    "Q4_0, repacked 4x4": ("ggml_gemv_q4_0_4x4_q8_0", ["dotprod"]),
    "Q4_0, repacked 4x8": ("ggml_gemv_q4_0_4x8_q8_0", ["i8mm"]),
    "Q4_0": ("ggml_vec_dot_q4_0_q8_0", ["neon", "dotprod"]),
    "IQ4_NL, repacked 4x4": ("ggml_gemv_iq4_nl_4x4_q8_0", ["dotprod"]),
    "Q4_K, repacked 8x4": ("ggml_gemv_q4_K_8x4_q8_K", ["dotprod"]),
    "Q4_K, repacked 8x8": ("ggml_gemv_q4_K_8x8_q8_K", ["i8mm"]),
    "Q4_K": ("ggml_vec_dot_q4_K_q8_K", ["neon", "dotprod"]),
    "IQ4_XS": ("ggml_vec_dot_iq4_xs_q8_K", ["neon", "dotprod"]),
    "Q3_K": ("ggml_vec_dot_q3_K_q8_K", ["neon", "dotprod"]),
    "IQ3_S": ("ggml_vec_dot_iq3_s_q8_K", ["neon", "dotprod"]),
    "Q2_K": ("ggml_vec_dot_q2_K_q8_K", ["neon", "dotprod"]),
    "IQ2_XS": ("ggml_vec_dot_iq2_xs_q8_K", ["neon", "dotprod"]),
}
PROMPT = {
    "Q4_0, repacked 4x4": ("ggml_gemm_q4_0_4x4_q8_0", ["dotprod"]),
    "Q4_0, repacked 4x8": ("ggml_gemm_q4_0_4x8_q8_0", ["i8mm"]),
    "Q4_K, repacked 8x8": ("ggml_gemm_q4_K_8x8_q8_K", ["i8mm"]),
}
# ours, theirs, at most (issue "Edge devices: ARM kernels")
TARGETS = [
    ("gwq4", "Q4_0, repacked 4x4", 0.8),
    ("gwq3", "IQ3_S", 0.5),
    ("gwq2", "IQ2_XS", 0.5),
]


def run(command: Sequence[object]) -> str:
    """The stdout of a command. Raises GwqError with what it said when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise GwqError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def emulator(machine: str = "aarch64") -> list[str]:
    """The command that runs one instruction at a time and logs each. Raises GwqError.

    machine: whose programs it runs, "aarch64" or "x86_64".
    """
    qemu = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if not qemu and machine != "aarch64":
        raise GwqError(f"needs qemu-{machine} (Debian: apt-get install qemu-user-static)")
    if not qemu or not shutil.which(CC):
        raise GwqError(
            f"needs {CC} and qemu-aarch64 "
            "(Debian: apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static)"
        )
    newer = "-one-insn-per-tb" in run([qemu, "-help"])
    return [qemu, "-one-insn-per-tb" if newer else "-singlestep", "-d", "exec,nochain"]


def instructions(cpu: str, program: Path, *arguments: object, machine: str = "aarch64") -> int:
    """What the last argument more by one, a number of repetitions, adds to a run."""
    counts = []
    for times in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "log")
            run([*emulator(machine), "-D", log, "-cpu", cpu, program, *arguments, times])
            with open(log, "rb") as f:
                counts.append(sum(line.startswith(b"Trace") for line in f))
    return counts[1] - counts[0]


def our_program(folder: Path, cc: str = CC) -> Path:
    """The program that multiplies by our kernels, of the machine that a compiler compiles for."""
    native_build.build(folder, cc=cc)
    machine = native_build.machine(cc)
    objects = [
        NATIVE / "build" / machine / Path(s).with_suffix(".o")
        for s in native_build.fitted(native_build.sources(machine), cc)
    ]
    out = folder / "ours"
    source = Path(__file__).with_name("arm_instructions_ours.c")
    flags = native_build.INCLUDE_FLAGS.split()
    run([cc, "-O2", *flags, source, *objects, "-static", "-lm", "-pthread", "-o", out])
    return out


def llama_program(ggml: Path, march: str, folder: Path) -> Path:
    """The program that multiplies by llama.cpp's, for the instructions of `march`."""
    cpu = ggml / "src" / "ggml-cpu"
    flags = ["-O3", "-DNDEBUG", "-D_GNU_SOURCE", f"-march={march}"]
    flags += [f"-I{p}" for p in (cpu, ggml / "src", ggml / "include")]
    objects = [folder / f"{name}-{march}.o" for name in ("quants", "repack")]
    run([CC, "-std=c11", *flags, "-c", cpu / "arch" / "arm" / "quants.c", "-o", objects[0]])
    cxx = CC.replace("gcc", "g++")
    run([cxx, "-std=c++17", *flags, "-c", cpu / "arch" / "arm" / "repack.cpp", "-o", objects[1]])
    out = folder / f"llama-{march}"
    source = Path(__file__).with_name("arm_instructions_llama.c")
    # plain C of other CPUs, which these functions leave unused
    absent = "-Wl,--unresolved-symbols=ignore-all"
    run([CC, "-O2", source, *objects, "-static", absent, "-lm", "-o", out])
    return out


def fetch_llama(folder: Path) -> Path:
    """llama.cpp's ggml folder, from PyPI."""
    script = f'work="{folder}"; source tools/llama_cpp.sh; fetch_llama_cpp "{folder}" ggml'
    run(["bash", "-c", f'cd "{ROOT}"; PYTHON="{sys.executable}"; {script}'])
    return folder / "ggml"


def our_counts(program: Path) -> dict[str, dict[str, float]]:
    """type -> column -> instructions of a weight (and token)."""
    rows, cols = SHAPE
    m, k, prompt = MANY
    found: dict[str, dict[str, float]] = {}
    for name in OURS:
        type_id = TYPES[name].id
        row = found[name] = {}

        def count(
            isa: str, rows: int, cols: int, tokens: int, outliers: int, type_id: int = type_id
        ) -> float:
            arguments = (isa, type_id, rows, cols, tokens, outliers)
            return instructions(ROWS[isa], program, *arguments) / (rows * cols * tokens)

        for isa in ("neon", "dotprod"):
            row[isa] = count(isa, rows, cols, 1, 0)
            row[f"{isa}, 1 % outliers"] = count(isa, rows, cols, 1, 10)
            row[f"{isa}, 4 tokens"] = count(isa, rows, cols, 4, 0)
        for isa in ROWS:
            row[f"{isa}, {prompt} tokens"] = count(isa, m, k, prompt, 0)
    return found


def llama_counts(programs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """type -> instruction set -> instructions of a weight (and token)."""
    found: dict[str, dict[str, float]] = {}
    for table, (rows, cols, tokens) in ((ONE_TOKEN, (*SHAPE, 1)), (PROMPT, MANY)):
        for name, (function, isas) in table.items():
            for isa in isas:
                count = instructions(
                    LLAMA_BUILDS[isa][1], programs[isa], function, rows, cols, tokens
                )
                column = isa if tokens == 1 else f"{isa}, {tokens} tokens"
                found.setdefault(name, {})[column] = count / (rows * cols * tokens)
    return found


def markdown(table: dict[str, dict[str, float]]) -> str:
    """A table of counts."""
    columns = list(dict.fromkeys(c for row in table.values() for c in row))
    lines = ["| type | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in table.items():
        cells = [f"{row[c]:.3f}" if c in row else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> str:
    """What the issue asks for, and what was found."""
    lines = ["| instructions of | over those of | ratio | asked for |", "| --- | --- | --- | --- |"]
    for name, other, most in TARGETS:
        ratio = ours[name]["dotprod"] / theirs[other]["dotprod"]
        lines.append(f"| {name}, dotprod | {other} | {ratio:.2f} | {most} |")
    for name in OURS:
        ratio = ours[name]["neon"] / ours[name]["dotprod"]
        lines.append(f"| {name}, neon | {name}, dotprod | {ratio:.2f} | 1.6 |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Count instructions of ARM kernels.")
    parser.add_argument("--llama", type=Path, help="llama.cpp's ggml folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emulator()
        ggml = args.llama or fetch_llama(folder)
        programs = {
            isa: llama_program(ggml, march, folder) for isa, (march, _) in LLAMA_BUILDS.items()
        }
        ours = our_counts(our_program(folder))
        theirs = llama_counts(programs)
    compiler = run([CC, "--version"]).splitlines()[0]
    print(f"Instructions of a weight (and token); {compiler}.\n")
    print(markdown(ours), "\n", markdown(theirs), "\n", ratios(ours, theirs), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except GwqError as e:
        raise SystemExit(f"studies/arm_instructions: {e}") from None
