"""Special tokens as plain text, streams of whole characters, placeholders."""

import pytest

from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, fragments, save, sentencepiece, unigram


@pytest.mark.parametrize("make", [byte_level, sentencepiece, lambda: unigram(bytes=True)])
def test_special_tokens_as_plain_text(tmp_path, make):
    native = make()
    keys = to_metadata(save(tmp_path, native), 700)
    for tok in (Tokenizer(keys), Tokenizer(keys | {JSON_KEY: native.to_str()})):
        name = native.id_to_token(2 if make is sentencepiece else 1)  # "</s>" or "<|im_end|>"
        id = native.token_to_id(name)
        assert id in tok.encode(f"a{name}b", bos=False)
        assert id not in tok.encode(f"a{name}b", special=False, bos=False)
        assert name in tok.decode(tok.encode(f"a{name}b", special=False, bos=False))
        assert tok.decode([id]) == "" and tok.decode([id], special=True) == name


def test_stream_gives_whole_characters_at_once(tmp_path):
    text = "aé你👍b the"
    for make in (byte_level, sentencepiece):
        tok = Tokenizer(to_metadata(save(tmp_path, make()), 700))
        parts = fragments(tok, tok.encode(text, bos=False))
        assert "".join(parts) == text
        assert all(text.startswith("".join(parts[:i])) for i in range(len(parts)))
        assert [p for p in parts if p][:4] == (
            ["a", "é", "你", "👍"] if make is byte_level else ["a", "é你", "👍b", " the"]
        )
        stream = tok.stream()
        for _ in range(2):  # flush starts anew
            assert (
                "".join(
                    [stream.feed(i) for i in tok.encode(" the fox", bos=False)] + [stream.flush()]
                )
                == " the fox"
            )


def test_placeholders_are_no_text(tmp_path):
    tok = Tokenizer(to_metadata(save(tmp_path, byte_level()), 500))
    assert tok.vocab_size == 500 and tok.decode([499]) == "" and fragments(tok, [499]) == ["", ""]
    assert 499 not in tok.encode("[PAD499]")
