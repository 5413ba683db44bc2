"""The keys of a GGUF file give the ids and the text of the tokenizer they came from."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.pretokenizer import PRE
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import (
    CORPUS,
    GPT2_CONFIG,
    LLAMA_CONFIG,
    NASTY,
    PROBE,
    WORD3,
    byte_level,
    digits,
    fragments,
    gemma,
    random_ids,
    same,
    save,
    sentencepiece,
    split,
    unigram,
)


@pytest.mark.parametrize(
    "make, name",
    [
        (byte_level, "gpt-2"),
        (lambda: byte_level(normalizer=normalizers.NFC()), "olmo"),
        (lambda: byte_level(digits()), "smollm"),
        (lambda: byte_level(digits(), normalizers.NFC()), "command-r"),
        (lambda: byte_level(split(WORD3), ignore_merges=True), "llama-bpe"),
        (lambda: byte_level(split(WORD3)), "dbrx"),
        (
            lambda: byte_level(
                split(PRE["qwen2"][1][0]), normalizers.Sequence([normalizers.NFC()])
            ),
            "qwen2",
        ),
        (lambda: byte_level(split(PRE["tekken"][1][0]), ignore_merges=True), "tekken"),
        (lambda: byte_level(split(PRE["gpt-4o"][1][0])), "gpt-4o"),
        (lambda: byte_level(added=[AddedToken("    ", normalized=False), "<tool>"]), "gpt-2"),
        (sentencepiece, "default"),
        (lambda: sentencepiece(prefix=False), "default"),
        (lambda: sentencepiece(added=[AddedToken("<tool>", normalized=False)]), "default"),
        (gemma, "default"),
        (unigram, "default"),
        (lambda: unigram(merge=False, prefix="never"), "default"),
        (lambda: unigram(bytes=True, added=[AddedToken("<tool>", normalized=False)]), "default"),
    ],
)
def test_keys_rebuild_the_tokenizer(tmp_path, make, name):
    native = make()
    keys = to_metadata(save(tmp_path, native), 700)
    assert keys["tokenizer.ggml.pre"] == name and JSON_KEY not in keys
    tok = Tokenizer(keys)
    same(tok, native, NASTY + CORPUS[:3] + [PROBE])
    for seed in range(30):
        ids = random_ids(tok, seed)
        assert "".join(fragments(tok, ids)) == tok.decode(ids) == native.decode(ids)


@pytest.mark.parametrize(
    "make",
    [
        lambda: byte_level(added=[AddedToken("<mask>", lstrip=True)]),
        lambda: byte_level(added=[AddedToken("tok", single_word=True)]),
        lambda: byte_level(split(PRE["qwen35"][1][0])),  # qwen35 without its NFC
        lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    ],
)
def test_what_the_keys_cannot_say_goes_as_json(tmp_path, make):
    native = make()
    folder = save(tmp_path / "hf", native)
    keys = to_metadata(folder, 700)
    kept, saved = map(json.loads, (keys[JSON_KEY], (folder / "tokenizer.json").read_text()))
    assert kept | {"post_processor": None} == saved | {"post_processor": None}
    same(Tokenizer(keys), native, [*NASTY, "a <mask> b<mask>", "tok a tok, token", "</s> a</s>b"])
    del keys[JSON_KEY]  # the standard keys are there too
    assert Tokenizer(keys).encode("quick") == native.encode("quick").ids


def test_json_takes_precedence(tmp_path):
    keys = to_metadata(save(tmp_path, byte_level()), 700)
    other = sentencepiece()
    assert (
        Tokenizer(keys | {JSON_KEY: other.to_str()}).encode("the fox", bos=False)
        == other.encode("the fox", add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    "name, make, config",
    [
        ("gpt2", byte_level, GPT2_CONFIG),
        ("llama", sentencepiece, LLAMA_CONFIG),
        ("t5", unigram, {}),
    ],
)
def test_through_a_file(tmp_path, name, make, config):
    native = make()
    keys = to_metadata(save(tmp_path / "hf", native, tokenizer_config=config), 700)
    with Writer(tmp_path / "a.gguf", keys, []):
        pass
    metadata = Reader(tmp_path / "a.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == name
    assert metadata["tokenizer.ggml.token_type"].dtype == np.int32
    same(Tokenizer(metadata), native, NASTY)


def test_keys_of_sentencepiece(tmp_path):
    keys = to_metadata(
        save(
            tmp_path,
            sentencepiece(added=[AddedToken("<tool>", normalized=False)]),
            tokenizer_config=LLAMA_CONFIG,
        ),
        500,
    )
    tokens, types, scores = (
        keys[f"tokenizer.ggml.{k}"] for k in ("tokens", "token_type", "scores")
    )
    assert len(tokens) == len(types) == len(scores) == 500
    assert scores.dtype == np.float32
    assert types.dtype == np.int32
    kind = dict(zip(tokens, types.tolist(), strict=True))
    assert [kind[t] for t in ("▁t", "<unk>", "<s>", "<tool>", "[PAD499]", "<0x0A>")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    special = {
        k.removeprefix("tokenizer.ggml."): v
        for k, v in keys.items()
        if k.endswith("_id") or ".add_" in k
    }
    assert special == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": True,
    }


def test_keys_of_byte_level(tmp_path):
    native = byte_level(added=["<tool>"])
    generation = {"eos_token_id": [0, 1], "bos_token_id": 0}
    keys = to_metadata(
        save(
            tmp_path,
            native,
            generation_config=generation,
            special_tokens_map={"pad_token": "<|im_end|>"},
        ),
        450,
    )
    assert keys["tokenizer.ggml.model"] == "gpt2" and "tokenizer.ggml.scores" not in keys
    assert keys["tokenizer.ggml.merges"][0].count(" ") == 1
    assert [keys[f"tokenizer.ggml.{k}_token_id"] for k in ("bos", "eos", "eot", "padding")] == [
        0,
        0,
        1,
        1,
    ]
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.token_type"][
        [0, 1, 2, native.token_to_id("<tool>"), 449]
    ].tolist() == [3, 3, 1, 4, 5]
    assert Tokenizer(keys).stop_ids == {0, 1}


@pytest.mark.parametrize(
    "stops, keys, others",
    [
        (0, {"eos": 0}, set()),
        ([0], {"eos": 0}, set()),
        ([1, 0], {"eos": 0, "eot": 1}, set()),
        ([1], {"eos": 0, "eot": 1}, set()),
        ([0, 5, 6], {"eos": 0, "eot": 5, "eom": 6}, {5, 6}),
        ([0, 5, 6, 7], {"eos": 0, "eot": 5, "eom": 6}, {5, 6}),
        ([0, 9999], {"eos": 0}, set()),
    ],
)
def test_stop_tokens(tmp_path, caplog, stops, keys, others):
    found = to_metadata(
        save(
            tmp_path,
            byte_level(),
            tokenizer_config=GPT2_CONFIG,
            generation_config={"eos_token_id": stops},
        ),
        450,
    )
    names = {name: found.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert {name: id for name, id in names.items() if id is not None} == keys
    assert Tokenizer(found).stop_ids == {0, 1} | others  # <|endoftext|> and <|im_end|> always are
    assert ("left out: [7]" in caplog.text) == (stops == [0, 5, 6, 7])


@pytest.mark.parametrize("whole", [False, True])
def test_a_word_without_merges(tmp_path, whole):
    folder = save(tmp_path, byte_level(split(WORD3), ignore_merges=whole))
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"].remove(["t", "he"])  # "the" stays in the vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tok = Tokenizer(to_metadata(folder, 700))
    assert len(tok.encode("the")) == (1 if whole else 2)
    same(tok, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), ["the", "the fox"])


def test_old_merges_are_strings(tmp_path):
    native = byte_level()
    folder = save(tmp_path, native)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    same(Tokenizer(to_metadata(folder, 700)), native, NASTY)


@pytest.mark.parametrize(
    "flag, template, expected",
    [(None, True, True), (False, True, True), (True, False, False), (None, False, False)],
)
def test_add_bos(tmp_path, flag, template, expected):
    """transformers 5 goes by the post-processor of tokenizer.json, not by add_bos_token."""
    native = sentencepiece()
    if not template:
        native.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    config = LLAMA_CONFIG if flag is None else LLAMA_CONFIG | {"add_bos_token": flag}
    tok = Tokenizer(to_metadata(save(tmp_path, native, tokenizer_config=config), 500))
    plain = tok.encode("the fox", bos=False)
    assert tok.add_bos is expected
    assert tok.encode("the fox") == ([1, *plain] if expected else plain)
    assert tok.encode("the fox", bos=True) == [1, *plain]
    assert tok.encode("<s>the fox") == [1, *plain]
    assert tok.encode("<s>the fox", bos=True) == [1, 1, *plain]


def test_bos_of_the_post_processor_when_nothing_names_it(tmp_path):
    tok = Tokenizer(to_metadata(save(tmp_path, sentencepiece()), 500))
    assert (tok.bos, tok.eos, tok.add_bos) == (1, None, True)


def test_missing_optional_keys(tmp_path):
    native = sentencepiece()
    keys = to_metadata(save(tmp_path, native), 500)
    for key in ("add_bos_token", "add_space_prefix", "pre"):
        del keys[f"tokenizer.ggml.{key}"]
    tok = Tokenizer(keys)
    assert tok.add_bos
    assert tok.encode("the fox") == native.encode("the fox").ids  # what other readers assume


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_files_older_than_the_name_of_the_pre_tokenizer(tmp_path, caplog, pre):
    """Text is cut as llama.cpp cuts it then (tests/peers), and the user is told."""
    keys = to_metadata(save(tmp_path, byte_level()), 700)
    expected = Tokenizer(keys | {"tokenizer.ggml.pre": "default"})
    caplog.clear()
    del keys["tokenizer.ggml.pre"]
    tok = Tokenizer(keys | ({} if pre is None else {"tokenizer.ggml.pre": pre}))
    assert "does not say how its tokenizer cuts text" in caplog.text
    assert "--tokenizer-pre NAME" in caplog.text
    for text in [*NASTY, *CORPUS[:3], PROBE]:
        assert tok.encode(text) == expected.encode(text)
        assert tok.decode(tok.encode(text)) == tok.decode(expected.encode(text))
    assert len(tok.encode("$$a")) > 1


@pytest.mark.parametrize("pre, starts", [("llama-bpe", True), ("tekken", True), ("gpt-2", False)])
def test_bos_where_a_byte_level_file_does_not_say(tmp_path, pre, starts):
    keys = to_metadata(save(tmp_path, byte_level(), tokenizer_config=GPT2_CONFIG), 700)
    keys["tokenizer.ggml.pre"] = pre
    del keys["tokenizer.ggml.add_bos_token"]
    tok = Tokenizer(keys)
    assert tok.add_bos is starts and (tok.encode("the")[0] == tok.bos) is starts
