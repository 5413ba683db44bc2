"""Tuned files: nearer to the model, with the same codes, and the numbers that were judged."""

from collections import Counter

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import draw_calibration, draw_held_out, draw_tuning
from gwq_export.compute.results import DONE
from gwq_export.format.tiles import unpack_tiles
from gwq_export.format.types import matrices
from gwq_export.hf.source import Source
from gwq_export.pipeline import tuning, tuning_steps
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies.oracle import dequantized_model, kl_divergence, logits, original_model
from tests.support.kills import Killed, killed_after
from tests.support.paths import REFERENCE, ROOT

SMALL = {"type": "gwq2", "samples": 5, "ctx": 16, "tune": 3}


def tokenizer_of(folder):
    source = Source(folder)
    return Tokenizer(to_metadata(source.folder, source.vocab))


def kld(folder, path, windows):
    original = original_model(folder)
    ours = dequantized_model(folder, path, ends=False)
    return np.mean([kl_divergence(logits(original, ids), logits(ours, ids)) for ids in windows])


def drawn(folder, calib, samples=5, ctx=16, steps=3):
    """(calibration, windows of the tuning) of an export with seed 0."""
    tokenizer = tokenizer_of(folder)
    text = read_calibration(tokenizer, [calib] if calib else [])
    calibration = draw_calibration(text, samples, ctx, 0)
    count = tuning_steps.windows_wanted(steps, ctx)
    return calibration, draw_tuning(text, calibration, count, 0).numpy()


@pytest.fixture
def both(exported):
    """Paths of 2-bit files of the bundled model, tuned and not, and the former's result."""
    options = {"type": "gwq2", "samples": 8, "ctx": 128}
    (path, result), (plain, before) = exported(tune=6, **options), exported(tune=0, **options)
    assert "tuned_kld" not in before and before["bytes"] == result["bytes"]
    return path, plain, result


def test_nearer_to_the_model_on_other_text(both):
    path, plain, result = both
    text = (REFERENCE.parent / "eval.txt").read_text()[:12000]
    ids = tokenizer_of(REFERENCE).encode(text)[: 8 * 256]
    windows = np.reshape(ids, (8, 256))
    assert kld(REFERENCE, path, windows) < 0.95 * kld(REFERENCE, plain, windows)
    before, after = result["tuned_kld"]
    assert after < 0.95 * before


def test_codes_and_other_tensors_stay(both):
    tuned, plain = map(gwq_export.open_gguf, both[:2])
    assert tuned.metadata["gwq.tuning_steps"] == 6 and plain.metadata["gwq.tuning_steps"] == 0
    for name, t in tuned.tensors.items():
        same = np.array_equal(t.data, plain.tensors[name].data)
        changes = t.type.bits or name.endswith(("norm.weight", ".outliers"))
        assert same != bool(changes), name
        if t.type.bits:
            _, rows, cols = matrices(t.shape)
            codes = [
                unpack_tiles(t.type, f.tensors[name].data, rows, cols)[3] for f in (tuned, plain)
            ]
            assert np.array_equal(*codes)
    tuned.check()
    source = Source(REFERENCE)
    assert np.array_equal(
        plain.tensors["blk.1.ffn_norm.weight"].dequantize(),
        source.tensor("model.layers.1.post_attention_layernorm.weight").numpy(),
    )


ARCHS = ["gpt2", "gemma3", "olmo2", "mixtral"]


@pytest.mark.parametrize("name", ARCHS)
def test_the_file_has_the_numbers_that_were_judged(tmp_path, tiny, calib, monkeypatch, name):
    """transformers finds the KL divergence in the file that the tuning found: norms with biases,
    less one, of Q and K, transposed matrices, experts ...
    """
    monkeypatch.setattr(tuning, "RATE", 0.02)
    folder = tiny(name)
    path = tmp_path / "m.gguf"
    result = gwq_export.export(folder, path, calib=calib, **SMALL)
    _, windows = drawn(folder, calib)
    _, held = tuning_steps.divided(len(windows), 16, 3)
    before, after = result["tuned_kld"]
    assert after != before
    assert kld(folder, path, windows[held]) == pytest.approx(min(before, after), rel=1e-4, abs=5e-6)


def test_numbers_that_do_not_help_are_left_out(tmp_path, tiny, calib, monkeypatch):
    monkeypatch.setattr(tuning, "RATE", -1.0)
    files = []
    for tune in (3, 0):
        path = tmp_path / f"{tune}.gguf"
        result = gwq_export.export(tiny("llama"), path, calib=calib, **SMALL | {"tune": tune})
        files.append(gwq_export.open_gguf(path).tensors)
        if tune:
            assert result["tuned_kld"][1] > result["tuned_kld"][0]
    tuned, plain = files
    assert all(np.array_equal(t.data, plain[name].data) for name, t in tuned.items())


@pytest.mark.parametrize(
    "options",
    [{"type": "gwq4"}, {"preset": "paper"}, {"type": "f16"}, {"norms": False}, {"tune": 0}],
)
def test_where_files_are_left_alone(tmp_path, tiny, calib, monkeypatch, options):
    monkeypatch.setattr("gwq_export.pipeline.tensors.Tuning", None)
    options = SMALL | {"tune": None} | options
    result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=calib, **options)
    assert "tuned_kld" not in result


