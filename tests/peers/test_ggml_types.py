"""studies/ggml.py and studies/compare with llama.cpp's quantizers (tools/build_ggml)."""

import numpy as np
import pytest

from gwq_export import GwqError
from studies import ggml
from studies.oracle import logits, original_model
from tests.support.paths import REFERENCE

pytestmark = pytest.mark.skipif(
    not ggml.library_path().exists(), reason=f"no {ggml.library_path()}: run tools/build_ggml"
)

BPW = {
    "q4_0": 4.5,
    "iq4_nl": 4.5,
    "q4_k": 4.5,
    "iq4_xs": 4.25,
    "q3_k": 3.4375,
    "iq3_s": 3.4375,
    "iq3_xxs": 3.0625,
    "q2_k": 2.625,
    "iq2_s": 2.5625,
    "iq2_xs": 2.3125,
    "q5_0": 5.5,
    "q6_k": 6.5625,
    "q8_0": 8.5,
}
RNG = np.random.default_rng(7)
WEIGHT = RNG.standard_normal((24, 512)).astype(np.float32)
IMPORTANCE = RNG.exponential(size=512).astype(np.float32) ** 2


def error(name, importance=None, columns=1.0):
    """Mean squared error of WEIGHT, its columns weighted."""
    return float((columns * (ggml.fake_quantize(name, WEIGHT, importance) - WEIGHT) ** 2).mean())


@pytest.mark.parametrize("name", BPW)
def test_bits_per_weight(name):
    assert ggml.bpw(name) == BPW[name]
    assert ggml.quantize(name, WEIGHT, IMPORTANCE).nbytes * 8 / WEIGHT.size == BPW[name]


@pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["plain", "importance"])
@pytest.mark.parametrize("name", sorted(ggml.TYPES))
def test_the_gguf_package_decodes_the_same(name, importance):
    gguf = pytest.importorskip("gguf")
    if importance is None and name in ("iq2_xxs", "iq2_xs", "iq1_s"):
        with pytest.raises(GwqError, match="cannot be made without"):
            ggml.quantize(name, WEIGHT)
        return
    raw = ggml.quantize(name, WEIGHT, importance)
    decoded = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(ggml.TYPES[name]))
    ours = ggml.fake_quantize(name, WEIGHT, importance)
    assert np.array_equal(ggml.dequantize(name, raw, 512), ours)
    # the order of two products may differ
    np.testing.assert_allclose(decoded, ours, rtol=1e-6, atol=1e-6)
    if name == "q4_0":
        assert np.array_equal(decoded, ours)


@pytest.mark.parametrize(
    "name", ["q4_0", "iq4_nl", "q4_k", "iq4_xs", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s"]
)
def test_importance_counts(name):
    assert error(name, IMPORTANCE, IMPORTANCE) < error(name, None, IMPORTANCE)


def test_narrow_rows_are_padded_or_refused():
    narrow = WEIGHT[:, :172]
    padded = np.pad(narrow, [(0, 0), (0, 20)])
    assert ggml.nbytes("iq4_nl", 24, 172) == 24 * 192 * 4.5 / 8
    weighted = ggml.fake_quantize("iq4_nl", padded, np.pad(IMPORTANCE[:172], (0, 20)))
    assert np.array_equal(ggml.fake_quantize("iq4_nl", narrow, IMPORTANCE[:172]), weighted[:, :172])
    assert ggml.fits("q4_0", 172) and not ggml.fits("q4_k", 172)
    with pytest.raises(GwqError, match="not whole blocks of 256"):
        ggml.quantize("q4_k", narrow)


@pytest.mark.parametrize("bad", [np.full(512, np.nan), np.full(512, -1.0), np.ones(100)])
def test_bad_importance_is_refused(bad):
    with pytest.raises(GwqError, match="512 finite numbers"):
        ggml.quantize("q4_0", WEIGHT, bad)


def test_importance_is_the_mean_squared_input(tiny):
    import torch

    model = original_model(tiny("llama"))
    tokens = torch.arange(48).reshape(2, 24)
    block = model.model.layers[0]
    found = ggml.importance(model, tokens)
    assert sorted(found) == sorted(
        n for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n
    )
    with torch.no_grad():
        first = block.input_layernorm(model.model.embed_tokens(tokens)).numpy()
    np.testing.assert_allclose(
        found["model.layers.0.self_attn.q_proj.weight"], (first**2).mean((0, 1)), rtol=1e-5
    )
    assert not any(m._forward_pre_hooks for m in model.modules())


def prepared():
    """(compare, its source, the reference model, {HF name: importance}) of the bundled model."""
    from gwq_export.hf.source import Source
    from studies import compare

    model = original_model(REFERENCE)
    return (
        compare,
        Source(REFERENCE),
        model,
        ggml.importance(model, np.arange(512).reshape(2, 256) * 7),
    )


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q4_k", "iq3_s", "q2_k"])
def test_a_real_stock_file_is_what_is_compared(exported, tmp_path, name):
    """llama.cpp (PyPI: xllamacpp) runs a file of these bytes and agrees with the model whose
    figures are printed.
    """
    pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")
    import json

    from gwq_export.evaluation.perplexity import log_softmax
    from tests.support.llama_cpp import IDS, peer

    compare, source, original, importance = prepared()
    by_gguf = {gguf: importance[hf] for hf, gguf in compare.linears(source)}
    ggml.write_gguf(
        exported(type="f32")[0], tmp_path / "stock.gguf", dict.fromkeys(by_gguf, name), by_gguf
    )
    fake, _ = compare.ggml_model(original, source, name, importance)
    done = peer(tmp_path / "stock.gguf")
    assert done.returncode == 0, done.stderr[-2000:]
    top = json.loads(done.stdout.splitlines()[-1])["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ]
    expected, before = (log_softmax(logits(m, IDS)[-1]) for m in (fake, original))
    difference = [
        np.abs([values[t["id"]] - t["logprob"] for t in top]).max() for values in (expected, before)
    ]
    assert difference[0] < 0.15, difference
    assert difference[0] < difference[1] / 2, difference  # it rounds activations, we do not


def test_our_file_and_stock_share_one_measure(exported):
    """Rows of studies/compare: bits as the export reports them, and a ggml row's figures for a Q8_0
    file of ours.
    """
    compare, source, original, importance = prepared()
    path, result = exported(type="gwq4")
    model, kinds, bits = compare.file_model(source, path)
    assert kinds == "gwq4" and bits == pytest.approx(result["bpw_linear"])
    assert np.array_equal(model.lm_head.weight.detach(), original.lm_head.weight.detach())
    rows = RNG.integers(0, 8192, (2, 64)).astype(np.int32)
    reference = compare.cached(compare.module_logits(original))
    assert compare.quality(original, reference, rows)["kld_mean"] == 0
    file, _, _ = compare.file_model(source, exported(type="q8_0")[0])
    fake, bits = compare.ggml_model(original, source, "q8_0", importance)
    assert bits == 8.5
    results = [compare.quality(m, reference, rows) for m in (file, fake)]
    assert results[0]["kld_mean"] == pytest.approx(results[1]["kld_mean"], rel=0.05)
