"""Tokens that a draft model guesses: never another text, and little time where they are wrong."""

import dataclasses
import json

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.runtime import decoding, draft
from gwq_export.runtime.chat import Chat
from gwq_export.runtime.decoding import Decoder
from gwq_export.runtime.draft import Drafter, open_draft
from gwq_export.runtime.pace import COUNTS, Pace
from gwq_export.runtime.sampling import Sampling
from tests.support.cli import assert_one_line, call
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


@pytest.fixture(scope="module")
def path(exported):
    return exported(type="gwq4")[0]


@pytest.fixture(scope="module")
def smaller(exported):
    """The same model in fewer bits: often, but not always, of the same mind."""
    return exported(type="gwq2")[0]


def tiny_path(tiny, exported, name="llama"):
    return exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)[0]


def greedy(model, ids, count):
    """The likeliest tokens after `ids`, computed from the start."""
    found = []
    for _ in range(count):
        found.append(int(model.logits([*ids, *found])[-1].argmax()))
    return found


# --- the same text --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in TINY_MODELS if "rope" not in n])
def test_logits_are_the_same_bits(tiny, exported, eager, name):
    """Right guesses and wrong ones, in every architecture."""
    model = gwq_export.load(tiny_path(tiny, exported, name), threads=2)
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
    assert stats["drafted"] > stats["accepted"] > 0 and stats["speedup"] > 0


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


def test_guesses_are_what_the_draft_model_would_say(tiny, exported, eager):
    """After right guesses, wrong ones and tokens that others guessed."""
    model = gwq_export.load(tiny_path(tiny, exported))
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


