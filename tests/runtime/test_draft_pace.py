"""How many tokens a draft model guesses, and when it rests."""

import dataclasses

import numpy as np
import pytest

import gwq_export
from gwq_export.runtime import decoding, draft
from gwq_export.runtime.decoding import Decoder
from gwq_export.runtime.draft import Drafter


class Clock:
    """Passes of the model take 1 and 0.2 for every further token; those of `drafter` a part."""

    def __init__(self, monkeypatch, session, drafter, part):
        self.now = 0.0
        self.drafts = 0
        for module in (decoding, draft):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)
        for s, cost in ((session, 1.0), (drafter.session, part)):
            monkeypatch.setattr(s, "forward", self.timed(s, cost, s is not session))

    def timed(self, session, cost, drafts):
        forward = session.forward

        def run(ids, keep=1):
            self.now += cost * (1 + 0.2 * (len(ids) - 1))
            self.drafts += drafts
            return forward(ids, keep)

        return run


def play(monkeypatch, model, part, come, count=900):
    """Decode `count` tokens, come(i, what the draft model guesses), by a clock of its own.

    Returns (the decoder, seconds, guesses computed at every token).
    """
    weights = model.weights
    weights.config = dataclasses.replace(weights.config, ctx=1000)
    model.ctx = 1000
    session = model.session()
    drafter = Drafter(weights, 1000, 1024)
    prompt = [5, 6, 7]
    session.forward(prompt)
    drafter.start(prompt)
    clock = Clock(monkeypatch, session, drafter, part)
    decoder = Decoder(session, {"draft": drafter})
    drafted = []
    for i in range(count):
        token = come(i, drafter._guesses[0][0] if drafter._guesses else 9)
        decoder.after(token, count - 1 - i)
        drafted.append(decoder.guessed["draft"] - sum(drafted))
    return decoder, clock.now, drafted


def test_a_useless_draft_model_is_left_alone(tiny_path, monkeypatch):
    model = gwq_export.load(tiny_path())
    tokens = np.random.default_rng(1).integers(3, 1000, 900).tolist()
    decoder, seconds, drafted = play(monkeypatch, model, 0.3, lambda i, guess: tokens[i])
    assert decoder.right["draft"] <= 2
    assert seconds <= 900 * (1 + draft.SHARE) + draft.PURSE + 2  # nor much more than is allowed
    assert sum(drafted[:100]) > 4  # it was tried
    assert sum(drafted[100:]) > 0  # and later again
    assert sum(drafted) < 60


def test_a_good_draft_model_is_used(tiny_path, monkeypatch):
    model = gwq_export.load(tiny_path())
    decoder, seconds, _ = play(monkeypatch, model, 0.05, lambda i, guess: guess)
    assert decoder.right["draft"] == decoder.guessed["draft"] > 650
    assert seconds < 0.45 * 900 and decoder.speedup == pytest.approx(900 / seconds)


def test_a_slow_draft_model_is_left_alone(tiny_path, monkeypatch):
    """However right it is."""
    model = gwq_export.load(tiny_path())
    _, seconds, drafted = play(monkeypatch, model, 0.9, lambda i, guess: guess)
    assert seconds <= 900 * (1 + draft.SHARE) + draft.PURSE + 2 and sum(drafted[400:]) < 60


def test_a_draft_model_that_becomes_good_is_used_again(tiny_path, monkeypatch):
    model = gwq_export.load(tiny_path())
    tokens = np.random.default_rng(1).integers(3, 1000, 900).tolist()
    _, _, drafted = play(monkeypatch, model, 0.1, lambda i, guess: tokens[i] if i < 300 else guess)
    assert sum(drafted[150:300]) < 20 and sum(drafted[700:]) > 120
