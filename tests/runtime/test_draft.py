"""Tokens that a draft model guesses: never another text, and little time where they are wrong."""

import dataclasses

import numpy as np
import pytest

import gwq_export
from gwq_export.runtime import draft
from gwq_export.runtime.chat import Chat
from gwq_export.runtime.decoding import Decoder
from gwq_export.runtime.draft import Drafter
from gwq_export.runtime.pace import COUNTS, Pace
from gwq_export.runtime.sampling import Sampling
from tests.support.models import TINY_MODELS

PROMPT = "The river ran past the old mill, and the old mill stood by the river. The river"


@pytest.fixture
def eager(monkeypatch):
    """As if guesses cost nothing: as many as there may be, and never a rest."""

    def best(self, chances, counts=COUNTS):
        return max([0, *(k for k in counts if k <= len(chances))])

    monkeypatch.setattr(Pace, "best", best)
    for name, value in (
        ("CHANCE", 1e9),
        ("CHANCES", [1.0] * 4),
        ("RATE", 0),
        ("PURSE", 1e9),
        ("TIMED", 1),
    ):
        monkeypatch.setattr(draft, name, value)


def greedy(model, ids, count):
    """The likeliest tokens after `ids`, computed from the start and one by one.

    Up to 6 at once give the same bits. A longer prompt rounds sums differently, so that another
    token may be the likeliest.
    """
    session = model.session(len(ids) + count)
    for i in ids:
        (logits,) = session.forward([i])
    found = [int(logits.argmax())]
    while len(found) < count:
        found.append(int(session.forward(found[-1:])[0].argmax()))
    return found


# --- the same text --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in TINY_MODELS if "rope" not in n])
def test_logits_are_the_same_bits(tiny_path, eager, name):
    """Right guesses and wrong ones, in every architecture."""
    model = gwq_export.load(tiny_path(name), threads=2)
    drafter = Drafter(model.weights, 100, model.config.vocab)
    prompt = np.random.default_rng(9).integers(3, 200, 12).tolist()
    follows = greedy(model, prompt, 14)
    follows += [5, 6, *greedy(model, [*prompt, *follows, 5, 6], 9)]
    found = []
    for guessers in ({"draft": drafter}, {}):
        session = model.session(100)
        session.forward(prompt)
        drafter.start(prompt)
        decoder = Decoder(session, guessers)
        found.append([decoder.after(t, len(follows) - 1 - i) for i, t in enumerate(follows)])
        decoder.close()
        assert session.pos == len(prompt) + len(follows)
        guessed, right = decoder.guessed["draft"], decoder.right["draft"]
        assert (guessed > right > 12) if guessers else not guessed
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temp": 0.9, "seed": 4}, {"temp": 1.5, "top_k": 0, "seed": 1}, {"repeat_penalty": 1.3}],
)
def test_texts_are_the_same(path, smaller, eager, sampling, lookup):
    texts, stats = [], {}
    for file in (None, smaller):
        model = gwq_export.load(path, lookup=lookup, draft=file)
        texts.append("".join(model.stream(PROMPT, 80, Sampling(**sampling), stats=stats)))
        if not lookup:
            assert stats["guessed"] == 0
    assert texts[0] == texts[1]
    assert stats["drafted"] >= stats["accepted"] > 0 and stats["speedup"] > 0


def test_texts_are_the_same_by_the_clock(path, smaller):
    """How many guesses there are then depends on the machine; the text does not."""
    model = gwq_export.load(path, draft=smaller)
    plain = gwq_export.load(path, lookup=False)
    for sampling in ({}, {"temp": 0.8, "seed": 3}):
        assert model.generate(PROMPT, 60, **sampling) == plain.generate(PROMPT, 60, **sampling)


def test_a_model_is_always_right_about_itself(path, eager):
    stats = {}
    model = gwq_export.load(path, lookup=False, draft=path)
    "".join(model.stream(PROMPT, 61, stats=stats))
    # one token alone, then one guess to time it, then five at a time
    assert stats["drafted"] == stats["accepted"] >= 45


def test_stop_strings_and_tokens_end_the_text(path, smaller, eager):
    texts = []
    for file in (None, smaller):
        model = gwq_export.load(path, draft=file)
        text = model.generate(PROMPT, 60)
        stats = {}
        cut = "".join(model.stream(PROMPT, 60, stop=[text[30:34]], stats=stats))
        assert cut == text[: text.index(text[30:34])] and stats["stop"] == "string"
        texts.append((text, stats["tokens"]))
    assert texts[0] == texts[1]


# --- the draft model's KV cache -------------------------------------------------------------------


