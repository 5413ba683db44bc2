"""Layers with a state: batches of any size, going back, passes that are cut short."""

import json

import numpy as np
import pytest

import gwq_export
from gwq_export.arch.config import MAX_TAPS
from gwq_export.native.library import Pool, lib
from gwq_export.runtime.states import COPIES, HISTORY, States, state_bytes
from tests.support.cli import call

IDS = np.random.default_rng(5).integers(3, 1000, 200)
NAMES = ["lfm2", "lfm2-untied", "lfm3"]


@pytest.fixture(params=NAMES)
def model(tiny, exported, request):
    return gwq_export.load(exported(tiny(request.param), type="f32")[0], threads=2)


def near(a, b, bound=1e-4):
    return np.abs(a - b).max() <= bound * np.abs(b).max()


def forward(session, ids, step):
    return np.concatenate(
        [
            session.forward(ids[i : i + step], len(ids[i : i + step]))
            for i in range(0, len(ids), step)
        ]
    )


@pytest.mark.parametrize("type, bound", [("f32", 1e-4), ("gwq4", 0.02)])
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size(tiny, exported, name, type, bound):
    """The same logits in one piece, in pieces, and token by token.

    Where products round activations to codes, one of them may fall the other way.
    """
    path, _ = exported(tiny(name), type=type, samples=2, ctx=64)
    model = gwq_export.load(path, threads=2, cache="f32")
    whole = model.session(200).forward(IDS, len(IDS))
    for step in (1, 6, 7, 64, HISTORY, HISTORY + 1):
        assert near(forward(model.session(200), IDS, step), whole, bound), step


def test_going_back(model):
    """By what is in memory, to where a long pass has ended, and where neither is."""
    session = model.session(200)
    session.forward(IDS[:90])
    for i in range(90, 130):
        session.forward(IDS[i : i + 1])
    first = 130 - HISTORY
    found = [session._cache.states.nearest(p) for p in (130, first, first - 1, 90, 89, 1)]
    assert found == [130, first, 90, 90, 0, 0]
    for pos in (129, 125, first, first - 1, 91, 90, 60, 3, 1, 0):
        session.rewind(pos)
        assert session.pos == pos
        fresh = model.session(200)
        if pos:
            fresh.forward(IDS[:pos])
        more = [7, 8, 9]
        assert near(session.forward(more, 3), fresh.forward(more, 3)), pos
        session.rewind(pos)
        session.forward(IDS[pos:130])


def test_what_is_kept_of_another_text(model):
    """No more than the state can go back to: then the answer is as of a fresh session."""
    for shared, kept in ((129, 129), (120, 120), (85, 80), (79, 40), (39, 0)):
        session = model.session(200)
        session.forward(IDS[:40])
        session.forward(IDS[40:80])
        forward(session, IDS[80:130], 5)
        other = [*IDS[:shared], 5, 6]
        assert session.reuse(other) == session.pos == kept
        assert near(session.forward(other[kept:]), model.session(200).forward(other))


@pytest.mark.parametrize("count", [1, 6, HISTORY, HISTORY + 1, 100])
def test_a_pass_that_is_cut_short(model, monkeypatch, count):
    """What was held before it is held afterwards."""
    monkeypatch.setattr("gwq_export.runtime.forward.MAX_TOKENS", 0)  # a program is one call
    session, whole = model.session(200), model.session(200)
    session.forward(IDS[:50])
    whole.forward(IDS[:50])
    convolution = session.parts[0].ops.shortconv

    def interrupted(*args):
        convolution(*args)
        raise KeyboardInterrupt

    for other in (IDS[70 : 70 + count], IDS[90 : 90 + count]):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(session.parts[0].ops, "shortconv", interrupted)
            session.forward(other)
        assert session.pos == 50
    assert np.array_equal(session.forward(IDS[50:60], 10), whole.forward(IDS[50:60], 10))


def test_copies_are_few():
    states = States(2, 3, 8, Pool(1))
    for pos in range(0, 4000, 100):
        states.begin(pos, 100)
        for memory in states.memory:
            memory.array[np.arange(pos, pos + 100) % states.rows] = np.arange(100)[:, None]
        states.end(pos + 100, 100)
    kept = [p for p in range(4001) if states.nearest(p) == p and p < 4000 - HISTORY]
    assert kept == [0, *range(4000 - 100 * (COPIES - 1), 4000, 100)]
    copies = sum(copy.nbytes for copy in states._copies.values())
    assert (
        states.nbytes == state_bytes(2, 3, 8) == copies + sum(m.array.nbytes for m in states.memory)
    )
    states.begin(kept[3], 5)
    assert all(
        (m.array[[p % states.rows for p in (kept[3] - 2, kept[3] - 1)], 0] == (98, 99)).all()
        for m in states.memory
    )


def test_the_most_taps():
    assert lib().GWQ_MAX_TAPS == MAX_TAPS


def test_gwq_info_says_what_a_text_takes(tiny, exported, capsys):
    path = exported(tiny("lfm2"), type="f32")[0]
    cache = gwq_export.load(path).session(64)._cache
    status, out, _ = call(capsys, "info", path, "--json")
    facts = json.loads(out.splitlines()[-1])
    assert status == 0 and facts["state_bytes"] == cache.states.nbytes
    assert 64 * facts["cache_bytes"] == cache.nbytes(64)
    _, out, _ = call(capsys, "info", path)
    assert f"of states, whatever its length, and {facts['cache_bytes']} bytes of KV cache" in out


def test_what_a_session_says_it_takes(model):
    """The memory of the states does not grow with the context."""
    small, large = (model.session(ctx).cache_bytes for ctx in (64, 128))
    cache = model.session(64)._cache
    assert small == cache.nbytes(64) + cache.states.nbytes and large == small + cache.nbytes(64)
