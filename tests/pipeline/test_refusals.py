"""What cannot come right is refused before anything is calibrated."""

import os

import pytest

import gwq_export
from gwq_export import GwqError
from tests.support.cli import assert_one_line, call
from tests.support.paths import REFERENCE

SMALL = {"samples": 1, "ctx": 32}


@pytest.fixture(autouse=True)
def nothing_is_calibrated(monkeypatch):
    monkeypatch.setattr("gwq_export.calibration.gradients.BlockModel", None)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"bpw": 1}, "too small: the smallest file takes"),
        ({"size": 10}, "too small"),
        ({"size": "10"}, "too small"),
        ({"bpw": 40}, r"larger than the model in F16 .* --type f16"),
        ({"size": "1GiB"}, "larger than the model in F16"),
        ({"bpw": 3, "exclude": "."}, "too small"),  # everything stays F16
        ({"bpw": 9, "tensor_type": ".=gwq2"}, "larger than"),
        ({"bpw": 2.75, "outliers": 0.05}, "too small"),
        ({"max_kld": 0}, "--max-kld 0"),
        ({"max_kld": float("nan")}, "--max-kld nan"),
        ({"threads": 0}, "--threads 0"),
        ({"dry_run": True, "imatrix": "i.gguf"}, "--dry-run writes nothing"),
    ],
)
def test_impossible_wishes(tmp_path, options, words):
    with pytest.raises(GwqError, match=words):
        gwq_export.export(REFERENCE, tmp_path / "m.gguf", **SMALL | options)
    assert not list(tmp_path.iterdir())


def test_the_bounds_are_those_of_the_choice(tiny, tmp_path, calib, monkeypatch):
    """What is refused early is what the choice itself would refuse: the smallest can be made."""
    monkeypatch.undo()
    model, out = tiny("llama"), tmp_path / "m.gguf"
    options = {"calib": calib, "samples": 1, "ctx": 32, "outliers": 0.0}
    with pytest.raises(GwqError) as e:
        gwq_export.export(model, out, size=10, **options)
    smallest = int(str(e.value).partition("file takes ")[2].split()[0])
    made = gwq_export.export(model, out, size=smallest, **options)
    assert made["bytes"] == smallest == out.stat().st_size
    with pytest.raises(GwqError, match="too small"):
        gwq_export.export(model, out, size=smallest - 1, **options)
    largest = gwq_export.export(model, out, type="f16")["bytes"]
    with pytest.raises(GwqError, match="larger than the model in F16"):
        gwq_export.export(model, out, size=int(largest * 1.02), **options)


OUTPUTS = ["out", "imatrix", "report", "card"]


def options_with(path, name, tmp_path):
    """(out, options) of an export that writes to `path` what `name` says."""
    given = {name: path} if name != "out" else {}
    return path if name == "out" else tmp_path / "m.gguf", given


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "kind", ["folder", "no folder", "device", "long", "forbidden", "in a file"]
)
def test_unusable_outputs(tmp_path, monkeypatch, name, kind):
    (tmp_path / "file").write_text("x")
    path = {
        "folder": tmp_path,
        "no folder": tmp_path / "none" / "x",
        "device": os.devnull,
        "long": tmp_path / ("x" * 255),
        "forbidden": tmp_path / "closed",
        "in a file": tmp_path / "file" / "x",
    }[kind]
    if kind == "forbidden":  # as for a user without rights, which root never is
        real = os.open

        def denied(name, flags, *mode, **rest):
            if os.fspath(name) == f"{path}.part":
                raise PermissionError(13, "Permission denied", name)
            return real(name, flags, *mode, **rest)

        monkeypatch.setattr(os, "open", denied)
    out, given = options_with(path, name, tmp_path)
    with pytest.raises(GwqError, match=f"^--{name} .*(choose another name|the name of a file)"):
        gwq_export.export(REFERENCE, out, **SMALL | given)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_something_else(tmp_path, name):
    """An input, or another output of the same export."""
    for other in ("calib", "verify_text", "base"):
        (tmp_path / "x").write_text("text")
        out, given = options_with(tmp_path / "x", name, tmp_path)
        with pytest.raises(GwqError, match=f"--{name} .*x: that is the file of --"):
            gwq_export.export(REFERENCE, out, **{other: tmp_path / "." / "x"} | given)
        assert (tmp_path / "x").read_text() == "text"
    for other in set(OUTPUTS) - {name, "out"}:
        out, given = options_with(tmp_path / "y", name, tmp_path)
        with pytest.raises(GwqError, match="that is the file of --"):
            gwq_export.export(REFERENCE, out, **{other: tmp_path / "y"} | given)


def test_a_leftover_of_another_run_is_not_touched(tmp_path):
    (tmp_path / "m.gguf.part").write_text("half")
    with pytest.raises(GwqError, match="too small"):
        gwq_export.export(REFERENCE, tmp_path / "m.gguf", size=10)
    assert (tmp_path / "m.gguf.part").read_text() == "half"


def test_work_folders(tmp_path):
    for folder, words in [
        (tmp_path / "none" / "work", "cannot write --work-dir"),
        (REFERENCE / "config.json", "cannot write --work-dir"),
        (REFERENCE, "not an export's work"),
    ]:
        with pytest.raises(GwqError, match=words):
            gwq_export.export(REFERENCE, tmp_path / "m.gguf", work_dir=folder, **SMALL)


def test_a_full_disk(tmp_path, monkeypatch):
    """Also for what lies beside the model."""
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(GwqError, match=r"m.gguf and .*i.gguf need \d+ bytes and 1000 are free"):
        gwq_export.export(REFERENCE, tmp_path / "m.gguf", imatrix=tmp_path / "i.gguf", **SMALL)


def test_a_base_alone(capsys):
    status, _, err = call(capsys, "export", "--base", "model.gguf", "--out", "x.gguf")
    assert_one_line("export", status, err, "gwq-export model.gguf without --base")
    status, _, err = call(capsys, "export", "--out", "x.gguf")
    assert_one_line("export", status, err, "MODEL is missing")
