"""Files of draft models: the command that takes them, and what is refused."""

import json

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.runtime.draft import open_draft
from tests.support.cli import assert_one_line, call


def header(path, tokens, types=None, kind="gpt2", arch="llama"):
    """A file with a vocabulary and next to nothing else."""
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


def test_the_command(path, tiny_path, smaller, capsys, caplog, tmp_path):
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
        (tiny_path(), "1024 tokens, not 8192"),
        (unknown, "architecture 'mamba' is not supported"),
        (tmp_path / "text.gguf", "text.gguf"),
        (tmp_path / "no.gguf", "no.gguf does not exist"),
    ):
        status, _, err = call(capsys, "run", path, *args, "--draft", file)
        assert_one_line("run", status, err, words)
        assert "--draft: " in err
    status, _, err = call(capsys, "run", smaller, *args, "--draft", path)
    assert status == 0 and "no smaller than the model" in caplog.text


def test_a_refused_draft_model_is_refused_before_the_model_is_read(path, tiny_path, monkeypatch):
    monkeypatch.setattr("gwq_export.runtime.weights.bring_in", lambda path: pytest.fail("read"))
    with pytest.raises(GwqError, match="vocabulary"):
        gwq_export.load(path, draft=tiny_path())
