"""Pre-tokenizers: known ones by their names, unknown ones as JSON."""

import pytest
from tokenizers import normalizers, pre_tokenizers

from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.pretokenizer import ROWS
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import NASTY, PROBE, byte_level, same, save, split, unusable


def test_unknown_pre_tokenizer(tmp_path, caplog):
    native = byte_level(split(r"\w+|\W+"))
    folder = save(tmp_path, native)
    keys = to_metadata(folder, 500)
    assert "--tokenizer-pre" in caplog.text
    assert r"\\w+|\\W+" in caplog.text
    assert len(caplog.records) == 1
    assert keys["tokenizer.ggml.pre"] == "unknown"  # a name that llama.cpp refuses
    same(Tokenizer(keys), native, NASTY)
    keys = to_metadata(folder, 500, pre="superbpe")  # a name that only llama.cpp knows
    assert keys["tokenizer.ggml.pre"] == "superbpe"
    same(Tokenizer(keys), native, NASTY)
    del keys[JSON_KEY]
    unusable(lambda: Tokenizer(keys), "superbpe")
    for normalizer, pre in (
        (normalizers.Lowercase(), None),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ):
        native = byte_level(pre, normalizer)
        same(Tokenizer(to_metadata(save(tmp_path, native), 500)), native, NASTY)
        keys = to_metadata(tmp_path, 500, pre="gpt-2")  # asserted, and wrong
        assert keys["tokenizer.ggml.pre"] == "gpt-2" and JSON_KEY in keys


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split()[0])
def test_every_stock_name_is_found_again(tmp_path, row):
    names, normalizer, patterns, whole, _ = row
    native = byte_level(split(*patterns), normalizer and normalizers.NFC(), ignore_merges=whole)
    keys = to_metadata(save(tmp_path, native), 500)
    assert keys["tokenizer.ggml.pre"] == names.split()[0] and JSON_KEY not in keys
    for name in names.split():
        assert (
            Tokenizer(keys | {"tokenizer.ggml.pre": name}).encode(PROBE) == native.encode(PROBE).ids
        )
