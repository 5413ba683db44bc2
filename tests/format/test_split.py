"""Models in several GGUF files: every reader takes all parts, or says what is wrong."""

import json
import shutil

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation import predictors
from tests.support.cli import assert_one_line, call
from tests.support.paths import DATA
from tests.support.split_files import split

IDS = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def whole(tiny, exported):
    """A file whose head is not its embedding."""
    return exported(tiny("llama"), type="f16")[0]


@pytest.fixture
def parts(whole, tmp_path):
    """Three parts of it, the head alone in the second."""
    names = list(gwq_export.open_gguf(whole).tensors)
    return split(whole, tmp_path, [names[:5], ["output.weight"]])


def test_all_parts_are_the_whole(whole, parts):
    one, several = gwq_export.open_gguf(whole), gwq_export.open_gguf(parts[0])
    assert set(several.tensors) == set(one.tensors)
    for name, tensor in one.tensors.items():
        assert np.array_equal(several.tensors[name].data, tensor.data), name
    assert several.nbytes == sum(p.stat().st_size for p in parts)
    several.check()
    expected = gwq_export.load(whole, threads=1).logits(IDS)
    assert np.array_equal(gwq_export.load(parts[0], threads=1).logits(IDS), expected)
    assert np.array_equal(
        predictors.load(parts[0], threads=1).logits(IDS),
        predictors.load(whole, threads=1).logits(IDS),
    )


def test_commands_take_the_first_part(tiny, whole, parts, tmp_path, capsys):
    (tmp_path / "t.txt").write_text((DATA / "eval.txt").read_text()[:2000])
    found = {}
    for path in (whole, parts[0]):
        status, out, err = call(
            capsys, "eval", path, "--text", tmp_path / "t.txt", "--ctx", 64, "--json"
        )
        assert status == 0, err
        found[path] = json.loads(out.splitlines()[-1])["ppl"]
    assert found[whole] == found[parts[0]]
    status, out, err = call(capsys, "info", parts[0], "--check", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert status == 0 and "output.weight" in [t["name"] for t in facts["tensors"]]
    assert facts["header_bytes"] + facts["tensor_bytes"] + facts["alignment_bytes"] == sum(
        p.stat().st_size for p in parts
    )
    expected = gwq_export.load(whole, threads=1).logits(IDS)
    for model, options in ((tiny("llama"), {"base": parts[0]}), (parts[0], {})):
        gwq_export.export(model, tmp_path / "again.gguf", type="f16", **options)
        again = gwq_export.load(tmp_path / "again.gguf", threads=1)
        assert np.array_equal(again.logits(IDS), expected)
        assert not any(key.startswith("split.") for key in again.weights.reader.metadata)


def test_what_is_wrong_is_one_sentence(whole, parts, tmp_path, capsys):
    """In every command, and never a model with a tied head."""
    (tmp_path / "t.txt").write_text("a b c")
    aside = tmp_path / "aside"
    aside.mkdir()
    names = list(gwq_export.open_gguf(whole).tensors)

    def with_keys(keys):
        return split(whole, aside, [names[:5], ["output.weight"]], keys=keys)[0]

    def renamed(source, name):
        return shutil.copyfile(source, aside / name)

    def without(no):
        for part in parts:
            shutil.copyfile(part, aside / part.name)
        (aside / parts[no].name).unlink()
        return aside / parts[0].name

    later = aside / "m-00001-of-00003.gguf"
    for make, words in [
        (lambda: parts[1], "part 2 of a model in 3 files: give the first, m-00001-of-00003.gguf"),
        (lambda: renamed(parts[2], "x.gguf"), "this is part 3 of a model in 3 files: give"),
        (lambda: without(1), "m-00002-of-00003.gguf is not beside it"),
        (lambda: renamed(parts[0], "model.gguf"), "does not end in -00001-of-00003.gguf"),
        (lambda: with_keys({1: {"split.no": np.uint16(2)}}), "split.no = 2, split.count = 3"),
        (lambda: with_keys({2: {"split.count": np.uint16(4)}}), "split.no = 2, split.count = 4"),
        (lambda: with_keys({0: {"split.count": np.uint16(2)}}), "-00001-of-00002.gguf"),
        (lambda: with_keys({0: {"split.tensors.count": np.int32(99)}}), "count says 99"),
        (lambda: with_keys({1: {"split.no": None}}), "split.no = None"),
        (lambda: with_keys({0: {"split.count": "three"}}), "split.count = 'three'"),
    ]:
        path = make()
        for command, arguments in [
            ("eval", ["--text", tmp_path / "t.txt"]),
            ("info", []),
            ("run", ["-p", "x"]),
            ("export", ["--out", tmp_path / "out.gguf", "--type", "f16"]),
        ]:
            status, _, err = call(capsys, command, path, *arguments)
            assert_one_line(command, status, err, words)
            assert "download all parts" in err or "give the first" in err
    assert later.exists() and not (tmp_path / "out.gguf").exists()


def test_a_part_twice(whole, tmp_path):
    names = list(gwq_export.open_gguf(whole).tensors)
    first, _ = split(whole, tmp_path, [names[:9]])
    _, wrong = split(whole, tmp_path, [names[:5]], name="other")
    shutil.copyfile(wrong, tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(GwqError, match=f"tensor {names[5]} is in two parts"):
        gwq_export.open_gguf(first)


def test_counts_of_a_whole_file(whole, tmp_path):
    """What llama-gguf-split --merge leaves: a count of 0, or of 1 part."""
    for count in (0, 1):
        keys = {0: {"split.count": np.uint16(count)}}
        (path,) = split(whole, tmp_path, [], keys=keys)
        assert "output.weight" in gwq_export.open_gguf(path).tensors


@pytest.mark.parametrize("name", ["m.gguf.part00", "m.gguf.part1of2", "m.gguf-split-a"])
def test_pieces_cut_by_bytes(whole, tmp_path, name):
    data = whole.read_bytes()
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        (tmp_path / name).write_bytes(piece)
        with pytest.raises(GwqError, match=r"piece of a file .* join all pieces"):
            gwq_export.open_gguf(tmp_path / name)
    (tmp_path / name).write_bytes(data)
    assert gwq_export.open_gguf(tmp_path / name).tensors
