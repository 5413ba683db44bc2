"""Whole models by the CUDA library, on the host over native/cuda/shim.h, beside the CPU's."""

import numpy as np
import pytest

import gwq_export
from gwq_export.errors import GwqError
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime import kv_cache
from tests.support.forward import IDS, PROMPT, REROUTED, steps
from tests.support.models import TINY_MODELS
from tests.support.nearness import assert_near

pytestmark = pytest.mark.usefixtures("cuda_device")

CALLS = [(IDS[:1], 1), (IDS[1:12], 5), (IDS[12:13], 1), (IDS[13:16], 2), (IDS[16:22], 6)]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture(tiny, exported, name):
    """In float32 with a cache of float32 only the order of sums differs. With int8 activations a
    code may, where a number lies between two: one of 127 steps of the largest in its block. After a
    prompt of more than 6 tokens more of them do, whose products see FP16 numbers (activations that
    are not rounded to codes at all would be 0.07 away).
    """
    few = {"type": "gwq4", "outliers": 0.02, "samples": 2, "ctx": 64}
    rows = [({"type": "f32"}, "f32", 1e-4, 0), (few, None, 0.04, REROUTED.get(name, 0))]
    if name in ("llama", "gemma2"):  # queries of prompts are rounded to FP16 too
        rows.append(({"type": "f32"}, "f16", 2e-3, 0))
    for options, cache, bound, rerouted in rows:
        path, _ = exported(tiny(name), **options)
        of_cpu = steps(gwq_export.load(path, threads=1, cache=cache), CALLS)
        of_cuda = steps(gwq_export.load(path, device="cuda", cache=cache), CALLS)
        assert_near(of_cpu, of_cuda, bound, rerouted)


def test_the_bundled_model(bundled):
    """Logits of a prompt, and the text that greedy decoding gives.

    Where the CPU multiplies outliers by codes of 16 bits, a number that lies between two codes of 8
    bits may get the other one.
    """
    of_cpu, of_cuda = (gwq_export.load(bundled, device=d) for d in ("cpu", "cuda"))
    ids = of_cpu.prompt_ids(PROMPT)
    a, b = of_cpu.logits(ids), of_cuda.logits(ids)
    assert (
        np.abs(a - b).max() < 0.02 * np.abs(a).max() and (a.argmax(1) == b.argmax(1)).mean() > 0.9
    )
    text = of_cpu.generate(PROMPT, n=20)
    assert text.strip() and of_cuda.generate(PROMPT, n=20) == text


def test_several_tokens_get_what_each_gets(bundled):
    """To the bit, so that tokens computed ahead do not change a text; and so does every run."""
    model = gwq_export.load(bundled, device="cuda")
    alone = steps(model, [(IDS[i : i + 1], 1) for i in range(MAX_TOKENS)])
    for n in range(2, MAX_TOKENS + 1):
        (together,) = steps(model, [(IDS[:n], n)])
        assert np.array_equal(together, np.concatenate(alone[:n]))
    again = steps(model, [(IDS[i : i + 1], 1) for i in range(MAX_TOKENS)])
    assert np.array_equal(alone, again)


def test_the_order_of_threads_changes_no_bit(bundled, shim):
    model = gwq_export.load(bundled, device="cuda")
    forward = steps(model, [(IDS[:3], 3)])
    shim.gwq_shim_reverse(1)
    assert np.array_equal(forward, steps(gwq_export.load(bundled, device="cuda"), [(IDS[:3], 3)]))


@pytest.mark.parametrize("cache", ["f16", "q8_0", "f32"])
def test_a_cache_that_grows(bundled, monkeypatch, cache):
    """Programs are captured anew where it moves, and what it held is still there."""
    model = gwq_export.load(bundled, device="cuda", cache=cache)
    calls = [([i], 1) for i in IDS[:20].tolist()]
    want = steps(model, calls)
    monkeypatch.setattr(kv_cache, "FIRST", 4)
    assert np.array_equal(steps(model, calls), want)


def test_times_of_a_program(tiny, exported):
    path, _ = exported(tiny("llama"), type="f32")
    session = gwq_export.load(path, device="cuda").session(20)
    want = session.forward([5])
    session.rewind()
    (program,) = session.token_programs()
    times = np.zeros(len(program.ops), np.int64)
    program.run(np.array([5], np.int32), 0, times)
    assert (times > 0).all()
    assert np.array_equal(session.parts[0]._programs[1, 1][1].array, want)


def test_a_damaged_weight_is_said(tiny, exported):
    """A router's scores that are not finite: the device says so after the run, and goes on."""
    path, _ = exported(tiny("qwen3moe"), type="f32")
    model = gwq_export.load(path, device="cuda")
    session = model.session(20)
    want = session.forward([7])
    norm = model.weights.layers[0].ffn_norm.weight
    before = norm.array
    norm.array = np.full_like(before, np.nan)
    with pytest.raises(GwqError, match="a number is not finite"):
        session.forward([7])
    norm.array = before
    session.rewind()
    assert np.array_equal(session.forward([7]), want)
