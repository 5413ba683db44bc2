"""The runtime against transformers: logits, perplexity, state, threads."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation.perplexity import evaluate, windows
from studies.oracle import dequantized_model, kl_divergence, logits, original_model, perplexity
from tests.support.models import TINY_MODELS
from tests.support.paths import DATA, REFERENCE

IDS = np.random.default_rng(5).integers(3, 1024, 90)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_float32_logits_equal_transformers(tiny, exported, name):
    path, _ = exported(tiny(name), type="f32")
    expected = logits(original_model(tiny(name)), IDS)
    got = gwq_export.load(path).logits(IDS)
    assert np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()
    assert kl_divergence(expected, got) < 1e-5


@pytest.mark.parametrize(
    "name", [name for name in TINY_MODELS if "rope" not in name and name.count("-") == 0]
)
def test_quantized_logits_equal_transformers_on_dequantized_weights(tiny, exported, name):
    path, _ = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)
    expected = logits(dequantized_model(tiny(name), path), IDS)
    assert kl_divergence(expected, gwq_export.load(path).logits(IDS)) <= 1e-3


@pytest.mark.parametrize("type", ["gwq2", "gwq3", "gwq4", "q8_0", "bf16", "f16"])
def test_trained_model_kl_divergence(exported, type):
    path, _ = exported(type=type)
    ids = gwq_export.load(path).tokenizer.encode((DATA / "eval.txt").read_text()[:3000])
    expected = logits(dequantized_model(REFERENCE, path), ids)
    assert kl_divergence(expected, gwq_export.load(path).logits(ids)) <= 1e-3


@pytest.mark.parametrize(
    "type, tolerance", [("f32", 1e-3), ("gwq4", 5e-3), ("gwq3", 5e-3), ("gwq2", 5e-3)]
)
def test_perplexity_equals_transformers(exported, type, tolerance):
    path, _ = exported(type=type)
    model = gwq_export.load(path)
    text = (DATA / "eval.txt").read_text()[:20000]
    expected = perplexity(dequantized_model(REFERENCE, path), windows(model.tokenizer, text, 512))
    assert evaluate(model, text, 512)["ppl"] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("folder", ["stories260K", "babyllama-tok361-1.0M"])
@pytest.mark.parametrize("type, tolerance", [("f32", 1e-3), ("gwq4", 1e-2)])
def test_perplexity_of_shared_models(shared, exported, folder, type, tolerance):
    """Widths of 64, 128, 172 and 352: none is a multiple of 256, and everything is quantized."""
    source = shared / "models" / folder
    path, _ = exported(source, type=type)
    model = gwq_export.load(path)
    text = (shared / "text" / "exl3_tiny.utf8").read_text()[:20000]
    expected = perplexity(dequantized_model(source, path), windows(model.tokenizer, text, 256))
    assert evaluate(model, text, 256)["ppl"] == pytest.approx(expected, rel=tolerance)


def test_tokens_one_by_one_equal_a_batch(exported):
    path, _ = exported(type="f32")
    model = gwq_export.load(path)
    batch = model.logits(IDS)
    session = model.session(len(IDS))
    steps = np.concatenate([session.forward([i]) for i in IDS])
    assert np.abs(steps - batch).max() <= 1e-4 * np.abs(batch).max()
    session.rewind(40)
    assert np.array_equal(session.forward([IDS[40]])[0], steps[40])


def test_a_cache_of_codes_takes_half_the_memory(exported):
    """A KV cache in Q8_0 is 17/32 of one in FP16 and hardly changes what the model says."""
    path, _ = exported(type="gwq4")
    whole, codes = gwq_export.load(path), gwq_export.load(path, cache="q8_0")
    assert codes.session(64).cache_bytes * 32 == whole.session(64).cache_bytes * 17
    expected = whole.logits(IDS)
    got = codes.logits(IDS)
    assert 0 < kl_divergence(expected, got) < 2e-3
    session = codes.session(len(IDS))
    steps = np.concatenate([session.forward([i]) for i in IDS])
    assert np.abs(steps - got).max() <= 1e-2 * np.abs(got).max()
    session.rewind(40)
    assert np.array_equal(session.forward([IDS[40]])[0], steps[40])


def test_prompts_longer_than_a_batch(exported):
    path, _ = exported(type="f32")
    model = gwq_export.load(path)
    ids = np.random.default_rng(1).integers(3, 1024, 700)
    whole = model.logits(ids)
    session = model.session(700)
    session.forward(ids[:512], keep=0)
    assert np.allclose(session.forward(ids[512:], keep=188), whole[512:], atol=1e-4)


def test_threads_do_not_change_a_bit_and_calls_may_overlap(exported):
    path, _ = exported(type="gwq4")
    expected = gwq_export.load(path, threads=1).logits(IDS)
    model = gwq_export.load(path, threads=3)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(model.logits, [IDS] * 8):
            assert np.array_equal(got, expected)
        texts = set(pool.map(lambda _: model.generate("The city", n=12), range(6)))
    assert len(texts) == 1


def test_a_forked_child_computes_too(exported):
    """Threads do not survive a fork: the child's pool must not wait for them."""
    path, _ = exported(type="gwq4")
    model = gwq_export.load(path, threads=2)
    expected = model.logits(IDS)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if np.array_equal(model.logits(IDS), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(model.logits(IDS), expected)


def test_generation_is_greedy_or_seeded(exported):
    path, _ = exported(type="gwq4")
    model = gwq_export.load(path)
    ids = model.tokenizer.encode("The history of")
    greedy = []
    for _ in range(6):
        greedy.append(int(model.logits(ids + greedy)[-1].argmax()))
    assert model.generate("The history of", n=6) == model.tokenizer.decode(greedy)
    sample = [model.generate("The history of", n=20, temp=1.0, seed=s) for s in (1, 1, 2)]
    assert sample[0] == sample[1] != sample[2]
    stats = {}
    "".join(model.stream("The history of", n=5, stats=stats))
    assert stats["tokens"] == 5 and stats["prompt_tokens"] == len(ids) and stats["stop"] == "length"


def test_chat_uses_the_template(exported):
    path, _ = exported(type="gwq4")
    model = gwq_export.load(path)
    ids = model.prompt_ids("Hello", chat=True)
    assert model.tokenizer.decode(ids, special=True).startswith("<|im_start|>user\nHello<|im_end|>")
    assert ids[0] == 1 and 2 in ids  # special tokens, not their letters


def test_what_cannot_be_run_is_refused(exported, tiny):
    path, _ = exported(type="gwq4")
    narrow, _ = exported(tiny("llama"), type="f16")
    model = gwq_export.load(path, ctx=16)
    for call, words in [
        (lambda: model.generate(""), "empty"),
        (lambda: model.generate("word " * 100), "context holds 16"),
        (lambda: gwq_export.load(path).logits([8192]), "integer in 0..8191"),
        (lambda: gwq_export.load(path).logits([-1]), "integer in 0..8191"),
        (lambda: gwq_export.load(path).logits([2**32 + 5]), "integer in 0..8191"),
        (lambda: gwq_export.load(path).logits([1.5]), "integer in 0..8191"),
        (lambda: gwq_export.load(path).logits([[1, 2]]), "no tokens"),
        (lambda: gwq_export.load(path).logits([]), "no tokens"),
        (lambda: gwq_export.load(path, device="cuda"), "use --device cpu"),
        (lambda: gwq_export.load(path, threads=1000), "1 to 256"),
        (lambda: gwq_export.load(path / "no"), "no"),
        (lambda: gwq_export.load(path, cache="q4_0"), "choose from f16, q8_0, f32"),
        (lambda: gwq_export.load(narrow, cache="q8_0"), "whole 32s, not 16: choose f16"),
        (lambda: evaluate(model, "too short", 512), "fewer than one window"),
    ]:
        with pytest.raises(GwqError, match=words):
            call()
