"""What the CUDA compiler makes of the kernels: registers, spills, shared memory, inner loops.

    studies/cuda_kernels [--arch 80 90 ...]

Nothing runs: this needs nvcc (tools/build_cuda), no GPU. Kernels are compiled for every
architecture; printed are the tables of docs/results/cuda.md. The loops' instructions are counted in
the machine code, where CUDA's disassembler is there (tools/build_cuda --tools).
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gwq_export.errors import GwqError
from native.build_cuda import ARCHS, TOOLS, build, find_nvcc, offered
from studies.cuda_cpu import beside, cpu_counts
from studies.cuda_loops import Loop, TensorLoop
from studies.cuda_roof import estimate
from studies.paths import ROOT

# Instructions of the integer units, by what Nsight Compute's manual says of the pipelines
ALU = r"\b(PRMT|LOP3|PLOP3|SHF|IADD3|VIADD|ISETP|FSETP|SEL|LEA|MOV)\b"
MULTIPLIED = r"\b(IMAD|IDP)\b"
LOGS = ROOT / "native" / "build" / "cuda"


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of a kernel for one architecture.

    name: such as "gemv_kernel<4, 1>". registers: of a thread. spills: bytes stored and loaded
    because registers were short. stack: bytes of local memory. shared: bytes of a block.
    """

    name: str
    arch: str
    registers: int
    spills: int
    stack: int
    shared: int


def readable(mangled: str) -> str:
    """A kernel's name with its numbers: _Z11gemv_kernelILi4ELi1EE.. is gemv_kernel<4, 1>."""
    match = re.match(r"_Z\d+([a-z_]+_kernel)(?:I((?:Li\d+E)+)E)?", mangled)
    if not match:
        return mangled
    numbers = re.findall(r"Li(\d+)E", match[2] or "")
    return match[1] + (f"<{', '.join(numbers)}>" if numbers else "")


def resources(text: str) -> list[Kernel]:
    """The kernels in a log of `ptxas -v`."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers(.*?)\n",
        text,
        re.S,
    )
    kernels = []
    for name, arch, stack, stores, loads, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        kernels.append(
            Kernel(
                readable(name),
                arch,
                int(registers),
                spills,
                int(stack),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def compiled(archs: Sequence[str] = (), out: str | Path | None = None) -> list[Kernel]:
    """Compile everything; returns all kernels for all architectures. Raises SystemExit."""
    with tempfile.TemporaryDirectory() as folder:
        build(out or folder, archs=archs)
    logs = (path.read_text() for path in sorted(LOGS.glob("*.log")))
    return [kernel for text in logs for kernel in resources(text)]


def disassembler() -> tuple[str, str] | None:
    """CUDA's (cuobjdump, nvdisasm); None unless both are there: the first calls the second."""
    found = []
    for name in ("cuobjdump", "nvdisasm"):
        ours = map(str, TOOLS.glob(f"nvidia/*/bin/{name}"))
        found.append(next(filter(None, map(shutil.which, [*ours, name])), None))
    return (found[0], found[1]) if all(found) else None


