"""studies/compare without llama.cpp's library; tests/peers/test_ggml_types.py has the rest."""

import re
import subprocess
import sys

import pytest

from gwq_export import GwqError
from studies.text_halves import halves
from tests.support.paths import DATA, ROOT


def test_halves_are_the_whole_text_cut_at_a_line(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\ntwo\nthree\nfour\n")
    assert [p.read_text() for p in halves(path)] == ["one\ntwo\nthree", "\nfour\n"]
    path.write_text("no line ends here")
    with pytest.raises(GwqError, match="no place to cut"):
        halves(path)


def test_the_halves_take_the_place_of_two_files(tmp_path):
    both = tmp_path / "both.txt"
    both.write_text((DATA / "eval.txt").read_text()[:20000])
    calib, text = halves(both)
    options = ["--ctx", "64", "--samples", "2", "--windows", "4", "--types", "", "--bpw", "4"]

    def rows(*given):
        done = subprocess.run(
            [sys.executable, "-m", "studies.compare", *options, *given],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        wanted = r"float32 perplexity \S+|^\| \*\*gwq-export\*\* \(.*|^\| [\d.]+ \|.*"
        return re.findall(wanted, done.stdout, re.M)

    found = rows("--halves", both)
    _, row, predicted = found
    bits, divergence = (row.split(" | ")[i] for i in (1, 3))
    assert predicted.startswith(f"| {bits} | ")
    assert predicted.endswith(f" | {divergence.split()[0]} |")
    assert found == rows("--calib", calib, "--text", text) != rows("--calib", text, "--text", calib)
