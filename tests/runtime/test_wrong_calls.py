"""Calls that cannot be: one sentence each, and never memory that nothing wrote."""

import signal
import threading

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.runtime.chat import Chat
from gwq_export.runtime.model import Model
from tests.support.paths import REFERENCE
from tests.support.random_llama import TINY, write_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    write_llama(path, TINY, 2, "gwq4", 0.01)
    return Model(path, threads=1)


@pytest.mark.parametrize("keep", [-1, 4, 100])
def test_logits_of_tokens_that_are_not_there(model, keep):
    with pytest.raises(GwqError, match=f"the last {keep} of 3 tokens"):
        model.session(8).forward([1, 2, 3], keep=keep)


def test_as_many_as_there_are(model):
    rows = model.session(8).forward([1, 2, 3], keep=3)
    assert rows.shape == (3, 1024) and np.isfinite(rows).all()
    assert model.session(8).forward([1, 2, 3], keep=0).shape == (0, 1024)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.session(-1), "a context of -1 positions"),
        (lambda m: m.session(8).rewind(-1), "position -1"),
        (lambda m: m.logits([]), "no tokens"),
        (lambda m: m.logits([[1]]), "no tokens"),
        (lambda m: m.logits([-1]), "token id"),
        (lambda m: m.logits([1024]), "token id"),
        (lambda m: m.logits([2**40]), "token id"),
        (lambda m: m.logits([1.5]), "token id"),
        (lambda m: m.logits(["a"]), "token id"),
        (lambda m: list(m.tokens(m.session(8), [])), "nothing to continue"),
        (lambda m: list(m.tokens(m.session(8), [5000])), "token id"),
        (lambda m: m.session(2).forward([1, 2, 3]), "fit the context of 2"),
    ],
)
def test_one_sentence_each(model, call, words):
    with pytest.raises(GwqError, match=words) as caught:
        call(model)
    assert str(caught.value).isprintable()


def test_a_halt_that_changes_its_mind(model):
    """It is asked again and again, and its first yes counts."""
    answers = iter([True, False, False, False])
    stats = {}
    ids = list(range(400))
    found = model.tokens(model.session(500), ids, 4, halt=lambda: next(answers), stats=stats)
    assert list(found) == [] and stats["stop"] == "halt"


class Own(Exception):
    """What a signal handler may raise."""


@pytest.mark.parametrize("at", ["prompt", "token"])
def test_an_exception_of_a_signal_handler_comes_through(model, monkeypatch, at):
    """Amid the first pass of a generation, and amid a later one."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")

    def strike(*args):
        raise Own

    before = signal.signal(signal.SIGUSR1, strike)
    session = model.session(64)
    forward = session.forward
    calls = []

    def struck(*args, **kwargs):
        calls.append(1)
        if len(calls) == (1 if at == "prompt" else 2):
            signal.raise_signal(signal.SIGUSR1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(session, "forward", struck)
    stats = {}
    try:
        with pytest.raises(Own):
            list(model.tokens(session, [1, 2, 3], 8, stats=stats))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stats["prompt_tps"] >= 0


def test_empty_messages_of_a_raw_chat(exported):
    chat = Chat(Model(exported(REFERENCE, type="f32")[0], threads=1), n=2, raw=True)
    with pytest.raises(GwqError, match="nothing to continue"):
        list(chat.reply(""))
    assert chat.messages == []
    said = "".join(chat.reply("The city"))
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    for content in ("", "\n", " "):
        list(chat.reply(content))