def machine_code(source: str, arch: str) -> str:
    """A source's instructions for one architecture, as the last build compiled it.

    source: such as "gemv.cu". arch: such as "90". Raises LookupError: no disassembler.
    """
    tools = disassembler()
    if not tools:
        raise LookupError("no cuobjdump and nvdisasm: tools/build_cuda --tools brings them")
    cuobjdump, nvdisasm = tools
    path = os.pathsep.join([os.path.dirname(nvdisasm), os.environ.get("PATH", "")])
    done = subprocess.run(
        [cuobjdump, "-sass", "-arch", f"sm_{arch}", LOGS / f"{source}.o"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    if done.returncode:
        raise SystemExit(f"cuobjdump: {done.stderr.strip()}")
    return done.stdout


def _bodies(instructions: Sequence[tuple[int, str]]) -> list[list[str]]:
    """The loops of a kernel: their instructions, from where a jump back leads to the jump.

    instructions: (address, text) of a kernel.
    """
    at = {address: i for i, (address, _) in enumerate(instructions)}
    found = []
    for i, (address, text) in enumerate(instructions):
        target = re.search(r"\bBRA.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            found.append([text for _, text in instructions[at[int(target[1], 16)] : i + 1]])
    return found


def _kernels_of(source: str, arch: str) -> list[tuple[str, list[tuple[int, str]]]]:
    """(name, [(address, instruction)]) of a source's kernels."""
    found = []
    for part in machine_code(source, arch).split("Function : ")[1:]:
        code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", part)
        found.append((readable(part.split()[0]), [(int(at, 16), text) for at, text in code]))
    return found


def _count(pattern: str, instructions: Iterable[str]) -> int:
    return sum(bool(re.search(pattern, text)) for text in instructions)


def loops(arch: str) -> list[Loop]:
    """The loops of all GEMV kernels of a build for one architecture. Raises LookupError."""
    found = []
    for name, instructions in _kernels_of("gemv.cu", arch):
        # that which reads weights: past the first cache
        bodies = [b for b in _bodies(instructions) if _count(r"LDG\.E\.NA.*\.128", b)]
        body = min(bodies, key=len, default=[])
        local = _count(r"\b(LDL|STL)\b", (text for _, text in instructions))
        counts = (_count(pattern, body) for pattern in (ALU, MULTIPLIED, r"LDG.*\.128"))
        found.append(Loop(name, len(body), *counts, local))
    return sorted(found, key=lambda loop: loop.kernel)


def tensor_loops(arch: str) -> list[TensorLoop]:
    """The loops of all kernels for tensor cores of a build. Raises LookupError."""
    found = []
    for source in ("gemm.cu", "rows_gemm.cu", "attention_many.cu"):
        for name, instructions in _kernels_of(source, arch):
            body = max(_bodies(instructions), key=lambda body: _count("HMMA", body))
            found.append(
                TensorLoop(
                    name,
                    len(body),
                    _count("HMMA", body),
                    _count(r"\b(PRMT|LOP3|SHF|IADD3|ISETP|SEL|LEA)\b", body),
                    _count(r"\bLD[GS]\b.*\.128", body),
                    _count(r"\b(LDL|STL)\b", (text for _, text in instructions)),
                )
            )
    return sorted(found, key=lambda loop: loop.kernel)


def _most(kernels: Iterable[Kernel], name: str, field: str) -> int:
    return max(getattr(k, field) for k in kernels if k.name == name)


def tensor_table(arch: str, found: Iterable[TensorLoop]) -> list[str]:
    """Lines of a table of one architecture's loops, Markdown."""
    lines = [
        "",
        f"| tensor cores, sm_{arch} | instructions of a turn | products (HMMA) | others for each |"
        " integer | 16-byte loads | local memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for loop in found:
        others = (loop.instructions - loop.products) / loop.products
        lines.append(
            f"| `{loop.kernel}` | {loop.instructions} | {loop.products} | {others:.1f} |"
            f" {loop.integer} | {loop.wide} | {loop.local} |"
        )
    return lines


def gemv_table(found: dict[str, list[Loop]]) -> list[str]:
    """Lines of a table of the loops of all architectures, Markdown."""
    if not found:
        return []
    heads = " | ".join(f"sm_{arch}" for arch in found)
    shown = "90" if "90" in found else list(found)[-1]
    lines = [
        "",
        f"| GEMV, instructions of a turn | {heads} | sm_{shown}: logic, permutes | products |"
        " cycles | 16-byte loads | local memory |",
        "| --- |" + " --- |" * (len(found) + 5),
    ]
    for same, loop in zip(zip(*found.values(), strict=True), found[shown], strict=True):
        bits, tokens = map(int, re.findall(r"\d+", loop.kernel))
        cells = " | ".join(str(other.instructions) for other in same)
        wide = min(other.wide for other in same)
        local = max(other.local for other in same)
        lines.append(
            f"| gwq{bits}, {tokens} token{'s' if tokens > 1 else ''} | {cells} |"
            f" {loop.alu} | {loop.multiplied} | {loop.cycles} | {wide} | {local} |"
        )
    return lines


def tables(
    kernels: Sequence[Kernel],
    found: dict[str, list[Loop]],
    of_tensor_cores: dict[str, list[TensorLoop]],
) -> str:
    """The page's tables, Markdown; loops by architecture."""
    archs = sorted({k.arch for k in kernels}, key=int)
    lines = [
        "| kernel | " + " | ".join(f"sm_{a}" for a in archs) + " | spills, bytes | shared, bytes |",
        "| --- |" + " --- |" * (len(archs) + 2),
    ]
    for name in sorted({k.name for k in kernels}):
        registers = {k.arch: k.registers for k in kernels if k.name == name}
        cells = [str(registers.get(a, "")) for a in archs]
        cells += [str(_most(kernels, name, field)) for field in ("spills", "shared")]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    lines += gemv_table(found)
    for arch, loops_of_arch in of_tensor_cores.items():
        lines += tensor_table(arch, loops_of_arch)
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Arguments of the study."""
    p = argparse.ArgumentParser(description="Registers and inner loops of the CUDA kernels.")
    p.add_argument("--arch", nargs="*", default=ARCHS, help="such as 80 90 (default: all)")
    return p


def main() -> None:
    """Compile, and print the tables."""
    args = parser().parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        raise SystemExit("no nvcc: tools/build_cuda --tools brings it")
    kernels = compiled(offered(nvcc, args.arch))
    archs = sorted({k.arch for k in kernels}, key=int) if disassembler() else []
    found = {arch: loops(arch) for arch in archs}
    products = {arch: tensor_loops(arch) for arch in ("80", "90") if arch in archs}
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    print(re.search(r"release [\d.]+, \S+", version)[0])
    print(tables(kernels, found, products))
    print(estimate(found))
    try:
        print(beside(found, cpu_counts()))
    except GwqError as e:
        print(f"\nnot beside the CPU's: {e}")


if __name__ == "__main__":
    main()
