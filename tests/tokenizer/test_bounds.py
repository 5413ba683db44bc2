"""Tokenizers that a file brings: what they may ask of the library, and whatever it raises."""

import base64
import json

import numpy as np
import pytest
import tokenizers

from gwq_export import GwqError, limits
from gwq_export.errors import NoMemory, translated
from gwq_export.tokenizer import bounds
from gwq_export.tokenizer.build import JSON_KEY, from_json
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.patterns import repeats_repeats
from gwq_export.tokenizer.pretokenizer import PRE
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.paths import SHARED
from tests.support.tokenizers import (
    byte_level,
    charsmap,
    gemma,
    save,
    sentencepiece,
    unigram,
    unusable,
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """keys(make, **parts of tokenizer.json) -> keys of a file with that tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")

    def of(make=byte_level, **parts):
        native = make()
        found = to_metadata(save(folder, native), 500)
        spec = json.loads(native.to_str())
        model = parts.pop("model", {})
        return found | {JSON_KEY: json.dumps(spec | parts | {"model": spec["model"] | model})}

    return of


def replace(old, new, kind="String"):
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(kind, *members):
    return {"type": "Sequence", kind: list(members)}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def precompiled(data):
    text = base64.b64encode(data).decode()
    return {"type": "Precompiled", "precompiled_charsmap": text}


BAD_PARTS = {
    "growth by steps": (
        {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 9)},
        "long a text gets",
    ),
    "growth by one": ({"normalizer": replace("a", "a" * 1000)}, "long a text gets"),
    "growth by a pattern": ({"normalizer": replace("a*", "b" * 300, "Regex")}, "long a text gets"),
    "growth by nothing": ({"normalizer": replace("", "b" * 300)}, "long a text gets"),
    "growth in decoding": (
        {"decoder": sequence("decoders", *[replace("a", "aa")] * 9)},
        "long a text gets",
    ),
    "growth of nested steps": (
        {
            "normalizer": sequence(
                "normalizers", *[sequence("normalizers", *[replace("a", "aaaa")] * 2)] * 3
            )
        },
        "long a text gets",
    ),
    "growth by a table": (
        {"normalizer": precompiled(charsmap()[:-2] + b" " * 300 + b"\0")},
        "long a text gets",
    ),
    "a damaged table": (
        {"normalizer": precompiled(charsmap().replace(b"\0\0\0\x80", b"\1\0\0\x80"))},
        "precompiled_charsmap",
    ),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 5000}}, "characters"),
    "many steps": (
        {"pre_tokenizer": sequence("pretokenizers", *[split("a")] * 65)},
        "pretokenizers",
    ),
    "a repeated repetition": ({"pre_tokenizer": split("(a+)+b")}, "without end"),
    "the same in a normalizer": ({"normalizer": replace("(a+)+b", "", "Regex")}, "without end"),
    "a long pattern": ({"pre_tokenizer": split("a" * 20000)}, "characters of a pattern"),
    "another model": (
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
        "WordLevel",
    ),
    "a step without length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, ""),
    "a decoder that strips": (
        {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}},
        "plain text",
    ),
    "a model without words": ({"model": {"vocab": {}, "merges": []}}, ""),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_tokenizer_json_beyond_bounds(keys, name):
    parts, word = BAD_PARTS[name]
    if name == "a model without words":  # nothing can be encoded, which is no fault
        Tokenizer(keys(**parts))
    else:
        unusable(lambda: Tokenizer(keys(**parts)), word)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram, gemma])
def test_usual_ones_are_within_bounds(keys, make):
    text = "Grüße, 你好 123  x"
    native = make()  # training a unigram gives another one each time
    tok = Tokenizer(keys(lambda: native))
    assert tok.encode(text, bos=False) == native.encode(text, add_special_tokens=False).ids


def test_what_a_template_adds_is_left_out(keys):
    """A post-processor may repeat a text as often as it likes."""
    part = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [part] * 1000,
        "pair": [part, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    tok = Tokenizer(keys(post_processor=processor))
    assert tok.encode("a b") == Tokenizer(keys()).encode("a b")


def test_empty_pieces_of_a_unigram(tmp_path, keys):
    """They would match everywhere; none is ever found."""
    found = to_metadata(save(tmp_path, unigram()), 500)
    tokens = found["tokenizer.ggml.tokens"]
    tokens[tokens.index("▁the")] = ""
    assert tokens.index("") not in Tokenizer(found).encode("the the")
    spec = json.loads(keys(unigram)[JSON_KEY])
    spec["model"]["vocab"][-1][0] = ""
    unusable(lambda: Tokenizer(keys(unigram) | {JSON_KEY: json.dumps(spec)}), "empty")


def vocabulary(tokens, family="gpt2", **more):
    more = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return {
        "tokenizer.ggml.model": family,
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [],
    } | more


def test_vocabularies_beyond_bounds(monkeypatch):
    unusable(lambda: Tokenizer(vocabulary(["a", "b" * 5000])), "characters of a token", "4096")
    with monkeypatch.context() as m:
        m.setattr(limits, "TOKENS", 100)
        unusable(lambda: Tokenizer(vocabulary(["a"] * 101)), "tokens of the vocabulary: 101")
        m.setattr(limits, "MERGES", 10)
        unusable(lambda: Tokenizer(vocabulary(["a"], merges=["a a"] * 11)), "merges")
    # merges of a vocabulary that has none are looked for: every end of every piece is a piece
    runs = ["<unk>", *("a" * n for n in range(1, 900))]
    types = np.array([2] + [1] * 899, np.int32)
    for name, value in (("PIECES_WORK", 1 << 20), ("MERGES_TEXT", 1 << 20), ("MERGES", 1 << 10)):
        with monkeypatch.context() as m:
            m.setattr(limits, name, value)
            unusable(lambda: Tokenizer(vocabulary(runs, "llama", token_type=types)), "merges")
    with monkeypatch.context() as m:
        m.setattr(limits, "TOKENIZER_JSON", 100)
        unusable(lambda: Tokenizer(vocabulary(["a"]) | {JSON_KEY: "{" * 101}), "characters of")


def test_a_slow_tokenizer_is_found_at_once(monkeypatch, keys):
    monkeypatch.setattr(limits, "PROBE_SECONDS", 0.0)
    unusable(lambda: Tokenizer(keys()), "takes more than 0 seconds")


class Panic(BaseException):
    """As the library raises it: no Exception."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(
    "raised, kind",
    [
        (Panic("index 9\nout of range"), GwqError),
        (Exception("words"), GwqError),
        (OverflowError(), GwqError),
        (MemoryError(), NoMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), NoMemory),
        (ImportError("x.so: failed to map segment from shared object"), NoMemory),
        (OSError(12, "Cannot allocate memory"), NoMemory),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_the_library_raises(monkeypatch, tmp_path, raised, kind):
    """While it builds, encodes and decodes."""

    class Raises:
        def __getattr__(self, name):
            raise raised

    tok = Tokenizer(to_metadata(save(tmp_path, byte_level()), 500))
    calls = [lambda: tok.encode("a"), lambda: tok.decode([1]), lambda: bounds.check_probe(Raises())]
    tok._native = Raises()
    monkeypatch.setattr(tokenizers, "Tokenizer", Raises())
    calls.append(lambda: from_json("{}", "it"))
    for call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        if kind is GwqError:
            assert "()" not in str(caught.value) and str(caught.value).isprintable()


def test_the_librarys_own_panic_is_one_sentence():
    spec = json.loads(byte_level().to_str()) | {"pre_tokenizer": split("(a+)+b")}
    native = tokenizers.Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(GwqError, match=r"it fails .*retry"), translated("it fails ({})"):
        native.encode("a" * 40)


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("(a+)+", True),
        ("(?:a*|b)*", True),
        ("((a+)b)+", True),
        ("(a+){2,}", True),
        ("(a*?)+", True),
        ("(?i:x|(?:y+))*", True),
        (r"(\(+)*", True),
        ("(?>a+)+", False),
        ("(?:a++)+", False),
        ("[(a+)]+", False),
        ("[a[b+]]+", False),
        (r"\(a+\)+", False),
        (r"(?:\d{3})*", False),
        (r"\d{1,3}(?=(?:\d{3})*\b)", False),
        ("(a+){3}", False),
        (r"\p{L}+|\s+(?!\S)|\s+", False),
        ("(", False),
        (")+", False),
        ("[", False),
        ("\\", False),
    ],
)
def test_repeated_repetitions(pattern, found):
    assert repeats_repeats(pattern) is found


def test_the_patterns_of_models_repeat_no_repetition():
    assert not any(repeats_repeats(p) for pre in PRE.values() for p in pre.patterns)
    for path in SHARED.glob("tokenizers/*/tokenizer.json"):
        bounds.check_steps(from_json(path.read_text(encoding="utf-8"), path))
