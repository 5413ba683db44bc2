"""The KV cache: what a session computes again, and what an interrupted forward pass leaves."""

import numpy as np
import pytest

import gwq_export
from gwq_export.format.types import TYPES
from gwq_export.runtime.kv_cache import KVCache

IDS = [5, 6, 7, 8, 9]


def held(*ids, ctx=8):
    cache = KVCache(2, ctx, 4, TYPES["f16"])
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
    cache.append(np.array([1], np.int32))
    assert cache.reuse([5, 6, 1, 8], 1) == 3
    cache.rewind(7)
    assert cache.pos == 3


def test_an_interrupted_forward_claims_nothing(exported, monkeypatch):
    model = gwq_export.load(exported(type="f32")[0], threads=1)
    session, whole = model.session(8), model.session(8)
    session.forward(IDS[:3])
    whole.forward(IDS[:3])
    attention, calls = session.ops.attention, []

    def interrupted(*args):
        calls.append(attention(*args))
        raise KeyboardInterrupt

    for replaced in (IDS[3:], [1, 2]):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(session.ops, "attention", interrupted)
            session.forward(replaced)
        assert session.pos == 3
    assert len(calls) == 2 and session.reuse(IDS) == 3
    assert np.array_equal(session.forward(IDS[3:], keep=2), whole.forward(IDS[3:], keep=2))
