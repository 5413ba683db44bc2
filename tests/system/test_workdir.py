"""Exports that go on after a kill: nothing is computed twice, and the file is the same."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.layout import Arrangement
from gwq_export.compute.results import DONE, Workdir
from gwq_export.format.types import TYPES
from gwq_export.pipeline.estimate import Estimate
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.quantization.recipe import Recipe
from tests.support.kills import Killed, killed_after
from tests.support.models import save_tiny


@pytest.fixture
def counted(monkeypatch):
    """Counts, by seed of the recipe (one per tensor) and weight, how often a matrix was quantized
    to the end.
    """
    from gwq_export.pipeline import tensors as produce

    original = produce.quantize
    counts = Counter()

    def count(weight, statistics, recipe, pool):
        parts = original(weight, statistics, recipe, pool)
        counts[recipe.seed, zlib.crc32(weight)] += 1
        return parts

    monkeypatch.setattr(produce, "quantize", count)
    return counts


CASES = {
    "gwq3": {"type": "gwq3", "samples": 2, "ctx": 16},
    # measures embedding and head, too
    "budget": {"bpw": 6.0, "outliers": 0.001, "samples": 1, "ctx": 16},
}


@pytest.fixture
def few(tmp_path_factory):
    """A model of four experts in two blocks; the calibration text reaches some of them by few
    tokens.
    """
    settings = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_size": 32,
        "head_dim": 16,
        "num_attention_heads": 2,
    }
    settings |= {
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    }
    return save_tiny(tmp_path_factory.mktemp("few"), "MixtralConfig", **settings)


@pytest.mark.parametrize("options", [{"type": "gwq3"}, {"bpw": 14.0, "outliers": 0.001}])
def test_experts_of_a_killed_export(tmp_path, few, calib, counted, caplog, options):
    """Matrix by matrix; what is known of how many tokens reached an expert comes out the same."""
    out = tmp_path / "m.gguf"
    work = tmp_path / "work"
    options = options | {"calib": calib, "samples": 2, "ctx": 16}
    gwq_export.export(few, tmp_path / "whole.gguf", **options)
    whole = (tmp_path / "whole.gguf").read_bytes()
    matrices = len(counted)
    warning = caplog.messages
    assert len(warning) == 1 and "experts met fewer than 16 calibration tokens" in warning[0]
    counted.clear()
    happened = 0
    for steps in (60, 90, 120, 1 << 30):
        caplog.clear()
        try:
            with killed_after(steps):
                gwq_export.export(few, out, work_dir=work, **options)
            break
        except Killed:
            happened += 1
    assert happened == 3 and out.read_bytes() == whole
    assert [m for m in caplog.messages if "experts met" in m] == warning
    assert len(counted) == matrices, counted
    assert sum(counted.values()) <= matrices + happened, counted  # not those of a whole tensor


def test_killed_between_any_two_steps_it_goes_on_to_the_same_bytes(tmp_path, tiny, calib, counted):
    """At chosen changes of the file system, the last ones too."""
    out = tmp_path / "m.gguf"
    work = tmp_path / "work"
    options = CASES["budget"] | {"calib": calib}
    kills = 8
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", **options)
    whole = (tmp_path / "whole.gguf").read_bytes()
    tensors = len(counted)
    with killed_after(1 << 30) as left:
        gwq_export.export(tiny("llama"), out, work_dir=work, **options)
    steps = (1 << 30) - left[0]
    assert out.read_bytes() == whole and not list(work.iterdir())
    out.unlink()
    counted.clear()
    rng = random.Random(0)
    happened = 0
    for _ in range(10 * kills):
        try:
            with killed_after(rng.randrange(2 * steps // kills) if happened < kills else 1 << 30):
                gwq_export.export(tiny("llama"), out, work_dir=work, **options)
            break
        except Killed:
            happened += 1
            assert not out.exists() or out.read_bytes() == whole
            if (
                work / DONE
            ).exists():  # while the folder was emptied; the next export finishes that
                with Workdir(work, {}) as left:
                    left.clear()
                break
    assert happened >= kills / 2 and out.read_bytes() == whole
    assert not list(work.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "whole.gguf", "work"]
    assert len(counted) == tensors, counted
    assert sum(counted.values()) <= tensors + happened, counted  # the one in hand is lost


def test_killed_between_embedding_and_head(tmp_path, tiny, calib, counted, monkeypatch):
    """What was found for the first stays, in the sensitivity pass and in the export itself."""
    options = CASES["budget"] | {"calib": calib}
    write = Workdir._write
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", **options)
    tensors = len(counted)
    counted.clear()

    def kill_after(section):
        def call(self, name, *args):
            write(self, name, *args)
            if name.startswith((f"{section}.model.embed_tokens", f"{section}.lm_head")):
                raise Killed

        return call

    for section in ("sensitivity", "tensors"):
        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(Workdir, "_write", kill_after(section))
            gwq_export.export(
                tiny("llama"), tmp_path / "m.gguf", work_dir=tmp_path / "work", **options
            )
    gwq_export.export(tiny("llama"), tmp_path / "m.gguf", work_dir=tmp_path / "work", **options)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(counted) == sum(counted.values()) == tensors


def test_sigkill_at_30_random_moments(tmp_path, tiny, calib):
    """Real kills of real processes, in every phase; victims.py compares files, results and work."""
    cases = [options | {"calib": str(calib)} for options in CASES.values()]
    command = [
        sys.executable,
        Path(__file__).with_name("victims.py"),
        tiny("llama"),
        tmp_path,
        "30",
        "6",
        json.dumps(cases),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert sum(found["killed"].values()) >= 30, found
    assert {"forward", "backward", "write"} <= set(found["killed"]), found
    assert found["files"] > 1, found


def test_a_dry_run_leaves_its_sensitivities_to_the_export(tmp_path, tiny, calib, monkeypatch):
    options = {
        "bpw": 6.0,
        "outliers": 0.0,
        "samples": 1,
        "ctx": 16,
        "work_dir": tmp_path / "work",
        "calib": calib,
    }
    planned = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", dry_run=True, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["work"] and planned["estimated_seconds"] > 0
    monkeypatch.setattr("gwq_export.pipeline.sensitivity.choices", None)
    made = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", **options)
    assert made["plan"] == planned["plan"]
    assert made["calibration_loss"] == planned["calibration_loss"]
    assert not list((tmp_path / "work").iterdir())


def test_estimates_tell_found_codes_from_rounded_ones():
    def entry(type):
        return TensorPlan("x", ("x",), (64, 64), Recipe(TYPES[type]), True, Arrangement())

    found, rounded = entry("q4_0"), entry("f16")
    assert found.recipe.encoded and not rounded.recipe.encoded
    estimate = Estimate(lambda e, weight, statistics: time.sleep(0.05 * e.recipe.encoded))
    for e in (found, rounded):
        estimate.sample(e, lambda: None, {})
    estimate._seen = 1
    assert estimate.seconds([rounded], False) < 0.01 < 0.05 <= estimate.seconds([found], False)


def test_work_of_another_export_is_refused(tmp_path, tiny, calib):
    folder = tmp_path / "model"
    work = tmp_path / "work"
    options = {"type": "gwq4", "samples": 1, "ctx": 16, "calib": calib}
    shutil.copytree(tiny("llama"), folder)
    with pytest.raises(Killed), killed_after(40):
        gwq_export.export(folder, tmp_path / "m.gguf", work_dir=work, **options)
    held = sorted(work.iterdir())
    for change in ({"seed": 1}, {"type": "gwq3"}, {"ctx": 17}, {"outliers": 0.01}):
        with pytest.raises(
            GwqError,
            match=r"holds the work of another export.*give an empty --work-dir or delete it",
        ):
            gwq_export.export(folder, tmp_path / "m.gguf", work_dir=work, **options | change)
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(GwqError, match="another export"):
        gwq_export.export(folder, tmp_path / "m.gguf", work_dir=work, **options)
    assert sorted(work.iterdir()) == held


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(GwqError, match="not an export's work"):
        Workdir(tmp_path / "letters", {})
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "export.json").write_bytes(b"\xff")
    with pytest.raises(GwqError, match="another export"):
        Workdir(tmp_path / "strange", {})
    with pytest.raises(GwqError, match=r"cannot write --work-dir .*none"):
        Workdir(tmp_path / "none" / "work", {})
    with Workdir(tmp_path / "work", {}), pytest.raises(GwqError, match="in use by another export"):
        Workdir(tmp_path / "work", {})
    Workdir(tmp_path / "work", {}).close()
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_results_are_what_was_put(tmp_path):
    with Workdir(tmp_path / "work", {"a": 1}) as work:
        part = work.section("part")
        part.put("x", np.arange(5, dtype=np.uint8), np.ones((2, 3), np.float32))
        part.put("none")
        part.put("y", np.array([("gwq4", 0.5)], [("type", "U8"), ("share", "f8")]))
        (work.folder / "z.gwqwork.unfinished").write_bytes(b"half")
    with Workdir(tmp_path / "work", {"a": 1}) as work:
        part = work.section("part")
        x, ones = part.get("x")
        assert x.tolist() == [0, 1, 2, 3, 4] and ones.shape == (2, 3) and ones.flags.writeable
        assert part.get("none") == [] and part.get("z") is None and "y" in part and "y" not in work
        assert part.get("y")[0]["type"][0] == "gwq4" and work.nbytes > 100
        part.drop("y")
        part.drop("y")
        assert "y" not in part
        work.clear()
    assert not list((tmp_path / "work").iterdir())


def test_a_full_disk(tmp_path, tiny, calib, monkeypatch):
    """Found out before the work begins, or in the middle of it; the same command goes on when there
    is room.
    """
    out = tmp_path / "m.gguf"
    options = {
        "type": "gwq4",
        "samples": 2,
        "ctx": 16,
        "work_dir": tmp_path / "work",
        "calib": calib,
    }
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", **options | {"work_dir": None})
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
        m.setattr("gwq_export.calibration.gradients.BlockModel", None)  # nothing is computed
        with pytest.raises(
            GwqError, match=r"m.gguf and --work-dir .*work need \d+ bytes and 100000 are free"
        ):
            gwq_export.export(tiny("llama"), out, **options)
    fsync = os.fsync
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(fd)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(
            GwqError,
            match=r"cannot write --work-dir .*No space left on device; "
            r".*run the same command again",
        ):
            gwq_export.export(tiny("llama"), out, **options)
    assert not out.exists() and len(list((tmp_path / "work").iterdir())) > 5
    gwq_export.export(tiny("llama"), out, **options)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_nothing_is_written_elsewhere(tmp_path, tiny, calib):
    opened, watching = [], [True]

    def hook(event, args):
        if event != "open" or not watching or isinstance(args[0], int):
            return
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(Path(os.fsdecode(args[0])))

    sys.addaudithook(hook)  # it cannot be taken away again
    try:
        _exports_write_only_there(tmp_path, tiny, calib, opened)
    finally:
        watching.clear()


def _exports_write_only_there(tmp_path, tiny, calib, opened):
    tiny("llama")
    for options, folders in (
        ({}, {"out", "out/m.gguf.statistics"}),
        ({"work_dir": tmp_path / "work"}, {"out", "work"}),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        opened.clear()
        gwq_export.export(
            tiny("llama"), tmp_path / "out" / "m.gguf", samples=1, ctx=16, calib=calib, **options
        )
        written = {p.parent for p in opened if p.parent.name != "__pycache__"}
        # transformers reads the config from a folder, which is deleted at once
        written = {p for p in written if p.parent != Path(tempfile.gettempdir())}
        assert written == {tmp_path / name for name in folders}
        assert {p.name for p in (tmp_path / "out").iterdir()} == {"m.gguf"}
