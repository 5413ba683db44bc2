"""tools/compare_formats: the proposal's kernels, from the history, beside the format's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gwq_export.native import isas

ROOT = Path(__file__).parents[1]


def test_compares_the_two_formats():
    if subprocess.run(["git", "-C", ROOT, "cat-file", "-e", "85e5f43"], capture_output=True).returncode:
        pytest.skip("the proposal's commit is not in this clone")
    command = [sys.executable, ROOT / "tools" / "compare_formats.py", "--threads", "1", "--rounds", "3", "--working-set", "1"]
    out = subprocess.run([*command, "--isa", "avx2"], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^\| avx2 \| (gwq[234]) \| (\S+ x \S+) \| 1 \| ([\d.]+) \[.*\] \| ([\d.]+) \[", out, re.M)
    if "avx2" not in isas():
        assert not rows
        return
    assert [row[:2] for row in rows] == [(t, s) for s in ("2048 x 2048", "4096 x 11008") for t in ("gwq4", "gwq3", "gwq2")]
    for type, _, data, weights in rows:
        bytes_ratio, weights_ratio = float(data), float(weights)
        assert 0.1 < bytes_ratio < 10
        if type == "gwq4":  # 4.65 bits for each weight beside 4.52
            assert 0.9 * bytes_ratio < weights_ratio <= bytes_ratio
        else:  # fewer bits than the proposal had
            assert bytes_ratio <= weights_ratio < 1.1 * bytes_ratio
