"""Tuned norms: nearer to the model, the same bytes otherwise, and the gains that the file says."""

from collections import Counter

import numpy as np
import pytest

import gwq_export
from gwq_export.calibration.text import draw_calibration
from gwq_export.compute.results import DONE
from gwq_export.hf.source import Source
from gwq_export.pipeline import norm_tuning as norms
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies.oracle import dequantized_model, kl_divergence, logits, original_model
from tests.support.kills import Killed, killed_after
from tests.support.paths import REFERENCE

SMALL = {"type": "gwq2", "samples": 5, "ctx": 16}


def kld(folder, path, windows):
    original = original_model(folder)
    ours = dequantized_model(folder, path, ends=False)
    return np.mean([kl_divergence(logits(original, ids), logits(ours, ids)) for ids in windows])


@pytest.fixture
def both(exported):
    """Paths of 2-bit files of the bundled model, norms tuned and not, and the former's result."""
    options = {"type": "gwq2", "samples": 8, "ctx": 128}
    (path, result), (plain, before) = exported(**options), exported(norms=False, **options)
    assert "norms_kld" not in before and before["bytes"] == result["bytes"]
    return path, plain, result


def test_nearer_to_the_model_on_other_text(both):
    path, plain, result = both
    source = Source(REFERENCE)
    text = (REFERENCE.parent / "eval.txt").read_text()[:12000]
    ids = Tokenizer(to_metadata(source.folder, source.vocab)).encode(text)[: 8 * 256]
    windows = np.reshape(ids, (8, 256))
    assert kld(REFERENCE, path, windows) < 0.97 * kld(REFERENCE, plain, windows)
    before, after = result["norms_kld"]
    assert after < 0.97 * before


def test_nothing_but_norms_differs(both):
    tuned, plain = map(gwq_export.open_gguf, both[:2])
    assert tuned.metadata["gwq.norms_tuned"] is True and plain.metadata["gwq.norms_tuned"] is False
    differ = {
        name
        for name, t in tuned.tensors.items()
        if not np.array_equal(t.data, plain.tensors[name].data)
    }
    assert differ == {name for name in tuned.tensors if name.endswith("norm.weight")}
    source = Source(REFERENCE)
    assert np.array_equal(
        plain.tensors["blk.1.ffn_norm.weight"].dequantize(),
        source.tensor("model.layers.1.post_attention_layernorm.weight").numpy(),
    )


ARCHS = ["gpt2", "gemma3", "olmo2", "mixtral"]


@pytest.mark.parametrize("name", ARCHS)
def test_the_file_has_the_gains_that_were_tried(tmp_path, tiny, calib, monkeypatch, name):
    """transformers finds the KL divergence in the file that the tuner found: norms with biases,
    less one, of Q and K ...
    """
    folder = tiny(name)
    path = tmp_path / "m.gguf"
    result = gwq_export.export(folder, path, calib=calib, **SMALL)
    source = Source(folder)
    tokens = draw_calibration(
        Tokenizer(to_metadata(source.folder, source.vocab)), calib, 5, 16, 0
    ).tokens.numpy()
    _, held = norms.judged(5, 16)
    assert kld(folder, path, tokens[held]) == pytest.approx(
        min(result["norms_kld"]), rel=1e-4, abs=5e-6
    )
    tuned = (
        gwq_export.open_gguf(path)
        .tensors["blk.0.ffn_norm.weight" if name != "olmo2" else "blk.0.post_ffw_norm.weight"]
        .dequantize()
    )
    row, hf = next(
        (row, hf)
        for row, hf in source.block(0).items()
        if row.gguf.endswith(("ffn_norm.weight", "post_ffw_norm.weight"))
    )
    assert result["norms_kld"][0] != result["norms_kld"][1]
    assert np.array_equal(tuned, source.tensor(hf).numpy() + np.float32(row.plus)) == (
        result["norms_kld"][1] >= result["norms_kld"][0]
    )


def test_gains_that_do_not_help_are_left_out(tmp_path, tiny, calib, monkeypatch):
    monkeypatch.setattr(norms, "RATE", -5.0)
    result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=calib, **SMALL)
    assert result["norms_kld"][1] > result["norms_kld"][0]
    kept = gwq_export.open_gguf(tmp_path / "m.gguf").tensors["output_norm.weight"].dequantize()
    assert np.array_equal(kept, Source(tiny("llama")).tensor("model.norm.weight").numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"type": "gwq4"},
        {"preset": "paper"},
        {"samples": norms.WINDOWS - 1},
        {"type": "f16"},
        {"norms": False},
    ],
)
def test_where_norms_are_left_alone(tmp_path, tiny, calib, monkeypatch, options):
    monkeypatch.setattr("gwq_export.pipeline.tensors.tune", None)
    result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=calib, **SMALL | options)
    assert "norms_kld" not in result


def test_steps_use_other_windows_than_the_judge():
    for samples, ctx in [(2, 512), (3, 2048), (8, 256), (32, 512), (64, 16)]:
        steps, held = norms.judged(samples, ctx)
        used = np.concatenate(steps)
        assert len(steps) == norms.STEPS
        assert len(held)
        assert not set(used) & set(held)
        assert max(*used, *held) < samples
        assert all(
            len(set(rows)) == len(rows) and 0 < len(rows) * ctx <= max(ctx, norms.TOKENS)
            for rows in steps
        )
    steps, _ = norms.judged(32, 512)
    assert len(set(np.concatenate(steps))) == 2 * norms.STEPS


def test_threads_do_not_count(tmp_path, tiny, calib, threads):
    files = []
    for count in (1, 3):
        threads(count)
        result = gwq_export.export(tiny("llama"), tmp_path / "m.gguf", calib=calib, **SMALL)
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1] and "norms_kld" in result


def test_a_killed_export_tunes_to_the_same_bytes(tmp_path, tiny, calib, monkeypatch):
    out = tmp_path / "m.gguf"
    work = tmp_path / "work"
    counts = Counter()
    for name in ("_end", "_backward"):
        original = getattr(norms._Tuner, name)

        def count(self, walk, *args, original=original):
            original(self, walk, *args)
            block = args[0] if original.__name__ == "_backward" else None
            counts[original.__name__, walk.prefix, block] += 1

        monkeypatch.setattr(norms._Tuner, name, count)
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", calib=calib, **SMALL)
    passes = len(counts)
    happened = 0
    counts.clear()
    for steps in (290, 80, 1 << 30):
        try:
            with killed_after(steps):
                gwq_export.export(tiny("llama"), out, work_dir=work, calib=calib, **SMALL)
            break
        except Killed:
            happened += 1
            assert not (work / DONE).exists()  # not while the folder was emptied: that begins anew
    assert happened == 2 and out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert len(counts) == passes == (norms.STEPS + 1) + 3 * norms.STEPS, counts
    assert max(counts.values()) == 1, counts


def test_a_dry_run_counts_the_time(tmp_path, tiny, calib, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gwq_export.pipeline.estimate.Estimate.seconds",
        lambda self, entries, budgeted, after: seen.append(after) or 1.0,
    )
    for options in ({}, {"norms": False}):
        gwq_export.export(
            tiny("llama"), tmp_path / "m.gguf", dry_run=True, calib=calib, **SMALL | options
        )
    assert seen == [norms.share(5, 16), 0] and seen[0] > 0
