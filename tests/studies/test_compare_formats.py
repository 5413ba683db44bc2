"""studies/compare_formats: the proposal's kernels, from the history, beside the format's."""

import re
import shutil
import subprocess
import sys

import pytest

from gwq_export.native.library import isas
from tests.support.paths import ROOT

COMMAND = [sys.executable, "-m", "studies.compare_formats"]


@pytest.fixture(autouse=True)
def history():
    if subprocess.run(
        ["git", "-C", ROOT, "cat-file", "-e", "85e5f43"], capture_output=True
    ).returncode:
        pytest.skip("the proposal's commit is not in this clone")


def test_compares_the_two_formats():
    command = [*COMMAND, "--threads", "1", "--rounds", "3", "--working-set", "1"]
    out = subprocess.run(
        [*command, "--isa", "avx2"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    rows = re.findall(
        r"^\| avx2 \| (gwq[234]) \| (\S+ x \S+) \| 1 \| ([\d.]+) \[.*\] \| ([\d.]+) \[", out, re.M
    )
    if "avx2" not in isas():
        assert not rows
        return
    assert [row[:2] for row in rows] == [
        (t, s) for s in ("2048 x 2048", "4096 x 11008") for t in ("gwq4", "gwq3", "gwq2")
    ]
    for type, _, data, weights in rows:
        bytes_ratio, weights_ratio = float(data), float(weights)
        assert 0.1 < bytes_ratio < 10
        if type == "gwq4":  # 4.65 bits for each weight beside 4.52
            assert 0.9 * bytes_ratio < weights_ratio <= bytes_ratio
        else:  # fewer bits than the proposal had
            assert bytes_ratio <= weights_ratio < 1.1 * bytes_ratio


@pytest.mark.skipif(
    not shutil.which("llvm-mca") or "avx2" not in isas(),
    reason="needs llvm-mca (Debian: llvm), and a compiler for x86",
)
def test_predicts_cycles_of_cpus_that_are_not_at_hand():
    out = subprocess.run(
        [*COMMAND, "--predict", "cascadelake"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["cascadelake", "avx512", t] for t in ("gwq4", "gwq3", "gwq2")
    ]
    for *_, name, own, proposed, speed, plain in rows:
        # 16 products of 64 bytes, one a cycle; the format has a table besides
        assert 16 <= int(proposed) < int(own) < 160
        sizes = {"gwq4": (560, 544), "gwq3": (408, 416), "gwq2": (280, 288)}[name]
        for size, taken, found in zip(sizes, (own, proposed), (speed, plain), strict=True):
            assert abs(size / int(taken) - float(found)) < 0.03 * float(found)


def test_predicting_without_the_tool_says_what_to_install(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--predict"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": path_without_llvm(tmp_path)},
    )
    assert done.returncode == 1
    assert "apt-get install llvm" in done.stderr
    assert "Traceback" not in done.stderr


def path_without_llvm(folder):
    for name in ("git", "gcc", "as"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)
