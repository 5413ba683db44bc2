"""The comparison of two checkouts sees what differs, and times the checkout that it says."""

import shutil

import pytest

from gwq_export.bench.contender import Contender
from gwq_export.format.reader import Reader
from studies import compare_checkouts
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
