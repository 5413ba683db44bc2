"""Folders and keys without a usable tokenizer."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models

from gwq_export import GwqError
from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, charsmap, save, sentencepiece, unigram, unusable


def test_folders_without_a_usable_tokenizer(tmp_path):
    unusable(lambda: to_metadata(tmp_path, 500), str(tmp_path), "tokenizer.json")
    native = byte_level()
    unusable(lambda: to_metadata(save(tmp_path, native), native.get_vocab_size() - 1), "embeddings")
    unusable(
        lambda: to_metadata(
            save(tmp_path, tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a"))), 500
        ),
        "WordLevel",
    )
    unusable(
        lambda: to_metadata(save(tmp_path, tokenizers.Tokenizer(models.BPE({"a": 0}, []))), 500),
        "BPE",
    )
    unusable(
        lambda: to_metadata(
            save(tmp_path, tokenizers.Tokenizer(models.BPE(byte_fallback=True))), 500
        ),
        "tokenizer.json",
    )
    for text in ("{", "[]", "{}", '{"model": 3}', '"x"', "\x00"):
        save(tmp_path, native)
        (tmp_path / "tokenizer.json").write_text(text)
        unusable(lambda: to_metadata(tmp_path, 500), "tokenizer.json")
    for name in ("tokenizer_config", "generation_config", "special_tokens_map"):
        save(tmp_path, native)
        for text in ("{", "[]", "3", '{"bos_token": [1]}', '{"chat_template": [{}]}'):
            (tmp_path / f"{name}.json").write_text(text)
            try:
                Tokenizer(to_metadata(tmp_path, 500))
            except GwqError as e:
                assert "\n" not in str(e)
        (tmp_path / f"{name}.json").unlink()


BAD_MAPS = [b"", charsmap()[:-1], charsmap()[:9], charsmap()[:4] + b"\xff" * 2048 + b" \0"]
BAD_MAPS += [
    charsmap().replace(b"\0\0\0\x80", value)
    for value in (b"\1\0\0\x80", b"\0\0\0\x7f", b"\xff\xff\xff\x7f")
]
BROKEN = [
    ("tokenizer.ggml.model", None),
    ("tokenizer.ggml.model", "bert"),
    ("tokenizer.ggml.model", 3),
    ("tokenizer.ggml.tokens", None),
    ("tokenizer.ggml.tokens", np.arange(500)),
    ("tokenizer.ggml.tokens", ["a"]),
    ("tokenizer.ggml.tokens", []),
    ("tokenizer.ggml.token_type", np.ones(3, np.int32)),
    ("tokenizer.ggml.token_type", "x"),
    ("tokenizer.ggml.bos_token_id", 500),
    ("tokenizer.ggml.eos_token_id", -1),
    ("tokenizer.ggml.eos_token_id", "</s>"),
    ("tokenizer.ggml.add_bos_token", "yes"),
    ("tokenizer.chat_template", 1.5),
    (JSON_KEY, "{}"),
    (JSON_KEY, 5),
    ("gpt2 tokenizer.ggml.pre", 3),
    ("gpt2 tokenizer.ggml.pre", "nonsense"),
    ("gpt2 tokenizer.ggml.merges", None),
    ("gpt2 tokenizer.ggml.merges", ["a"]),
    ("gpt2 tokenizer.ggml.merges", ["zzz yyy"]),
    ("llama tokenizer.ggml.scores", np.zeros(3, np.float32)),
    ("llama tokenizer.ggml.scores", np.full(500, np.nan, np.float32)),
    ("llama tokenizer.ggml.add_space_prefix", 2),
    ("t5 tokenizer.ggml.token_type", np.ones(500, np.int32)),  # no unknown token
    *(("t5 tokenizer.ggml.precompiled_charsmap", np.frombuffer(m, np.uint8)) for m in BAD_MAPS),
]


@pytest.mark.parametrize("key, value", BROKEN)
@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_broken_keys(tmp_path, make, key, value):
    keys = to_metadata(save(tmp_path, make()), 500)
    family, _, key = key.rpartition(" ")
    if family not in ("", keys["tokenizer.ggml.model"]):
        pytest.skip("a key of the other family")
    if value is None:
        del keys[key]
    else:
        keys[key] = value
    unusable(lambda: Tokenizer(keys))


def test_file_without_a_tokenizer():
    unusable(lambda: Tokenizer({"general.architecture": "llama"}), "tokenizer.ggml.model")


def test_text_that_is_not_unicode(tmp_path):
    unusable(
        lambda: Tokenizer(to_metadata(save(tmp_path, byte_level()), 500)).encode("a\udc80"),
        "Unicode",
    )
