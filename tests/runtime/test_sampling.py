"""Stop strings, repeat penalty, and generation that obeys them."""

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.runtime.sampling import Sampling, StopStrings
from tests.support.paths import REFERENCE


@pytest.fixture(scope="module")
def path(exported):
    return exported(REFERENCE, type="f32")[0]


@pytest.fixture(scope="module")
def model(path):
    return gwq_export.load(path, threads=1)


@pytest.mark.parametrize(
    "text, strings, expected",
    [
        ("one two three", [], "one two three"),
        ("one two three", ["two"], "one "),
        ("one two three", ["twx", "e t"], "on"),
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("aaaa", ["ab"], "aaaa"),
        ("x</s", ["</s>"], "x</s"),
        ("x</s>y", ["</s>", "x<"], ""),
        ("né", ["é"], "n"),
        ("one\nUser: x", ["\nUser:"], "one"),
        ("abc", ["c", "bc"], "a"),
    ],
)
def test_stop_strings(text, strings, expected):
    ways = [0, 1, 0b1010101, (1 << len(text)) - 1]  # how the text arrives: a bit for every cut
    if len(text) < 8:
        ways = range(1 << (len(text) - 1))
    for cuts in ways:
        pieces = [""]
        for i, c in enumerate(text):
            pieces[-1] += c
            if cuts >> i & 1:
                pieces.append("")
        stops = StopStrings(strings)
        out = ""
        for piece in pieces:
            out += stops.feed(piece)
            assert expected.startswith(out)  # nothing of a stop string is ever printed
            if stops.found:
                break
        else:
            out += stops.flush()
        assert out == expected and stops.found == (expected != text)


def test_text_is_not_held_back_without_need():
    stops = StopStrings(["\n\n", "###"])
    assert [stops.feed(p) for p in ("abc", "d#", "e", "f##", "g\n", "h")] == [
        "abc",
        "d",
        "#e",
        "f",
        "##g",
        "\nh",
    ]
    with pytest.raises(GwqError, match="empty"):
        StopStrings(["a", ""])


@pytest.mark.parametrize(
    "penalty, last, before, expected",
    [
        (1.0, 64, [0, 1], 0),
        (2.0, 64, [0], 1),
        (2.0, 64, [0, 1], 0),
        (2.0, 64, [0, 0, 1, 1], 0),
        (2.0, 1, [0, 1], 0),
        (2.0, -1, [0, 2], 1),
        (2.0, 0, [0], 0),
        (0.5, 64, [1], 1),
        (4.0, 64, [0, 1, 2], 0),
        (20.0, 64, [0, 1], 0),
    ],
)
def test_repeat_penalty(penalty, last, before, expected):
    logits = np.array([3.0, 2.0, -1.0, -8.0], np.float32)
    assert (
        Sampling(repeat_penalty=penalty, repeat_last_n=last).pick(logits, None, before) == expected
    )
    assert logits.tolist() == [3, 2, -1, -8]


def test_repeat_penalty_lowers_negative_logits_too():
    assert Sampling(repeat_penalty=2.0).pick(np.array([-1.0, -1.5]), None, [0]) == 1


@pytest.mark.parametrize(
    "options", [{"repeat_penalty": 0.0}, {"repeat_penalty": float("nan")}, {"repeat_last_n": -2}]
)
def test_impossible_penalties(options):
    with pytest.raises(GwqError, match="repeat"):
        Sampling(**options)


def test_generation_obeys_stop_strings_and_penalty(model):
    plain = model.generate("The city of", n=24)
    cut = plain[8:11]
    stats = {}
    assert (
        "".join(model.stream("The city of", 24, stop=[cut], stats=stats))
        == plain[: plain.index(cut)]
    )
    assert stats["stop"] == "string" and 0 < stats["tokens"] < 24
    ids = model.tokenizer.encode("The city of")
    free = list(model.tokens(model.session(), ids, 60))
    assert len(set(free)) < len(
        set(model.tokens(model.session(), ids, 60, Sampling(repeat_penalty=1.5, repeat_last_n=-1)))
    )


def test_token_ids_need_no_tokenizer(path, monkeypatch):
    def build(metadata):
        raise AssertionError("the tokenizer was built")

    monkeypatch.setattr("gwq_export.tokenizer.tokenizer.Tokenizer", build)
    model = gwq_export.load(path, threads=1)
    assert model.logits([5, 6]).shape[0] == 2
    made = list(model.tokens(model.session(), [5, 6], 4))
    assert len(made) == 4
    session = model.session()
    assert (
        list(model.tokens(session, [5, 6], 2))
        + list(model.tokens(session, made[1:2], 2, before=[5, 6, made[0]]))
        == made
    )
