"""A recorded forward pass against the same operations one by one, to the bit."""

import numpy as np
import pytest

import gwq_export
from gwq_export.native.library import F32
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime import kv_cache
from tests.support.models import TINY_MODELS

IDS = np.random.default_rng(5).integers(3, 200, 300)


def both(model, monkeypatch, calls):
    """[(logits of a program, logits of operations one by one)] of forward calls (ids, keep)."""
    found = []
    for most in (MAX_TOKENS, 0):
        monkeypatch.setattr("gwq_export.runtime.forward.MAX_TOKENS", most)
        session = model.session(250)
        found.append([session.forward(ids, keep=keep) for ids, keep in calls])
        assert bool(session.parts[0]._programs) == bool(most)
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_same_bits(tiny, exported, monkeypatch, name, threads):
    path, _ = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)
    model = gwq_export.load(path, threads=threads)
    calls = [(IDS[:1], 1), (IDS[1:20], 1), (IDS[20:21], 1), (IDS[21:24], 2), (IDS[24:30], 6)]
    for program, one_by_one in both(model, monkeypatch, calls):
        assert np.array_equal(program, one_by_one)


def test_a_cache_that_grows(tiny, exported, monkeypatch):
    """Programs point into caches and tables of cosines, which move when they grow."""
    monkeypatch.setattr("gwq_export.runtime.kv_cache.FIRST", 16)
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    model = gwq_export.load(path, threads=2)
    calls = [([i], 1) for i in IDS[:70].tolist()]
    for program, one_by_one in both(model, monkeypatch, calls):
        assert np.array_equal(program, one_by_one)


def test_a_growth_that_is_cut_short(tiny, exported, monkeypatch):
    """Some layers of the cache have moved by then."""
    monkeypatch.setattr("gwq_export.runtime.kv_cache.FIRST", 16)
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    session = gwq_export.load(path, threads=2).session(64)
    session.forward(IDS[:10])
    session.forward(IDS[10:11])
    assert session.parts[0]._programs
    real, calls = kv_cache.pointer, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(kv_cache, "pointer", interrupted)
        session.forward(IDS[11:40])
    assert not session.parts[0]._programs and session.pos == 11
    whole = gwq_export.load(path, threads=2).session(64)
    whole.forward(IDS[:10])
    whole.forward(IDS[10:11])
    assert np.array_equal(session.forward(IDS[11:12]), whole.forward(IDS[11:12]))


def test_massive_activations(tiny, exported, monkeypatch):
    """Whose second codes every thread makes for itself."""
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.0, samples=2, ctx=64)
    model = gwq_export.load(path, threads=2)
    for layer in model.weights.layers:
        weight = layer.attn_norm.weight.array.copy()
        weight[7] *= 1000
        layer.attn_norm.weight = F32(weight)
    for program, one_by_one in both(model, monkeypatch, [(IDS[:1], 1), (IDS[1:3], 2)]):
        assert np.isfinite(program).all() and np.array_equal(program, one_by_one)


def test_logits_are_the_callers(tiny, exported):
    """A later call does not write into what an earlier one returned."""
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    session = gwq_export.load(path).session(20)
    first = session.forward(IDS[:1])
    kept = first.copy()
    session.forward(IDS[1:2])
    assert np.array_equal(first, kept)
