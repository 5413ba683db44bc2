"""The install on arm64, in an emulated Debian: from a wheel or from source; prints tables.

    python -m tests.support.arm64_check WHEEL [--model FILE.gguf] [--source]

Run by tools/check_arm64. It checks that pip installs it, that each CPU gets its instruction set,
and that every one writes the text that this machine writes. Seconds are those of an emulator: they
show where time goes, and say nothing about a device.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gwq_export.machine import cpu_name
from tests.support import arm64
from tests.support.paths import REFERENCE, ROOT
from tests.support.random_llama import LLAMA_1B, write_llama

# CPU of the emulator -> the instruction set that it gets, and who has such cores
CPUS = {
    "cortex-a53": ("neon", "Raspberry Pi 3, phones"),
    "cortex-a72": ("neon", "Raspberry Pi 4"),
    "cortex-a76": ("dotprod", "Raspberry Pi 5"),
    "max": ("i8mm", "newer cores"),
}
PI = "cortex-a72"  # of which figures are printed
PROMPT = "The city"
TOKENS = 48
RUNS = 5
PARTS = ("native", "gwq_export", "pyproject.toml", "README.md", "LICENSE")  # of a source install
INSTALL = 'python3 -m venv /tmp/env && exec /tmp/env/bin/pip install -q --no-index -f /files "$1"'
# Resident memory at most: of the imports alone, or of a token, too
IMPORTS = """
import sys
import cffi, jinja2.sandbox, numpy, tokenizers
import gwq_export.runtime.model
from gwq_export import cli, machine
status = cli.main("run", sys.argv[1:] + ["-n", "1"]) if len(sys.argv) > 1 else 0
print(machine.peak_rss())
sys.exit(status)
"""

LOGITS = """
import sys
import gwq_export
from gwq_export import machine
gwq_export.load(sys.argv[1]).logits([1, 2, 3, 4])
print(machine.peak_rss())
"""

Run = Callable[[Sequence[str]], str]  # a command of Python and its arguments -> its output


def said(command: Sequence[str]) -> str:
    """What this machine's Python says. Raises CalledProcessError."""
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def last_line(text: str) -> dict[str, Any]:
    """The object that --json prints."""
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return result


def run_arguments(model: str) -> list[str]:
    """A run from the prompt, greedy, of TOKENS tokens."""
    return ["-m", "gwq_export.cli", "run", model, "-p", PROMPT, "-n", str(TOKENS), "--json"]


def seconds(run: Run, command: Sequence[str]) -> float:
    """Median time from the start of a process to its end."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run(command)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def figures(run: Run, model: str, large: str) -> dict[str, str]:
    """What a start takes: seconds, and memory in MiB. large: a file without a tokenizer."""
    first = ["-m", "gwq_export.cli", "run", model, "-p", PROMPT, "-n", "1"]
    commands = {
        "Python alone, s": ["-c", ""],
        "`import gwq_export`, s": ["-c", "import gwq_export"],
        "`import numpy`, s": ["-c", "import numpy"],
        "`gwq-run` to the first token, s": first,
    }
    found = {name: f"{seconds(run, command):.2f}" for name, command in commands.items()}
    memory = {
        "imports alone": [IMPORTS],
        "first token": [IMPORTS, model, "-p", PROMPT],
        "logits of four tokens of a larger file": [LOGITS, large],
    }
    for name, arguments in memory.items():
        peak = int(run(["-c", *arguments]).splitlines()[-1])
        found[f"memory at most, {name}, MiB"] = f"{peak / 2**20:.1f}"
    return found


def install(what: str, tmp: Path) -> float:
    """Make /tmp/env in the emulated Debian and let its pip install there; returns seconds."""
    start = time.perf_counter()
    arm64.run(["sh", "-c", INSTALL, "sh", what], tmp=tmp)
    return time.perf_counter() - start


def source_of_commit(folder: Path) -> None:
    """What a source install takes of the last commit."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD", *PARTS], cwd=ROOT, capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Check the install on an emulated arm64 Debian.")
    parser.add_argument("wheel", type=Path, help="for aarch64, from tools/build_wheel")
    parser.add_argument("--model", type=Path, help="GGUF file (default: the bundled model's)")
    parser.add_argument(
        "--source", action="store_true", help="install from source, by the emulated C compiler"
    )
    args = parser.parse_args(argv)
    try:
        arm64.fetch()
    except subprocess.CalledProcessError as e:
        raise SystemExit(f"tools/check_arm64: {e}\n{e.stderr or ''}".rstrip()) from None
    if why := arm64.missing():
        raise SystemExit(f"tools/check_arm64: {why}")
    with tempfile.TemporaryDirectory() as name:
        return check(args.wheel, args.model, args.source, Path(name))


def emulated(tmp: Path, cpu: str) -> Run:
    """The Python of /tmp/env there."""
    return lambda command: arm64.run(["/tmp/env/bin/python", *command], cpu, tmp=tmp).stdout


def check_cpus(tmp: Path, text: str) -> bool:
    """Print what each CPU makes of the installed package; whether all is as it should be."""
    right = True
    print("| CPU of the emulator | of | instruction set | the text of this machine |")
    print("| --- | --- | --- | --- |")
    for cpu, (wanted, devices) in CPUS.items():
        run = emulated(tmp, cpu)
        found = last_line(run(["-m", "gwq_export.cli", "info", "--devices", "--json"]))
        isa = found["cpu"]["isa"]
        same = last_line(run(run_arguments("/tmp/model.gguf")))["text"] == text
        right &= isa == wanted and same
        note = "" if isa == wanted else f", not {wanted}"
        print(f"| {cpu} | {devices} | {isa}{note} | {'yes' if same else 'NO'} |")
    return right


def check(wheel: Path, model: Path | None, source: bool, tmp: Path) -> int:
    """Install, run, print; returns the exit status. tmp: an empty folder, /tmp of the emulation."""
    file = tmp / "model.gguf"
    if model is not None:
        shutil.copy(model, file)
    else:
        import gwq_export

        gwq_export.export(REFERENCE, file, type="gwq4", samples=4, ctx=256)
    text = last_line(said(run_arguments(str(file))))["text"]
    shutil.copy(wheel, tmp)
    kinds = {f"{wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB": f"/tmp/{wheel.name}"}
    if source:
        source_of_commit(tmp / "source")
        kinds["the source, by the emulated C compiler"] = "/tmp/source"
    right = True
    for name, what in kinds.items():
        shutil.rmtree(tmp / "env", ignore_errors=True)
        print(f"pip install of {name}: {install(what, tmp):.0f} s, emulated\n", flush=True)
        right &= check_cpus(tmp, text)
        print()
    large = tmp / "large.gguf"
    write_llama(large, LLAMA_1B, 4, "gwq4", 0.0025)
    here = figures(said, str(file), str(large))
    there = figures(emulated(tmp, PI), "/tmp/model.gguf", "/tmp/large.gguf")
    sizes = [f"{path.stat().st_size / 2**20:.1f} MiB" for path in (file, large)]
    print(f"A file of {sizes[0]}, a larger one of {sizes[1]}; medians of {RUNS} starts:\n")
    print(f"| | {cpu_name()} | {PI}, emulated on it |\n| --- | --- | --- |")
    for name, figure in here.items():
        print(f"| {name} | {figure} | {there[name]} |")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
