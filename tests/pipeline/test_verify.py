"""--verify: what it measures is right; damage is refused in one sentence, and the file stays."""

from dataclasses import replace

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.layout import Arrangement
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import HELD_OUT, draw_calibration, draw_held_out
from gwq_export.evaluation.perplexity import score
from gwq_export.evaluation.predictors import runtime_logits
from gwq_export.evaluation.reference import transformers_logits
from gwq_export.hf.source import Source
from gwq_export.pipeline import coding
from gwq_export.pipeline import tensors as produce
from tests.support.paths import DATA, REFERENCE

SMALL = {"samples": 2, "ctx": 64}


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """(path, result) of a verified export."""
    path = tmp_path_factory.mktemp("verify") / "m.gguf"
    return path, gwq_export.export(
        REFERENCE, path, type="gwq3", verify=True, exclude="blk.1.ffn_up", **SMALL
    )


def test_figures_are_those_of_transformers(verified):
    """KL divergence and perplexities by the streamed source are those by transformers' whole model,
    on the same windows.
    """
    path, result = verified
    model = gwq_export.load(path)
    expected = score(
        runtime_logits(model), held_out_windows(model, 2, 64), 63, transformers_logits(REFERENCE)
    )
    found = result["verify"]
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-3)
    assert found["windows"] == HELD_OUT
    assert found["kld_mean"] > 0
    assert found["speed"]["decode_tps"] > 0


def held_out_windows(model, samples, ctx, seed=0):
    text = read_calibration(model.tokenizer)
    return draw_held_out(text, draw_calibration(text, samples, ctx, seed), ctx, seed)


def test_held_out_text_is_not_calibration_text(verified):
    tokenizer = gwq_export.load(verified[0]).tokenizer
    text = read_calibration(tokenizer)
    calibration = draw_calibration(text, 40, 256, 5)
    held_out = draw_held_out(text, calibration, 256, 5)
    assert held_out.shape == (HELD_OUT, 256)
    assert len({w.tobytes() for w in held_out}) == HELD_OUT
    assert not {w.tobytes() for w in held_out} & {w.tobytes() for w in calibration.tokens.numpy()}


def test_errors_by_tensor(verified):
    """Of weights in the file's order of rows; of outputs for real inputs: nil where the source is
    float16 and stays so.
    """
    path, result = verified
    rows = {t["name"]: t for t in result["verify"]["tensors"]}
    reader = gwq_export.open_gguf(path)
    source = Source(REFERENCE)
    assert set(rows) == {t.name for t in reader.tensors.values() if not t.companion}
    assert rows["blk.1.ffn_up.weight"] == {
        "name": "blk.1.ffn_up.weight",
        "type": "f16",
        "weight_error": 0,
        "output_error": 0,
    }
    weight = source.tensor("model.layers.2.mlp.down_proj.weight").numpy()
    error = np.linalg.norm(
        reader.tensors["blk.2.ffn_down.weight"].dequantize() - weight
    ) / np.linalg.norm(weight)
    assert rows["blk.2.ffn_down.weight"]["weight_error"] == pytest.approx(error, rel=1e-4)
    assert error > 0.05
    # permuted or not; error feedback makes outputs better than weights
    for name in ("attn_q", "attn_k", "ffn_down"):
        row = rows[f"blk.2.{name}.weight"]
        assert 0.01 < row["output_error"] < row["weight_error"] < 0.4


@pytest.mark.parametrize("name", ["gpt2", "gptneox", "gemma2", "phi"])
def test_rearranged_weights_are_compared_with_their_source(tiny, tmp_path, name):
    """Transposed, regrouped, fused, added to: an exact file has no error and no divergence."""
    found = gwq_export.export(tiny(name), tmp_path / "m.gguf", type="f32", verify=True, ctx=64)[
        "verify"
    ]
    assert {t["weight_error"] for t in found["tensors"]} == {0.0} and found["kld_mean"] < 1e-6
    assert {t["output_error"] for t in found["tensors"]} == {0.0, None}


def damaged(monkeypatch, name):
    """Exports go wrong in one way from now on."""
    original = coding.quantize

    def wrong(weight, statistics, recipe, *rest):
        if recipe.type.bits:
            weight = {
                "rows": np.roll(weight, 1, axis=0),
                "zeros": 0 * weight,
                "twice": 2 * weight,
                "weak": weight,
            }[name]
        return original(weight, statistics, recipe, *rest)

    monkeypatch.setattr(coding, "quantize", wrong)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("rows", {}, "blk.0.attn_q.weight differs from the source by 1..% of"),
        ("zeros", {}, "is damage"),
        ("twice", {}, "is damage"),
        ("weak", {"max_kld": 1e-4}, "above --max-kld 0.0001"),
    ],
)
def test_damage_is_refused_and_the_file_kept(tiny, tmp_path, monkeypatch, name, options, words):
    damaged(monkeypatch, name)
    out = tmp_path / "m.gguf"
    with pytest.raises(GwqError, match=words) as e:
        gwq_export.export(
            tiny("llama"),
            out,
            type="gwq4",
            preset="paper",
            ctx=64,
            verify=True,
            report=tmp_path / "r.html",
            **options,
        )
    assert str(out) in str(e.value) and "kept" in str(e.value)
    gwq_export.open_gguf(out).check()
    assert (tmp_path / "r.html").exists()  # tells where


def test_the_wrong_order_of_rows_is_found(tmp_path, monkeypatch):
    """Q and K as transformers orders them: no statistic of the file shows it, and the KL divergence
    is that of 2 bits.
    """
    encode = produce.encode
    monkeypatch.setattr(
        produce,
        "encode",
        lambda pool, entry, *rest: encode(pool, replace(entry, arrange=Arrangement()), *rest),
    )
    with pytest.raises(GwqError, match=r"blk.0.attn_q.weight differs"):
        gwq_export.export(REFERENCE, tmp_path / "m.gguf", type="f16", verify=True, ctx=64)


def test_verify_text(tmp_path):
    (tmp_path / "t.txt").write_text((DATA / "eval.txt").read_text()[:4000])
    found = gwq_export.export(
        REFERENCE, tmp_path / "m.gguf", type="f16", verify_text=tmp_path / "t.txt", ctx=64
    )["verify"]
    assert found["kld_mean"] < 1e-4
    assert found["ppl"] == pytest.approx(found["ppl_against"], rel=1e-2)
    for text, words in [
        (tmp_path / "none", "--verify-text .*cannot be read"),
        ("/dev/null", "is empty"),
    ]:
        with pytest.raises(GwqError, match=words):
            gwq_export.export(REFERENCE, tmp_path / "n.gguf", type="f16", verify_text=text)
    with pytest.raises(
        GwqError, match="takes all of its text: give another one with --verify-text"
    ):
        gwq_export.export(
            REFERENCE,
            tmp_path / "n.gguf",
            calib=tmp_path / "t.txt",
            samples=1000,
            ctx=64,
            verify=True,
        )
    assert not (tmp_path / "n.gguf").exists()
