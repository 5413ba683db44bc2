"""The KV cache: what a session computes again, and what an interrupted forward pass leaves."""

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.format.types import TYPES
from gwq_export.runtime import kv_cache
from gwq_export.runtime.kv_cache import KVCache

IDS = [5, 6, 7, 8, 9]


def held(*ids, ctx=8):
    cache = KVCache(2, ctx, 4, TYPES["f16"])
    cache.reserve(len(ids))
    cache.append(np.array(ids, np.int32))
    return cache


@pytest.mark.parametrize(
    "ids, keep, shared",
    [
        ([5, 6, 7, 8, 9], 1, 4),  # the last id is computed again, for its logits
        ([5, 6, 7, 8, 9], 0, 5),
        ([5, 6, 7, 8, 9], 3, 2),
        ([5, 6, 7, 8, 9, 1], 1, 5),
        ([5, 6, 1, 8, 9], 1, 2),
        ([1, 6, 7], 1, 0),
        ([5, 6], 1, 1),
        ([5, 6], 5, 0),
        ([], 1, 0),
    ],
)
def test_the_longest_common_prefix_is_kept(ids, keep, shared):
    for given in (ids, np.array(ids, np.int64)):
        cache = held(*IDS)
        assert cache.reuse(given, keep) == cache.pos == shared


def test_forgotten_ids_are_not_reused():
    cache = held(*IDS)
    cache.rewind(2)
    assert cache.reuse(IDS) == 2
    cache.reserve(3)
    cache.append(np.array([1], np.int32))
    assert cache.reuse([5, 6, 1, 8], 1) == 3
    cache.rewind(7)
    assert cache.pos == 3


def test_an_interrupted_forward_claims_nothing(exported, monkeypatch):
    monkeypatch.setattr("gwq_export.runtime.forward.MAX_TOKENS", 0)  # a program is one call
    model = gwq_export.load(exported(type="f32")[0], threads=1)
    session, whole = model.session(8), model.session(8)
    session.forward(IDS[:3])
    whole.forward(IDS[:3])
    attention, calls = session.parts[0].ops.attention, []

    def interrupted(*args):
        calls.append(attention(*args))
        raise KeyboardInterrupt

    for replaced in (IDS[3:], [1, 2]):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(session.parts[0].ops, "attention", interrupted)
            session.forward(replaced)
        assert session.pos == 3
    assert len(calls) == 2 and session.reuse(IDS) == 3
    assert np.array_equal(session.forward(IDS[3:], keep=2), whole.forward(IDS[3:], keep=2))


def test_room_doubles_up_to_the_context():
    cache = KVCache(2, 1000, 4, TYPES["f16"])
    rooms = []
    for i in range(1000):
        cache.reserve(i + 1)
        rooms.append(cache.room)
        cache.append(np.array([i], np.int32))
        for _, _, data in cache.layers:
            assert data.shape == (2, cache.room, 8)
            data[:, i] = i % 251
    assert list(dict.fromkeys(rooms)) == [256, 512, 1000]
    assert cache.nbytes(1000) == sum(data.nbytes for _, _, data in cache.layers)
    for _, _, data in cache.layers:
        assert (data == (np.arange(1000) % 251)[:, None]).all()
    assert cache.reuse(range(1000), 0) == 1000


@pytest.mark.parametrize("name", ["llama", "longrope", "gemma3"])
@pytest.mark.parametrize("cache", ["f32", "f16"])
def test_logits_do_not_depend_on_the_room(exported, tiny, monkeypatch, name, cache):
    """Room that is made step by step, and all of it at once."""
    model = gwq_export.load(exported(tiny(name), type="f32")[0], threads=1, cache=cache)
    ids = np.random.default_rng(0).integers(3, 1000, 100)
    monkeypatch.setattr(kv_cache, "FIRST", 256)
    whole = model.session(200)
    expected = [whole.forward(ids[i : i + 7]) for i in range(0, 100, 7)]
    monkeypatch.setattr(kv_cache, "FIRST", 1)
    grown = model.session(200)
    got = [grown.forward(ids[i : i + 7]) for i in range(0, 100, 7)]
    assert whole._cache.room == 200 and grown._cache.room == 112
    assert np.array_equal(got, expected)


def test_a_cache_that_does_not_fit(monkeypatch):
    """Twice as much does not fit, but what is needed does; then that does not either."""
    cache = KVCache(2, 4096, 4, TYPES["f16"])
    cache.reserve(256)
    monkeypatch.setattr(kv_cache, "free_memory", lambda: cache.nbytes(100))
    cache.reserve(300)
    assert cache.room == 300
    with pytest.raises(GwqError, match=r"\(f16\) of 600 positions takes 0\.02 MiB and 0\.00 MiB"):
        cache.reserve(600)
    assert cache.room == 300
    monkeypatch.setattr(kv_cache, "free_memory", lambda: None)
    with pytest.raises(MemoryError, match=r"takes 596\.0\d GiB$"):
        KVCache(20, 10**9, 4, TYPES["f32"]).reserve(10**9)


def test_an_interrupted_growth_keeps_what_there_is(exported, monkeypatch):
    model = gwq_export.load(exported(type="f32")[0], threads=1)
    monkeypatch.setattr(kv_cache, "FIRST", 4)
    session, whole = model.session(64), model.session(64)
    session.forward(IDS[:3])
    whole.forward(IDS[:3])
    for module, name in ((kv_cache, "pointer"), (type(session.weights), "rope_tables")):
        calls, real = [], getattr(module, name)

        def interrupted(*args, real=real, calls=calls):
            calls.append(args)
            if len(calls) == 4 or real.__name__ == "rope_tables":
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(module, name, interrupted)
            session.forward(IDS)
        assert session.pos == 3 and calls
    assert np.array_equal(session.forward(IDS * 3), whole.forward(IDS * 3))
