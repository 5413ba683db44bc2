"""The study of tokens computed ahead runs."""

import sys

from studies import lookup


def test_a_table_of_answers(exported, monkeypatch, capsys):
    path, _ = exported(type="gwq4")
    monkeypatch.setattr(lookup, "SOURCE", 60)
    monkeypatch.setattr(sys, "argv", ["lookup", str(path), "-n", "12", "-r", "1", "-t", "2"])
    lookup.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model.gguf, 2 threads, ")
    assert lines[2].startswith("| answer | prompt tokens | tokens |") and len(lines) == 9


def test_a_draft_model(exported, monkeypatch, capsys):
    path, draft = (exported(type=type)[0] for type in ("gwq4", "gwq2"))
    monkeypatch.setattr(lookup, "SOURCE", 60)
    argv = ["lookup", str(path), "--draft", str(draft), "-n", "12", "-r", "1", "-t", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    lookup.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model.gguf with model.gguf, 2 threads, ") and len(lines) == 9
    assert any(" of " in line for line in lines[4:])
