"""The native build: exported names, stale libraries, other CPUs, sanitizers."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from native import build as native_build
from tests.support.kernel_cases import empty, make, many, none, random
from tests.support.paths import NATIVE, ROOT

CHECK = ROOT / "tests" / "native" / "native_check.c"
LIBRARY = ROOT / "gwq_export" / "native" / "libgwq.so"


def python(code, package, **env):
    """Run code with the package copied to another place."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package.parent)} | env,
    )


@pytest.fixture
def package(tmp_path):
    return Path(
        shutil.copytree(
            ROOT / "gwq_export",
            tmp_path / "gwq_export",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    )


def test_stale_and_missing_libraries_name_the_command(package):
    load = """
from gwq_export import GwqError
from gwq_export.native.library import lib
try:
    lib()
except GwqError as e:
    print(e)
else:
    print("ok")
"""
    assert python(load, package).stdout == "ok\n"
    with open(package / "native/_abi.py", "a") as f:
        f.write("HASH = 'of newer ones'\n")
    assert (
        "other headers: build it again with `python native/build.py`"
        in python(load, package).stdout
    )
    (package / "native/libgwq.so").write_bytes(b"no library")
    assert "cannot be opened" in python(load, package).stdout
    (package / "native/libgwq.so").unlink()
    assert "is missing: build it with `python native/build.py`" in python(load, package).stdout
    (package / "native/_abi.py").unlink()
    assert "python native/build.py" in python("import gwq_export.format.types", package).stderr


def test_only_the_api_is_exported():
    names = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in names.splitlines()}
    headers = "".join(
        (NATIVE / "include" / name).read_text()
        for name in native_build.HEADERS
        if name != "gwq_cuda.h"
    )
    declared = set(re.findall(r"^\w[\w *]*?\b(gwq_\w+)\(", headers, flags=re.M))
    assert exported == declared


def test_the_library_never_prints_or_exits():
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].split("@")[0] for line in undefined.splitlines()}
    assert not names & {
        "abort",
        "exit",
        "_exit",
        "printf",
        "fprintf",
        "puts",
        "perror",
        "__assert_fail",
        "raise",
        "fopen",
        "system",
    }


def test_no_floating_point_shortcuts():
    own_flags = (flags for files, _ in native_build.FOLDERS.values() for flags in files.values())
    flags = " ".join([native_build.CFLAGS, *own_flags])
    assert "-ffp-contract=off" in flags
    for shortcut in ("fast-math", "Ofast", "native"):
        assert shortcut not in flags


def cases():
    """Matrices whose bytes go through another architecture's library."""
    return [
        make(name, *shape, pattern)
        for name in ("gwq2", "gwq3", "gwq4")
        for shape in ((5, 70), (33, 600))
        for pattern in (none, empty, random, many)
    ]


def run_case(binary, launcher, folder, case):
    """Bytes in, weights and products out: equal to numpy's decoder to the bit, products to
    rounding.
    """
    n = 3
    shape = case.shape
    weight = case.full
    x = np.random.default_rng(0).normal(size=(n, shape[1])).astype(np.float32)
    files = [case.data, *(case.outliers or (np.empty(0, np.uint8), np.empty(0, np.int32))), x]
    for i, a in enumerate(files):
        a.tofile(folder / str(i))
    arguments = [
        str(case.type.id),
        *map(str, shape),
        str(n),
        *(str(folder / str(i)) for i in range(4)),
    ]
    done = subprocess.run(
        [*launcher, binary, *arguments],
        capture_output=True,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    out = np.frombuffer(done.stdout, np.float32)
    assert np.array_equal(out[: weight.size].reshape(shape).view(np.uint32), weight.view(np.uint32))
    # at most half a step of max|x| / 127 per input, of max|x| / 32767 for outliers
    most = np.abs(x).max() * (np.abs(case.dense) / 254 + np.abs(case.sparse) / 65534).sum(1)
    bound = most + 1e-6 * np.abs(x) @ np.abs(weight).T
    assert (np.abs(out[weight.size :].reshape(n, -1) - x @ weight.T) <= bound).all()


def compiled_check(cc, flags, folder):
    """The program CHECK with the library, by a compiler with more flags. Returns what linking said.

    It is `folder`/check.
    """
    flags = [*f"{native_build.CFLAGS} {native_build.INCLUDE_FLAGS}".split(), *flags]
    flags.append('-DGWQ_ABI_HASH="x"')
    objects = []
    files = native_build.fitted(native_build.sources(native_build.machine(cc)), cc)
    for source, isa in files.items():
        objects.append(folder / f"{Path(source).name}.o")
        command = [cc, *flags, *isa.split(), "-c", NATIVE / source, "-o", objects[-1]]
        subprocess.run(command, check=True)
    command = [cc, *flags, CHECK, *objects, "-lm", "-pthread", "-o", folder / "check"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    """AddressSanitizer and UBSan, or ThreadSanitizer, over the same cases, which two threads share,
    on the best instruction set here."""
    sanitizers = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    # with ThreadSanitizer and -O1, GCC 12 computes some products of AVX-512 wrongly
    level = "-O2" if sanitizer == "thread" else "-O1"
    linked = compiled_check(shutil.which("cc"), [level, "-g1", *sanitizers], tmp_path)
    if linked.returncode and "san" in linked.stderr:
        pytest.skip("the compiler's sanitizer runtime is not installed")
    assert linked.returncode == 0, linked.stderr
    # some versions of ThreadSanitizer cannot live with addresses as random as newer systems' are
    fixed = [shutil.which("setarch"), "-R"] if sanitizer == "thread" else []
    for case in cases():
        run_case(tmp_path / "check", fixed if all(fixed) else [], tmp_path, case)


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
def test_valgrind_finds_nothing(tmp_path):
    """No byte is used that nothing wrote. Its CPU has AVX2 at most, whatever this one has."""
    linked = compiled_check(shutil.which("cc"), ["-O1", "-g1"], tmp_path)
    assert linked.returncode == 0, linked.stderr
    for case in cases()[::3]:
        run_case(tmp_path / "check", ["valgrind", "-q", "--error-exitcode=9"], tmp_path, case)


def test_one_build_in_a_folder_at_a_time(tmp_path):
    def is_free():
        with open(tmp_path / "lock") as f, contextlib.suppress(BlockingIOError):
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    with native_build._alone(tmp_path):
        assert not is_free()
    assert is_free()


@pytest.mark.skipif(not shutil.which("clang"), reason="needs clang")
def test_clang_compiles_the_same(tmp_path):
    linked = compiled_check("clang", ["-Wno-everything"], tmp_path)
    assert linked.returncode == 0, linked.stderr
    for case in cases():
        run_case(tmp_path / "check", [], tmp_path, case)


def test_a_compiler_that_does_not_know_avx_vnni(tmp_path, monkeypatch):
    """It builds the library, in which no CPU has that row."""
    cc = native_build.compiler(None)
    assert native_build._accepts(cc, "-O2") and not native_build._accepts(cc, "-mno-such-thing")
    files = native_build.sources(native_build.machine(cc))
    if "x86/avxvnni.c" not in files:
        pytest.skip("x86 only")
    monkeypatch.setattr(native_build, "_accepts", lambda cc, flags: False)
    own = native_build.fitted(files, cc)["x86/avxvnni.c"]
    flags = f"{native_build.CFLAGS} {native_build.INCLUDE_FLAGS} {own}".split()
    assert "-mavxvnni" not in flags
    source = NATIVE / "x86" / "avxvnni.c"
    subprocess.run([cc, *flags, "-c", source, "-o", tmp_path / "row.o"], check=True)
