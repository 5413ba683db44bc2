"""Tokens computed ahead: never another text."""

import numpy as np
import pytest

import gwq_export
from gwq_export.native.ops import ATTENTION_CUT
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime.decoding import Decoder
from gwq_export.runtime.lookup import LONGEST, SHORTEST, Lookup
from gwq_export.runtime.pace import COUNTS, Pace
from gwq_export.runtime.sampling import Sampling
from tests.support.models import TINY_MODELS

RNG = np.random.default_rng(9)


def test_guesses_follow_the_last_time():
    lookup = Lookup([0, 1, 2, 3, 4, 5, 0, 1, 2])
    assert lookup.guess(3) == ([3, 4, 5], 3)
    assert lookup.guess(9) == ([3, 4, 5, 0, 1, 2], 3)
    lookup.append(3)
    assert lookup.guess(2) == ([4, 5], 4)
    lookup.append(9)
    assert lookup.guess(2) == ([], 0)
    for token in (0, 1, 2):
        lookup.append(token)
    assert lookup.guess(2) == ([3, 9], 3)  # what came last
    for short in ([], [1], [1, 2], [1, 2, 1, 2]):
        assert Lookup(short).guess(3) == ([], 0)


def test_a_run_of_one_token():
    assert Lookup([7] * 6).guess(3) == ([7], 5)
    assert Lookup([7] * 40).guess(3) == ([7], LONGEST)


def test_the_pace_follows_what_passes_take():
    pace = Pace()
    sure = [1.0] * 5
    assert pace.best(sure) == 0 and pace.one is None  # before anything was timed
    for tokens, seconds in ((1, 1.0), (2, 1.2), (4, 1.5), (6, 2.0)):
        pace.took(tokens, seconds)
    assert pace.best([0.1] * 5) == 0 and pace.best([]) == 0
    assert pace.best(sure) == 5 and pace.best(sure[:4]) == 3
    assert pace.best([0.9, 0.1, 0.1]) == 1
    assert pace.best(sure[:4], counts=(1, 2, 4)) == 4 and pace.best([1, 1, 0], range(1, 6)) == 2
    assert pace.passes(4) == 1.5 and pace.passes(3) == pytest.approx(1.4)
    for _ in range(80):
        pace.took(2, 3.0)
        pace.took(4, 5.0)
        pace.took(6, 7.0)
    assert pace.best(sure) == 0  # as several at once cost more than one by one
    assert all(k + 1 <= MAX_TOKENS for k in COUNTS)


def test_a_pass_that_looked_slow_is_tried_again():
    pace = Pace()
    pace.took(1, 1.0)
    pace.took(4, 50.0)  # it set something up
    pace.took(2, 1.1)
    assert pace.best([1.0] * 3) == 1
    for _ in range(500):
        pace.took(1, 1.0)
    assert pace.best([1.0] * 3) == 3
    assert pace.passes(2) == 1.1  # what looked fast stays


def test_guesses_are_judged_as_they_come():
    lookup = Lookup([0, 1, 2, 3, 4, 5, 6, 7])
    before = lookup.chances(SHORTEST, 2)
    assert before == [SHORTEST / (LONGEST + 1), (SHORTEST + 1) / (LONGEST + 1)]
    for token in (0, 1, 2, 9):  # a wrong guess after SHORTEST tokens
        lookup.append(token)
    assert lookup.chances(SHORTEST, 2) == pytest.approx([0.9 * before[0], before[1]])
    for token in (0, 1, 2, 9):  # a right one
        lookup.append(token)
    assert lookup.chances(SHORTEST, 1) == pytest.approx([0.9 * 0.9 * before[0] + 0.1])


def eager(monkeypatch):
    """As if guesses cost nothing: as many as there are."""

    def best(self, chances, counts=COUNTS):
        return max([0, *(k for k in counts if k <= len(chances))])

    monkeypatch.setattr(Pace, "best", best)


@pytest.mark.parametrize("name", [n for n in TINY_MODELS if "rope" not in n])
def test_logits_are_the_same_bits(tiny, exported, monkeypatch, name):
    """Right guesses and wrong ones, in every architecture."""
    eager(monkeypatch)
    path, _ = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)
    model = gwq_export.load(path, threads=2)
    prompt = RNG.integers(3, 200, 12).tolist() * 2
    follows = [*prompt[:9], 5, *prompt[3:8], 7, 8, *prompt[:12]]
    found = []
    for ahead in (True, False):
        session = model.session(100)
        session.forward(prompt)
        decoder = Decoder(session, {"lookup": Lookup(prompt)} if ahead else {})
        found.append([decoder.after(t, 50 - i) for i, t in enumerate(follows)])
        decoder.close()
        assert session.pos == len(prompt) + len(follows)
        guessed, right = decoder.guessed["lookup"], decoder.right["lookup"]
        assert (guessed > right > 5) if ahead else not decoder.guessed
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


def test_never_more_guesses_than_tokens_may_come(tiny, exported, monkeypatch):
    eager(monkeypatch)
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    session = gwq_export.load(path).session(40)
    prompt = [5, 6, 7, 8] * 8
    session.forward(prompt)
    decoder = Decoder(session, {"lookup": Lookup(prompt)})
    for i in range(8):
        decoder.after(prompt[i], 7 - i)  # a pass beyond the context would be refused
    assert session.pos == 40 and decoder.right["lookup"]


def test_no_more_at_once_than_get_the_same_bits(tiny, exported, monkeypatch):
    eager(monkeypatch)
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    session = gwq_export.load(path).session(60)
    monkeypatch.setattr(session, "at_once", lambda: 3)
    lengths = []
    forward = session.forward

    def counted(ids, keep=1):
        lengths.append(len(ids))
        return forward(ids, keep)

    monkeypatch.setattr(session, "forward", counted)
    prompt = [5, 6, 7, 8] * 8
    session.forward(prompt)
    decoder = Decoder(session, {"lookup": Lookup(prompt)})
    for i in range(12):
        decoder.after(prompt[i], 20)
    assert max(lengths[1:]) == 2  # of 1, 3 and 5 guesses, one


@pytest.mark.parametrize("sampling", [{}, {"temp": 0.9, "seed": 4}, {"repeat_penalty": 1.3}])
def test_texts_are_the_same(exported, monkeypatch, sampling):
    eager(monkeypatch)
    monkeypatch.setattr("gwq_export.runtime.lookup.SHORTEST", 1)  # many guesses, mostly wrong
    path, _ = exported(type="gwq4")
    prompt = "The river ran past the old mill, and the old mill stood by the river. The river"
    texts, stats = [], {}
    for lookup in (True, False):
        model = gwq_export.load(path, lookup=lookup)
        texts.append("".join(model.stream(prompt, 80, Sampling(**sampling), stats=stats)))
        assert bool(stats["guessed"]) == lookup
    assert texts[0] == texts[1]


def test_where_attention_is_cut(tiny, exported):
    session = gwq_export.load(exported(tiny("llama"), type="f32", samples=1, ctx=16)[0]).session()
    for pos, expected in (
        (0, MAX_TOKENS),
        (ATTENTION_CUT - 2, 2),
        (ATTENTION_CUT - 1, 1),
        (ATTENTION_CUT, MAX_TOKENS),
        (4 * ATTENTION_CUT - 3, 3),
    ):
        session._cache.pos = pos
        assert session.at_once() == expected
