"""Wheels: what is in them, the platform that they say they are for, the same bytes anywhere."""

import base64
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from native import wheel as native_wheel
from native.build import machine
from tests.support.paths import LIBRARY, ROOT
from tests.support.wheels import CROSS, build

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.fixture(scope="module", params=["this machine", "aarch64"])
def wheel(request, tmp_path_factory):
    if request.param == "this machine":
        return build(tmp_path_factory.mktemp("wheel"))
    if not shutil.which(CROSS) or machine(CROSS) != "aarch64":
        pytest.skip(f"needs {CROSS} (Debian: gcc-aarch64-linux-gnu)")
    return build(tmp_path_factory.mktemp("cross"), env={"CC": CROSS})


def test_contents(wheel):
    """Library, declarations and calibration text, but no tests, no model and nothing of CUDA."""
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    wanted = ("native/libgwq.so", "native/_abi.py", "data/calibration.txt", "cli.py")
    assert {f"gwq_export/{n}" for n in wanted} <= set(names)
    assert all(n.startswith(("gwq_export/", "gwq_export-")) for n in names)
    assert [n for n in names if n.endswith(".so")] == ["gwq_export/native/libgwq.so"]
    (record,) = (n for n in names if n.endswith(".dist-info/RECORD"))
    rows = [line.split(",") for line in archive.read(record).decode().splitlines()]
    assert {name: (sha, int(size)) for name, sha, size in rows if name != record} == {
        n: (digest(archive.read(n)), len(archive.read(n))) for n in names if n != record
    }


def digest(data):
    text = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={text}"


def test_it_is_for_systems_that_can_load_the_library(wheel, tmp_path):
    """The tag's glibc is the newest that the library asks for, as binutils reads it."""
    tag = re.fullmatch(r"gwq_export-[\d.]+-py3-none-manylinux_2_(\d+)_(\w+)\.whl", wheel.name)
    assert tag is not None, wheel.name
    library = zipfile.ZipFile(wheel).extract("gwq_export/native/libgwq.so", tmp_path)
    assert Path(library).read_bytes()[18] == ELF_MACHINES[tag[2]]
    read = ["readelf", "--wide", "--version-info", "--dynamic", library]
    text = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert max(int(v) for v in re.findall(r"Name: GLIBC_2\.(\d+)", text)) == int(tag[1])
    needed = set(re.findall(r"Shared library: \[([^]]+)\]", text))
    assert "libc.so.6" in needed
    assert needed <= {"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1", "ld-linux-x86-64.so.2"}


@pytest.mark.skipif(not importlib.util.find_spec("auditwheel"), reason="needs auditwheel")
def test_auditwheel_agrees(wheel):
    command = [sys.executable, "-m", "auditwheel", "show", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tag = wheel.stem.rpartition("-")[2]
    said = " ".join(done.stdout.split())
    assert f'consistent with the following platform tag: "{tag}"' in said


def test_the_wheel_of_this_machine_runs(tmp_path):
    zipfile.ZipFile(build(tmp_path)).extractall(tmp_path / "installed")
    code = "from gwq_export.native.library import isa; print(isa())"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "GWQ_ISA": "scalar"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "scalar\n", done.stderr


def test_the_same_bytes_wherever_it_is_built(tmp_path):
    """Another folder, time zone, umask, and what a former build left behind."""
    cc = tmp_path / "quick-cc"
    cc.write_text(f'#!/bin/sh\nexec {shutil.which("cc") or "gcc"} "$@" -O0\n')
    cc.chmod(0o755)
    wheels = []
    for name, zone, umask in (("one", "UTC", 0o22), ("another folder", "Asia/Tokyo", 0o77)):
        folder = tmp_path / name
        for part in ("native", "gwq_export"):
            ignored = shutil.ignore_patterns("build", "*.so", "_abi.py", "__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        for part in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, folder)
        if wheels:
            built = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            left = folder / "build" / built / "gwq_export" / "native"
            left.mkdir(parents=True)
            shutil.copy(LIBRARY, left / "libgwq_cuda.so")
            (left / "module.py").write_text("")
        env = {"CC": str(cc), "TZ": zone}
        wheels.append(build(tmp_path / f"{name} out", folder, env=env, umask=umask))
    assert wheels[0].name == wheels[1].name
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_members_are_sorted_and_bear_one_time(wheel, tmp_path):
    copy = Path(shutil.copy(wheel, tmp_path))
    native_wheel.normalize(copy)
    assert copy.read_bytes() == wheel.read_bytes()  # as the build had done it
    native_wheel.normalize(copy, 1_700_000_000)
    members = zipfile.ZipFile(copy).infolist()
    assert {m.date_time for m in members} == {(2023, 11, 14, 22, 13, 20)}
    assert members[-1].filename.endswith(".dist-info/RECORD")
    inside = [m.filename for m in members if ".dist-info/" not in m.filename]
    assert inside == sorted(inside) == [m.filename for m in members[: len(inside)]]
    modes = {m.filename.endswith(".so"): oct(m.external_attr >> 16) for m in members}
    assert modes == {True: "0o100755", False: "0o100644"}


@pytest.fixture
def compiled(tmp_path):
    """compiled(name, text, *flags) -> a shared library."""

    def make(name, text, *flags, cc="cc"):
        source, library = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(text)
        subprocess.run([cc, "-shared", "-fPIC", source, "-o", library, *flags], check=True)
        return library

    return make


def test_platforms_of_other_libraries(compiled, tmp_path):
    """Only glibc's own libraries and versions make a manylinux wheel."""
    plain = compiled("plain", "int f(void) { return 1; }", "-nostdlib")
    here = machine("cc")
    oldest = {"x86_64": 5, "aarch64": 17}[here]
    tag = native_wheel.platform_tag
    assert tag([plain], "x") == f"manylinux_2_{oldest}_{here}"
    memcpy = compiled("memory", "void *memcpy(); void *f(void *p) { return memcpy(p, p, 9); }")
    newer = {"x86_64": 14, "aarch64": 17}[here]  # memcpy@GLIBC_2.14
    assert tag([plain, memcpy], "x") == f"manylinux_2_{newer}_{here}"
    stranger = compiled("stranger", "int f(void); int g(void) { return f(); }", plain)
    assert native_wheel.needs(stranger).libraries & {str(plain), plain.name}
    assert tag([memcpy, stranger], "x") == f"linux_{here}"
    musl = compiled("musl", "int f(void) { return 1; }", "-nostdlib", "-Wl,-soname,libc.musl-a.so")
    on_musl = compiled("on_musl", "int f(void); int g(void) { return f(); }", "-nostdlib", musl)
    assert tag([on_musl], "x") == "x"
    text = tmp_path / "text.so"
    text.write_text("no library")
    assert tag([text], "x") == tag([plain, text], "x") == tag([], "x") == "x"


def test_libraries_of_two_machines_are_refused(compiled):
    if not shutil.which(CROSS) or machine("cc") == "aarch64":
        pytest.skip(f"needs {CROSS} on another machine")
    two = [compiled(cc, "int f(void) { return 1; }", cc=cc) for cc in ("cc", CROSS)]
    with pytest.raises(SystemExit, match="several machines"):
        native_wheel.platform_tag(two, "x")
