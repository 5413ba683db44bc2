"""The comparison of two checkouts sees what differs, and times the checkout that it says."""

import shutil

import pytest

from gwq_export.bench.cases import Case
from gwq_export.bench.contender import Contender
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from studies import compare_checkouts
from studies.compare_kernels import compare_kernels, varied
from tests.support.paths import ROOT


@pytest.fixture
def checkout(tmp_path):
    """checkout({file of the package: (old text, new text)}) -> a copy of it with these changes."""

    def make(changes):
        package = shutil.copytree(ROOT / "gwq_export", tmp_path / "copy" / "gwq_export")
        for name, (old, new) in changes.items():
            text = (package / name).read_text(encoding="utf-8")
            assert old in text
            (package / name).write_text(text.replace(old, new), encoding="utf-8")
        return package.parent

    return make


def test_keys_go_by_the_first_element_of_a_list():
    value = {"a": 1, "rows": [{"b": {"c": 2}}, {"d": 3}], "none": []}
    assert compare_checkouts.keys(value) == {"a", "rows", "rows.[].b", "rows.[].b.c", "none"}


@pytest.mark.parametrize(
    "changes, differing",
    [
        ({}, []),
        ({"pipeline/provenance.py": ('"f16": 1,', '"f16": 2,')}, ["f16"]),
        ({"pipeline/run.py": ('{"out": str', '{"more": 1, "out": str')}, ["f16, keys of --json"]),
        ({"pipeline/checks.py": ("out is None and", "False and")}, ["export "]),
    ],
)
def test_what_differs_is_said(checkout, changes, differing, monkeypatch, capsys):
    monkeypatch.setattr(compare_checkouts, "EXPORTS", {"f16": ("bundled", ["--type", "f16"])})
    monkeypatch.setattr(compare_checkouts, "OTHERS", {})
    monkeypatch.setattr(compare_checkouts, "BAD", [["export", str(compare_checkouts.MODEL)]])
    assert compare_checkouts.compare(checkout(changes), quick=False) == len(differing)
    lines = capsys.readouterr().out.splitlines()
    found = [line.split(maxsplit=1)[1] for line in lines if line.startswith("DIFFERENT")]
    assert len(found) == len(differing)
    assert all(line.startswith(start) for line, start in zip(found, differing, strict=True))


def test_a_contender_runs_the_other_checkout(checkout, exported):
    path, _ = exported(type="gwq4")
    other = checkout({"version.py": ('__version__ = "', '__version__ = "9.')})
    contender = Contender("gwq", Reader(path), 1, 9, other)
    try:
        assert contender.facts["version"].startswith("9.") and contender.run(4, 2)[1] > 0
    finally:
        contender.close()


GEMV = Case("gemv", "gwq4", (64, 256), 1)
ADD = Case("add", "f32", (8, 256), 8)


@pytest.mark.parametrize("factor, slower, between", [(3, 0, (2, 5)), (1 / 3, 2, (0.2, 0.5))])
def test_kernels_of_both_are_timed(checkout, factor, slower, between, capsys):
    taken = "return (time.perf_counter() - start) / count"
    other = checkout({"bench/kernels.py": (taken, f"{taken} * {factor}")})
    assert compare_kernels(other, [GEMV, ADD], 1, 3, 1 << 16) == slower
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    head, _, *rows = rows
    assert [row[:4] for row in rows] == [
        ["gemv", "gwq4", "64x256", "1"],
        ["add", "f32", "8x256", "8"],
    ]
    for row in rows:
        low, high = between
        assert low < float(row[head.index("times as fast")]) < high


def test_an_operation_that_one_of_them_lacks_is_left_out(checkout, capsys):
    other = checkout({"bench/cases.py": ('    "add": add,\n', "")})
    assert compare_kernels(other, [ADD, GEMV], 1, 3, 1 << 16) <= 1
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| gemv"]


def test_kernels_of_a_checkout_that_fails_are_an_error(checkout):
    other = checkout({"bench/kernels.py": ("def sample(", "def no_sample(")})
    with pytest.raises(GwqError, match=r"(?s)the kernels of .*copy ended .*sample"):
        compare_kernels(other, [GEMV], 1, 3, 1 << 16)


def test_cases_with_other_tokens_and_outliers():
    prompt = Case("gemm", "gwq4", (64, 256), 8, 0.01)
    plain = Case("gemv", "f16", (64, 256), 1)
    made = varied([GEMV, prompt, plain, ADD], [1, 4], [0.0, 0.0025])
    assert made == [
        *(
            Case("gemm" if n > 1 else "gemv", "gwq4", (64, 256), n, share)
            for n in (1, 4)
            for share in (0.0, 0.0025)
        ),
        plain,
        Case("gemm", "f16", (64, 256), 4),
        ADD,
    ]
    assert varied([GEMV, prompt, ADD], None, None) == [GEMV, prompt, ADD]
