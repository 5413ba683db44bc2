"""The C library on CPUs that are not here, run by QEMU: ARM, and x86 without AVX2.

Two programs compare each instruction set of the emulated CPU with the scalar row (kernels_check.c:
matrices of every type; ops_check.c: everything else), and a third one takes matrices from here
(native_check.c), which numpy decodes too.
"""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from native import build as native_build
from tests.native.test_build import cases, run_case
from tests.support.paths import NATIVE, ROOT

SOURCES = ROOT / "tests" / "native"
COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc", "x86_64": "gcc"}
TIMEOUT = 600  # seconds

# CPU of the emulator -> the rows of dispatch.c that it has, best last
ARM = {
    "cortex-a53": ["neon"],
    "cortex-a72": ["neon"],
    "cortex-a76": ["neon", "dotprod"],
    "neoverse-v1": ["neon", "dotprod", "i8mm"],
    "max": ["neon", "dotprod", "i8mm"],
}
X86 = {"Nehalem": [], "Haswell": ["avx2"]}
# Whose rows are tested elsewhere too: by so many shapes alone
SOME_SHAPES = {"cortex-a72": "3", "Nehalem": "2", "Haswell": "2"}
CPUS = [("aarch64", cpu) for cpu in ARM] + [("x86_64", cpu) for cpu in X86]


@functools.cache
def emulator(target):
    """The emulator of a target, or None."""
    return shutil.which(f"qemu-{target}-static") or shutil.which(f"qemu-{target}")


@functools.cache
def models(target):
    """What the emulator says of the CPUs that it knows."""
    command = [emulator(target), "-cpu", "help"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def emulated(target, cpu):
    """The command that runs a program as on this CPU; skips where it cannot."""
    if not emulator(target):
        pytest.skip(f"needs qemu-{target} (Debian: qemu-user-static)")
    if cpu not in models(target):
        pytest.skip(f"{Path(emulator(target)).name} here does not know {cpu}")
    return [emulator(target), "-cpu", cpu]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """program(target, name) -> the program of name.c for a target, made once."""
    made = {}

    def objects(target):
        cc = COMPILERS[target]
        if not shutil.which(cc) or native_build.machine(cc) != target:
            pytest.skip(f"needs {cc} for {target} (Debian: gcc-aarch64-linux-gnu)")
        folder = tmp_path_factory.mktemp(target)
        library = native_build.build(folder, cc=cc)
        assert library.read_bytes()[18] == {"aarch64": 183, "x86_64": 62}[target]  # ELF machine
        built = NATIVE / "build" / target
        return [built / Path(s).with_suffix(".o") for s in native_build.sources(target)]

    def make(target, name):
        if target not in made:
            made[target] = objects(target)
        if (target, name) not in made:
            path = tmp_path_factory.mktemp("program") / name
            flags = f"-std=gnu11 -O2 -Wall -Wextra -Werror {native_build.INCLUDE_FLAGS}".split()
            command = [COMPILERS[target], *flags, SOURCES / f"{name}.c", *made[target]]
            subprocess.run([*command, "-static", "-lm", "-pthread", "-o", path], check=True)
            made[target, name] = path
        return made[target, name]

    return make


@pytest.mark.parametrize("name", ["kernels_check", "ops_check"])
@pytest.mark.parametrize("target, cpu", CPUS)
def test_every_row_of_a_cpu(program, target, cpu, name):
    """It picks the best row, never takes an illegal instruction, and every row is right."""
    launcher = emulated(target, cpu)
    rows = ["scalar", *{"aarch64": ARM, "x86_64": X86}[target][cpu]]
    some = [SOME_SHAPES[cpu]] if name == "kernels_check" and cpu in SOME_SHAPES else []
    command = [*launcher, program(target, name), *some]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    first, _, wrong = done.stdout.partition("\n")
    assert first == f"rows: {' '.join(rows)}; chosen: {rows[-1]}; float control: 0", done
    assert (done.returncode, wrong) == (0, ""), done


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_arm_decodes_what_numpy_decodes(program, tmp_path, cpu):
    launcher = emulated("aarch64", cpu)
    for case in cases()[:: 1 if cpu == "max" else 3]:
        run_case(program("aarch64", "native_check"), launcher, tmp_path, case)


@pytest.mark.skipif(not shutil.which("clang"), reason="needs clang")
def test_clang_compiles_for_arm(program, tmp_path):
    """Without a warning; its kernels decode the same bits."""
    launcher = emulated("aarch64", "max")
    program("aarch64", "native_check")  # skips where the headers of aarch64 are missing
    cc = "clang --target=aarch64-linux-gnu"
    files = native_build.fitted(native_build.sources("aarch64"), cc)
    flags = f"{native_build.CFLAGS} {native_build.INCLUDE_FLAGS} -O1 -Werror".split()
    objects = []
    for source, own in files.items():
        if not source.startswith("arm/"):
            continue
        objects.append(tmp_path / Path(source).with_suffix(".o").name)
        command = [*cc.split(), *flags, *own.split(), "-c", NATIVE / source, "-o", objects[-1]]
        subprocess.run(command, check=True)
    built = NATIVE / "build" / "aarch64"
    rest = [built / Path(s).with_suffix(".o") for s in files if not s.startswith("arm/")]
    binary = tmp_path / "check"
    command = [COMPILERS["aarch64"], "-O1", *native_build.INCLUDE_FLAGS.split()]
    command += [SOURCES / "native_check.c", *objects, *rest, "-static", "-lm", "-pthread"]
    subprocess.run([*command, "-o", binary], check=True)
    for case in cases()[::3]:
        run_case(binary, launcher, tmp_path, case)


@pytest.mark.parametrize("source", ["dotprod.c", "i8mm.c"])
def test_an_arm_compiler_that_does_not_know_the_instructions(tmp_path, monkeypatch, source):
    """It builds the library, in which no CPU has that row."""
    cc = COMPILERS["aarch64"]
    if not shutil.which(cc):
        pytest.skip(f"needs {cc}")
    monkeypatch.setattr(native_build, "_accepts", lambda cc, flags: False)
    own = native_build.fitted(native_build.sources("aarch64"), cc)[f"arm/{source}"]
    assert "march" not in own
    flags = f"{native_build.CFLAGS} -O1 {native_build.INCLUDE_FLAGS} {own}".split()
    out = tmp_path / "row.o"
    subprocess.run([cc, *flags, "-c", NATIVE / "arm" / source, "-o", out], check=True)
    names = subprocess.run(["nm", "-u", out], capture_output=True, text=True, check=True).stdout
    assert "gwq_arm_has" not in names  # nobody is asked
    assert os.path.getsize(out)
