"""Files that calibrate: several, and JSON lines of chats and of texts."""

import io
import json
import sys

import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.sources import CALIBRATION, read_calibration
from gwq_export.cli import main
from gwq_export.hf.source import Source
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.paths import REFERENCE

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A cat."}]
SMALL = {"type": "gwq4", "samples": 4, "ctx": 16, "fast": True}


def tokenizer(template=TEMPLATE):
    source = Source(REFERENCE)
    made = Tokenizer(to_metadata(source.folder, source.vocab))
    made.chat_template = template
    return made


def lines(path, *values):
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values) + "\n")
    return path


def test_without_a_file_it_is_the_bundled_text():
    tok = tokenizer()
    expected = tok.encode(CALIBRATION.read_text(), special=False, bos=False)
    assert read_calibration(tok).ids == expected


def test_files_follow_one_another(tmp_path):
    tok = tokenizer()
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("The first text.")
    two.write_text("And\r\nthe second.")
    ids = read_calibration(tok, [one, two]).ids
    assert ids == [
        *tok.encode("The first text.", special=False, bos=False),
        *tok.encode("And\nthe second.", special=False, bos=False),
    ]


def test_a_chat_is_what_the_template_makes_of_it_without_a_turn_to_come(tmp_path):
    tok = tokenizer()
    ids = read_calibration(tok, [lines(tmp_path / "c.jsonl", {"messages": CHAT}, "")]).ids
    text = tok.chat(CHAT, add_generation_prompt=False)
    assert ids == tok.encode(text, special=True, bos=False)
    assert not text.endswith("<|assistant|>") and "A cat." in text


def test_special_tokens_are_read_in_a_chat_only(tmp_path):
    tok = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    eos = tok.decode([tok.eos], special=True)
    chat = {"messages": [{"role": "user", "content": f"a{eos}"}]}
    path = lines(tmp_path / "c.jsonl", chat, {"text": f"a{eos}"})
    ids = read_calibration(tok, [path]).ids
    assert ids.count(tok.eos) == 1 and ids.index(tok.eos) < len(ids) // 2


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        "7",
        "[" * 100_000,
        {},
        {"text": 3},
        {"messages": []},
        {"messages": ["hello"]},
        {"messages": {"role": "user"}},
    ],
)
def test_other_lines_are_named(tmp_path, bad):
    path = lines(tmp_path / "c.jsonl", {"text": "fine"}, bad)
    with pytest.raises(GwqError, match=r"c\.jsonl, line 2: neither a chat nor a text; write \{"):
        read_calibration(tokenizer(), [path])


def test_a_model_without_a_template_and_a_template_that_refuses(tmp_path):
    path = lines(tmp_path / "c.jsonl", {"messages": CHAT})
    with pytest.raises(GwqError, match=r"c\.jsonl, line 1: the file has no chat template"):
        read_calibration(tokenizer(None), [path])
    with pytest.raises(GwqError, match=r"c\.jsonl, line 1: .*no such role"):
        read_calibration(tokenizer("{{ raise_exception('no such role') }}"), [path])


def test_an_empty_file_among_others(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(GwqError, match=r"--calib .*empty\.txt: the text is empty"):
        read_calibration(tokenizer(), [CALIBRATION, tmp_path / "empty.txt"])


def test_exports_with_texts_and_chats(tiny, tmp_path):
    """The order of files counts, one file is a list of one, and both faces mean the same."""
    text = tmp_path / "t.txt"
    text.write_text("Some more text to calibrate on. " * 40)
    rows = [{"text": f"Line {i} of a list of texts."} for i in range(40)]
    rows = lines(tmp_path / "l.jsonl", *rows)
    ways = {"both": [text, rows], "turned": [rows, text], "one": text, "a": [text]}
    made = {}
    for name, calib in ways.items():
        made[name] = tmp_path / f"{name}.gguf"
        gwq_export.export(tiny("llama"), made[name], calib=calib, **SMALL)
    same = {name: path.read_bytes() for name, path in made.items()}
    assert same["one"] == same["a"] and len(set(same.values())) == 3
    flags = ["--calib", str(text), "--calib", str(rows), "--type", "gwq4", "--fast"]
    flags += ["--samples", "4", "--ctx", "16", "--out", str(tmp_path / "cli.gguf")]
    assert main("export", [str(tiny("llama")), *flags]) == 0
    assert (tmp_path / "cli.gguf").read_bytes() == same["both"]


def test_standard_input_is_read_once(tiny, tmp_path, monkeypatch):
    text = "All windows of the text are drawn from what was read at first. " * 60
    (tmp_path / "t.txt").write_text(text)
    options = SMALL | {"verify": True, "max_kld": 100.0}
    files = []
    for calib in ("-", tmp_path / "t.txt"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        out = tmp_path / f"{len(files)}.gguf"
        gwq_export.export(tiny("llama"), out, calib=calib, **options)
        files.append(out.read_bytes())
    assert files[0] == files[1]
