"""Conversations: what they compute, what they drop, how they are halted."""

import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.runtime.chat import Chat
from tests.support.paths import REFERENCE


@pytest.fixture(scope="module")
def path(exported):
    return exported(REFERENCE, type="f32")[0]


@pytest.fixture(scope="module")
def model(path):
    return gwq_export.load(path, threads=1)


def test_a_chat_computes_only_what_is_new(model):
    chat = Chat(model, system="Be brief.", n=12)
    stats = {}
    for question in ("Hello there", "What is a city?", "Why?"):
        asked = [*chat.messages, {"role": "user", "content": question}]
        prompt = model.prompt_ids(asked)
        answer = "".join(chat.reply(question, stats))
        assert answer == model.generate(asked, n=12)
        assert chat.messages == [*asked, {"role": "assistant", "content": answer}]
        assert stats["context_tokens"] == len(prompt) + stats["tokens"]
        if len(asked) > 2:
            assert stats["prompt_tokens"] < len(prompt) / 2
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert "".join(chat.reply("Hello there")) == model.generate(
        [*chat._start, {"role": "user", "content": "Hello there"}], n=12
    )


def test_a_chat_drops_its_oldest_turns(path):
    model = gwq_export.load(path, threads=1, ctx=96)
    chat = Chat(model, system="Be brief.", n=20)
    stats = {}
    dropped = 0
    for turn in range(8):
        "".join(chat.reply(f"Question {turn}", stats))
        dropped += stats["dropped"]
        assert stats["context_tokens"] <= 96 and chat.messages[0]["role"] == "system"
        turns = len(chat.messages) // 2
        assert [m["role"] for m in chat.messages[1:]] == ["user", "assistant"] * turns
    assert dropped == 8 - len(chat.messages) // 2 > 2
    assert chat.messages[-2]["content"] == "Question 7"
    before = list(chat.messages)
    with pytest.raises(GwqError, match="context holds 96"):
        next(chat.reply("word " * 100))
    assert chat.messages == before
    unlimited = Chat(model)
    "".join(unlimited.reply("Hello there", stats))
    assert stats["stop"] in ("context", "token") and stats["context_tokens"] <= 96


@pytest.mark.parametrize("after", [0, 3])
def test_a_chat_can_be_halted(model, after):
    chat = Chat(model, n=12)
    stats = {}
    said = []
    said += chat.reply("Hello there", stats, halt=lambda: len(said) >= after) if not after else []
    for piece in chat.reply("Hello there", stats, halt=lambda: len(said) >= after):
        said.append(piece)
    assert stats["stop"] == "halt" and len(said) == after
    assert [m["content"] for m in chat.messages] == (
        ["Hello there", "".join(said)] if after else []
    )
    assert "".join(chat.reply("And then?", stats)) == model.generate(chat.messages[:-1], n=12)


def test_a_chat_without_roles_continues_the_text(model):
    chat = Chat(model, n=6, raw=True)
    first = "".join(chat.reply("The city of"))
    assert first == model.generate("The city of", n=6)
    assert "".join(chat.reply("It was")) == model.generate(f"The city of{first}\nIt was", n=6)
    with pytest.raises(GwqError, match="template"):
        Chat(model, system="x", raw=True)