def test_guesses_are_what_the_draft_model_would_say(tiny_path, eager):
    """After right guesses, wrong ones and tokens that others guessed."""
    model = gwq_export.load(tiny_path())
    drafter = Drafter(model.weights, 120, model.config.vocab)
    pace = Pace()
    pace.took(1, 1.0)
    text = [5, 6, 7, 8, 9, 10]
    drafter.start(text)
    for step, kept in enumerate([1, 5, 0, 3, 5, 1, 2, 0, 0, 4]):
        guesses = drafter.propose(5 if step % 2 else 3, pace)
        assert guesses == greedy(model, text, len(guesses)) and guesses
        come = [*guesses[:kept], (guesses[-1] + 1) % 1000]
        if step == 6:
            come += [11, 12, 13]
        for token in come:
            drafter.append(token)
        text += come
    drafter.start(text[:20])  # another turn of a chat, which shares its beginning
    assert drafter.propose(3, pace) == greedy(model, text[:20], 3)


def test_nothing_is_read_twice(tiny_path, eager, monkeypatch):
    model = gwq_export.load(tiny_path())
    drafter = Drafter(model.weights, 100, model.config.vocab)
    read = []
    forward = drafter.session.forward
    monkeypatch.setattr(
        drafter.session, "forward", lambda ids, keep: (read.append(len(ids)), forward(ids, keep))[1]
    )
    pace = Pace()
    pace.took(1, 1.0)
    drafter.start(list(range(3, 33)))
    assert read == [30]
    drafter.append(40)
    drafter.propose(5, pace)
    drafter.append(50)  # the one guess that times it was wrong
    guesses = drafter.propose(5, pace)
    assert len(guesses) == 5
    assert read == [30, 1, 1, 1, 1, 1, 1]
    for token in guesses[:2]:
        drafter.append(token)
    drafter.append((guesses[2] + 1) % 1000)
    drafter.propose(1, pace)
    assert read[7:] == [1]
    drafter.start([*range(3, 33), 40, 60, 61])
    assert read[8:] == [2]


def test_turns_of_a_chat(path, smaller, eager):
    stats, answers = {}, []
    for file in (None, smaller):
        chat = Chat(gwq_export.load(path, draft=file, lookup=False), system="Be brief.", n=16)
        said = ["".join(chat.reply(q, stats)) for q in ("Hello there", "What is a city?", "Why?")]
        halted = []
        for piece in chat.reply("And then?", stats, halt=lambda: len(halted) >= 3):  # noqa: B023
            halted.append(piece)
        chat.clear()
        said += [*halted, "".join(chat.reply("Hello there", stats))]
        answers.append(said)
        assert bool(stats.get("drafted")) == (file is not None)
    assert answers[0] == answers[1]


def test_a_context_that_is_full(path, smaller, eager):
    """Of the model, and before that of its draft model."""
    stats = {}
    texts = []
    for file in (None, smaller):
        model = gwq_export.load(path, ctx=120, draft=file, lookup=False)
        if model.draft:
            model.draft.config = dataclasses.replace(model.draft.config, ctx=40)
        texts.append("".join(model.stream(PROMPT, -1, stats=stats)))
        assert stats["stop"] == "context"
    assert texts[0] == texts[1] and stats["drafted"] > stats["accepted"] > 10


def test_a_text_too_long_for_the_draft_model(tiny_path, eager):
    """It goes on with the end of the text."""
    model = gwq_export.load(tiny_path())
    pace = Pace()
    pace.took(1, 1.0)
    text = list(range(3, 103))
    for ctx in (20, 101):
        drafter = Drafter(model.weights, ctx, model.config.vocab)
        drafter.start(text)
        window = drafter.session.pos
        assert window == min(ctx // 2, draft.WINDOW)
        drafter.append(7)
        assert drafter.propose(5, pace) == greedy(model, [*text[-window:], 7], 1)
        for i in range(60):
            drafter.append(i)
            drafter.propose(5, pace)
            assert drafter.session.pos <= ctx


def test_tokens_that_one_model_does_not_know(tiny_path, eager):
    model = gwq_export.load(tiny_path())
    pace = Pace()
    pace.took(1, 1.0)
    likeliest = greedy(model, [5, 6, 7], 1)[0]
    assert likeliest > 8
    drafter = Drafter(model.weights, 60, likeliest)
    drafter.start([5, 6, 7])
    assert drafter.propose(5, pace) == []
    drafter = Drafter(model.weights, 60, 1024)
    drafter.start([5, 1024, 7])
    assert drafter.propose(5, pace) == []
    drafter.start([5, 6, 7])
    assert drafter.propose(5, pace) == [likeliest]
    drafter.append(1024)
    assert drafter.propose(5, pace) == []


def test_the_cache_of_the_draft_model_is_counted(path, smaller):
    plain, both = gwq_export.load(path), gwq_export.load(path, draft=smaller, cache="q8_0")
    assert both.draft.cache_type.name == "q8_0"
    assert both.draft.pool is both.weights.pool
    assert both.cache_bytes(64) * 32 == 2 * plain.cache_bytes(64) * 17
    assert plain.drafter() is None
