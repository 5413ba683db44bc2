"""What an export knows before the first gradient."""

import json
from types import SimpleNamespace

import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.compute.results import IDENTITY, Memory
from gwq_export.compute.scratch import Scratch
from gwq_export.pipeline.job import prepare
from gwq_export.pipeline.options import ExportOptions
from gwq_export.pipeline.statistics_store import store_bytes

SMALL = {"type": "gwq4", "samples": 1, "ctx": 16}


def test_a_work_folder_of_another_version_is_refused(tmp_path, tiny, calib):
    """Of an older layout, whose names of results are others, and of any other version."""
    model, work, out = tiny("llama"), tmp_path / "work", tmp_path / "m.gguf"
    identity = prepare(model, out, ExportOptions(calib=calib, **SMALL))._identity()
    options, versions = identity["options"], identity["versions"]
    flat = {k: v for k, v in identity.items() if k != "options"} | options
    older = flat | {"versions": {k: v for k, v in versions.items() if k != "work folder"}}
    newer = identity | {"versions": versions | {"work folder": versions["work folder"] + 1}}
    work.mkdir()
    for other in (older, newer):
        text = json.dumps(other, indent=1, sort_keys=True, default=str)
        (work / IDENTITY).write_text(text)
        with pytest.raises(GwqError, match="holds the work of another export") as e:
            gwq_export.export(model, out, work_dir=work, calib=calib, **SMALL)
        assert "\n" not in str(e.value) and (work / IDENTITY).read_text() == text
    (work / IDENTITY).write_text(json.dumps(identity, indent=1, sort_keys=True, default=str))
    gwq_export.export(model, out, work_dir=work, calib=calib, **SMALL)
    assert out.exists() and not list(work.iterdir())


def test_hidden_states_wait_on_the_disk(tmp_path, tiny, calib, monkeypatch):
    """Of every export, unless file, statistics and states together do not fit on it."""
    job = prepare(tiny("llama"), tmp_path / "m.gguf", ExportOptions(calib=calib, samples=1, ctx=16))
    layers, dim = job.source.layers, job.source.dims["dim"]
    assert job.states_bytes == (layers + 4) * 16 * dim * 4
    needed = job.states_bytes + job.budget + store_bytes(job.plans)
    for spare, kind in ((1, Scratch), (0, Memory)):
        usage = SimpleNamespace(free=needed + spare)
        monkeypatch.setattr("shutil.disk_usage", lambda place, usage=usage: usage)
        with job.open_work() as work:
            assert type(work) is kind


@pytest.mark.parametrize("options", [{"type": "gwq2", "tune": 2}, {"bpw": 5.0}])
def test_files_do_not_depend_on_where_results_wait(tmp_path, tiny, calib, monkeypatch, options):
    """Every result on the disk, or every one in memory."""
    files = []
    out = tmp_path / "m.gguf"
    for small in (-1, 1 << 40):
        monkeypatch.setattr("gwq_export.compute.scratch.SMALL", small)
        kept = {"samples": 5, "ctx": 16, "imatrix": tmp_path / "imatrix.gguf"} | options
        gwq_export.export(tiny("llama"), out, calib=calib, **kept)
        files.append((out.read_bytes(), (tmp_path / "imatrix.gguf").read_bytes()))
    assert files[0] == files[1] and len(list(tmp_path.iterdir())) == 2


def test_options_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(GwqError, match="--saliency wishes: choose one of"):
        prepare("/no/such/model", tmp_path / "m.gguf", ExportOptions(saliency="wishes"))
    with pytest.raises(GwqError, match="no such folder"):
        prepare("/no/such/model", tmp_path / "m.gguf", ExportOptions())


def test_the_context_is_cut_to_the_models(tmp_path, tiny, calib, caplog):
    job = prepare(tiny("llama"), tmp_path / "m.gguf", ExportOptions(ctx=10**6, calib=calib))
    assert job.calibration.tokens.shape[1] == 256
    assert "--ctx 1000000 is longer" in caplog.text and "cut to 256" in caplog.text
    caplog.clear()
    job = prepare(tiny("llama"), tmp_path / "m.gguf", ExportOptions(calib=calib))
    assert job.calibration.tokens.shape[1] == 256 and "--ctx" not in caplog.text


def test_the_layout_is_the_file(tmp_path, tiny, calib):
    """Tensors, types and size as they were foretold."""
    out = tmp_path / "m.gguf"
    job = prepare(tiny("llama3-rope"), out, ExportOptions(calib=calib, **SMALL))
    gwq_export.export(tiny("llama3-rope"), out, calib=calib, **SMALL)
    tensors = gwq_export.open_gguf(out).tensors
    assert [(t.name, t.type, t.shape) for t in tensors.values()] == job.layout()
    assert job.file_bytes() == out.stat().st_size and "rope_freqs.weight" in tensors