def test_too_little_text(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("gwq_export.pipeline.tensors.Tuning", None)
    text = tmp_path / "short.txt"
    text.write_text("The city lay by the river.")
    options = SMALL | {"samples": 9}
    result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=text, **options)
    assert "tuned_kld" not in result


def test_text_that_calibration_takes_all_of(tmp_path, tiny, calib):
    """Its own windows serve again."""
    options = SMALL | {"samples": 1000, "tune": 1, "calib": calib}
    result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", **options)
    assert len(result["tuned_kld"]) == 2


def test_steps_that_are_asked_for(tmp_path, tiny, calib):
    """Whatever the type and preset, also where the default is not to tune."""
    for options in ({"type": "gwq4"}, {"preset": "paper"}):
        result = gwq_export.export(
            tiny("llama"), tmp_path / "m.gguf", calib=calib, **SMALL | options
        )
        assert len(result["tuned_kld"]) == 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tune": -1}, "--tune -1: give a number of steps"),
        ({"tune": 2, "type": "f16"}, "no matrix of this file has scales and tables to tune"),
        ({"tune": 2, "norms": False}, "--no-norms is the former name of --tune 0"),
    ],
)
def test_refused(tmp_path, tiny, options, words):
    with pytest.raises(GwqError, match=words):
        gwq_export.export(tiny("llama"), tmp_path / "m.gguf", **options)


def test_steps_use_other_windows_than_the_judge():
    for windows, ctx, steps in [
        (4, 512, 3),
        (5, 2048, 8),
        (20, 512, 8),
        (200, 512, 96),
        (64, 16, 1),
    ]:
        of_step, held = tuning_steps.divided(windows, ctx, steps)
        used = np.concatenate(of_step)
        assert len(of_step) == steps and len(held)
        assert not set(used) & set(held)
        assert max(*used, *held) < windows
        assert all(
            len(set(rows)) == len(rows) and 0 < len(rows) * ctx <= max(ctx, tuning_steps.TOKENS)
            for rows in of_step
        )
    wanted = tuning_steps.windows_wanted(8, 512)
    of_step, held = tuning_steps.divided(wanted, 512, 8)
    assert len(set(np.concatenate(of_step))) + len(held) == wanted


def test_text_of_the_tuning_is_fresh_first():
    tokenizer = tokenizer_of(REFERENCE)
    text = read_calibration(tokenizer)
    calibration = draw_calibration(text, 8, 128, 0)
    used = {w.tobytes() for w in calibration.tokens.numpy()}
    used |= {w.tobytes() for w in draw_held_out(text, calibration, 128, 0)}
    few = draw_tuning(text, calibration, 20, 0).numpy()
    assert len(few) == 20 and not used & {w.tobytes() for w in few}
    everything = draw_tuning(text, calibration, 1 << 30, 0).numpy()
    assert np.array_equal(everything[:20], few)
    assert {w.tobytes() for w in everything[-8:]} <= used


def test_threads_do_not_count(tmp_path, tiny, calib, threads):
    files = []
    for count in (1, 3):
        threads(count)
        result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=calib, **SMALL)
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1] and "tuned_kld" in result


def test_a_killed_export_tunes_to_the_same_bytes(tmp_path, tiny, calib, monkeypatch):
    out = tmp_path / "m.gguf"
    work = tmp_path / "work"
    counts = Counter()
    original = tuning.Tuning._move

    def count(self, k, i, *args):
        original(self, k, i, *args)
        counts[k, i] += 1

    monkeypatch.setattr(tuning.Tuning, "_move", count)
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", calib=calib, **SMALL)
    moves = len(counts)
    happened = 0
    counts.clear()
    for steps in (330, 90, 70, 1 << 30):
        try:
            with killed_after(steps):
                gwq_export.export(tiny("llama"), out, work_dir=work, calib=calib, **SMALL)
            break
        except Killed:
            happened += 1
            assert not (work / DONE).exists()  # not while the folder was emptied: that begins anew
    assert happened == 3 and out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(counts) == moves == 3 * (Source(tiny("llama")).layers + 1)
    assert max(counts.values()) == 1, counts


@pytest.mark.parametrize("samples, steps", [(32, 2), (8, 0), (1000, 71)])
def test_steps_follow_the_calibration(samples, steps):
    """By default, and as option and pages say."""
    assert tuning_steps.default_steps(samples * 512) == steps
    for page in ("docs/export.md", "docs/method.md"):
        words = " ".join((ROOT / page).read_text().split())
        assert f"for every {tuning_steps.PER_STEP} calibration tokens" in words


def test_a_dry_run_counts_the_time(tmp_path, tiny, calib, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gwq_export.pipeline.estimate.Estimate.seconds",
        lambda self, entries, budgeted, after: seen.append(after) or 1.0,
    )
    for options in ({}, {"tune": 0}, {"tune": 0, "fast": True}):
        gwq_export.export(
            tiny("llama"), tmp_path / "m.gguf", dry_run=True, calib=calib, **SMALL | options
        )
    _, windows = drawn(tiny("llama"), calib)
    with_both, with_drift, fast = seen
    tuning = tuning_steps.share(len(windows), 16, 3, 5 * 16)
    assert with_both - with_drift == pytest.approx(tuning) and tuning > 0
    assert with_drift > 0.3 and fast == 0