def test_nothing_is_read_twice(tiny, exported, eager, monkeypatch):
    model = gwq_export.load(tiny_path(tiny, exported))
    drafter = Drafter(model.weights, 100, model.config.vocab)
    read = []
    forward = drafter.session.forward
    monkeypatch.setattr(
        drafter.session, "forward", lambda ids: (read.append(len(ids)), forward(ids))[1]
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


def test_a_text_too_long_for_the_draft_model(tiny, exported, eager):
    """It goes on with the end of the text."""
    model = gwq_export.load(tiny_path(tiny, exported))
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


def test_tokens_that_one_model_does_not_know(tiny, exported, eager):
    model = gwq_export.load(tiny_path(tiny, exported))
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


# --- how many guesses -----------------------------------------------------------------------------


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


def test_a_useless_draft_model_is_left_alone(tiny, exported, monkeypatch):
    model = gwq_export.load(tiny_path(tiny, exported))
    tokens = np.random.default_rng(1).integers(3, 1000, 900).tolist()
    decoder, seconds, drafted = play(monkeypatch, model, 0.3, lambda i, guess: tokens[i])
    assert decoder.right["draft"] <= 2
    assert seconds <= 900 * (1 + draft.SHARE) + draft.PURSE + 2  # nor much more than is allowed
    assert sum(drafted[:100]) > 4  # it was tried
    assert sum(drafted[100:]) > 0  # and later again
    assert sum(drafted) < 60


def test_a_good_draft_model_is_used(tiny, exported, monkeypatch):
    model = gwq_export.load(tiny_path(tiny, exported))
    decoder, seconds, _ = play(monkeypatch, model, 0.05, lambda i, guess: guess)
    assert decoder.right["draft"] == decoder.guessed["draft"] > 650
    assert seconds < 0.45 * 900 and decoder.speedup == pytest.approx(900 / seconds)


def test_a_slow_draft_model_is_left_alone(tiny, exported, monkeypatch):
    """However right it is."""
    model = gwq_export.load(tiny_path(tiny, exported))
    _, seconds, drafted = play(monkeypatch, model, 0.9, lambda i, guess: guess)
    assert seconds <= 900 * (1 + draft.SHARE) + draft.PURSE + 2 and sum(drafted[400:]) < 60


def test_a_draft_model_that_becomes_good_is_used_again(tiny, exported, monkeypatch):
    model = gwq_export.load(tiny_path(tiny, exported))
    tokens = np.random.default_rng(1).integers(3, 1000, 900).tolist()
    _, _, drafted = play(monkeypatch, model, 0.1, lambda i, guess: tokens[i] if i < 300 else guess)
    assert sum(drafted[150:300]) < 20 and sum(drafted[700:]) > 120


# --- what is refused ------------------------------------------------------------------------------


def header(path, tokens, types=None, kind="gpt2", arch="llama"):
    """A file with a vocabulary and next to nothing else."""
    from gwq_export.format.types import TYPES

    metadata = {
        "general.architecture": arch,
        f"{arch}.attention.head_count": 1,
        f"{arch}.embedding_length": 4,
        f"{arch}.block_count": 1,
        f"{arch}.context_length": 8,
        f"{arch}.feed_forward_length": 4,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
    }
    if types:
        metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    shape = (len(tokens), 4)
    with Writer(path, metadata, [("token_embd.weight", TYPES["f32"], shape)]) as w:
        w.write("token_embd.weight", np.zeros(shape, np.float32))
    return path


def test_other_vocabularies_are_refused(tmp_path):
    file = Reader(header(tmp_path / "a.gguf", ["a", "b", "[PAD2]"], [1, 1, 5]))
    for tokens, types, kind in (
        (["a", "b"], None, "gpt2"),
        (["a", "b", "[PAD2]", "[PAD3]", "[PAD4]"], [1, 1, 5, 5, 5], "gpt2"),
    ):
        open_draft(header(tmp_path / "b.gguf", tokens, types, kind), file)
    for tokens, types, kind, words in (
        (["a", "c"], None, "gpt2", "token 1 is 'c', not 'b'"),
        (["b", "a"], None, "gpt2", "token 0 is 'b', not 'a'"),
        (["a", "b", "c"], None, "gpt2", "3 tokens, not 2"),
        (["a"], None, "gpt2", "1 tokens, not 2"),
        (["a", "b", "[PAD2]"], [1, 1, 1], "gpt2", "3 tokens, not 2"),
        (["a", "b"], None, "llama", "tokenizer of type llama, not gpt2"),
    ):
        path = header(tmp_path / "b.gguf", tokens, types, kind)
        with pytest.raises(GwqError, match=r"--draft: .*b\.gguf does not have the vocabulary") as e:
            open_draft(path, file)
        assert words in str(e.value) and "use a smaller model with the same tokenizer" in str(e)


def test_the_command(path, smaller, exported, tiny, capsys, caplog, tmp_path):
    args = ["-p", "The city of", "--raw", "-n", 40, "-t", 1, "--no-lookup"]
    status, out, _ = call(capsys, "run", path, *args, "--json")
    plain = json.loads(out.splitlines()[-1])
    assert status == 0 and "drafted" not in plain
    status, out, err = call(capsys, "run", path, *args, "--draft", smaller, "--json")
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and found["text"] == plain["text"] and not caplog.text
    assert 0 <= found["accepted"] <= found["drafted"] > 0 and found["speedup"] > 0
    line = f"{found['accepted']} of {found['drafted']} drafted tokens accepted"
    assert f", {line}, {found['speedup']:.2f} times as fast as one by one;" in err
    unknown = header(tmp_path / "unknown.gguf", ["a"], arch="mamba")
    (tmp_path / "text.gguf").write_text("not a model")
    for file, words in (
        (tiny_path(tiny, exported), "1024 tokens, not 8192"),
        (unknown, "architecture 'mamba' is not supported"),
        (tmp_path / "text.gguf", "text.gguf"),
        (tmp_path / "no.gguf", "no.gguf does not exist"),
    ):
        status, _, err = call(capsys, "run", path, *args, "--draft", file)
        assert_one_line("run", status, err, words)
        assert "--draft: " in err
    status, _, err = call(capsys, "run", smaller, *args, "--draft", path)
    assert status == 0 and "no smaller than the model" in caplog.text


def test_a_refused_draft_model_is_refused_before_the_model_is_read(
    path, exported, tiny, monkeypatch
):
    monkeypatch.setattr("gwq_export.runtime.weights.bring_in", lambda path: pytest.fail("read"))
    with pytest.raises(GwqError, match="vocabulary"):
        gwq_export.load(path, draft=tiny_path(tiny, exported))
