"""Damaged files: every command refuses them in one line, gwq-info --check reads every byte."""

from itertools import pairwise

import pytest

from gwq_export.bench.files import model_type
from gwq_export.format.header import ARRAY
from gwq_export.format.reader import Reader
from gwq_export.format.types import HEAD
from tests.fuzz.gguf import Key, pack, parse
from tests.support.cli import assert_one_line, call
from tests.support.paths import DATA


def first_gap(reader):
    """Offset of an alignment byte between two tensors."""
    tensors = list(reader.tensors.values())
    return next(a.offset + a.nbytes for a, b in pairwise(tensors) if a.offset + a.nbytes < b.offset)


def damaged(small, tmp_path, name):
    """A copy of the file with one thing wrong."""
    data = bytearray(small[0].read_bytes())
    reader = Reader(small[0])
    out = tmp_path / "bad.gguf"
    tensors = list(reader.tensors.values())
    table = next(t for t in tensors if t.name.endswith(".outliers") and sum(t.data[:16]) > 2)
    matrix = reader.tensors[table.name.removesuffix(".outliers")]
    match name:
        case "magic":
            data[:4] = b"GGML"
        case "gguf version":
            data[4] = 9
        case "format version":
            at = data.index(b"gwq.format_version") + len("gwq.format_version") + 4
            data[at] += 1
        case "type":
            at = data.index((0x34515747).to_bytes(4, "little"))
            data[at : at + 4] = (60).to_bytes(4, "little")
        case "outlier column":
            count = data[table.offset : table.offset + 16]
            data[table.offset + 16 + 2 * sum(count)] = 255
            data[table.offset + 16 + 2 * sum(count) + 1 : table.offset + 16 + 3 * sum(count)] = (
                bytes(sum(count) - 1)
            )
        case "table entry":
            data[matrix.offset + 5] = 100
        case "row scale":
            data[matrix.offset + HEAD : matrix.offset + HEAD + 2] = b"\0\xfc"
        case "head":
            data[matrix.offset + matrix.type.head_bytes(matrix.shape[0]) - 1] = 1
        case "padding":
            data[first_gap(reader)] = 1
        case "outlier count":
            data[table.offset] += 1
        case "outlier offset":
            data[next(t for t in tensors if t.name.endswith("offsets")).offset + 4] ^= 64
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    "name, words",
    [
        ("magic", "GGUF"),
        ("gguf version", "version"),
        ("format version", "version"),
        ("type", "60"),
        ("outlier column", "outlier"),
        ("outlier count", "outlier"),
        ("outlier offset", "outlier"),
        ("table entry", "table"),
    ],
)
def test_damaged_files(small, capsys, tmp_path, name, words):
    path = damaged(small, tmp_path, name)
    for command_name, args in [
        ("run", ["-p", "x"]),
        ("info", ["--check"]),
        ("eval", ["--text", DATA / "eval.txt"]),
    ]:
        status, _, err = call(capsys, command_name, path, *args)
        assert_one_line(command_name, status, err, words)


@pytest.mark.parametrize(
    "name, words", [("row scale", "not finite"), ("head", "padding"), ("padding", "padding")]
)
def test_check_reads_every_byte(small, capsys, tmp_path, name, words):
    status, _, err = call(capsys, "info", damaged(small, tmp_path, name), "--check")
    assert_one_line("info", status, err, words)


def test_files_cut_in_every_section(small, capsys, tmp_path):
    data = small[0].read_bytes()
    reader = Reader(small[0])
    first = min(t.offset for t in reader.tensors.values())
    cuts = {0, 3, 8, 20, 24, 100, first // 2, first - 70, first - 1, first, len(data) - 1}
    cuts |= {t.offset + t.nbytes // 2 for t in list(reader.tensors.values())[:6]}
    for cut in sorted(cuts):
        (tmp_path / "cut.gguf").write_bytes(data[:cut])
        status, _, err = call(capsys, "info", tmp_path / "cut.gguf")
        assert_one_line("info", status, err, "cut.gguf")


KEYS = [
    "general.architecture",
    "general.file_type",
    "llama.context_length",
    "llama.expert_count",
    "llama.rope.scaling.type",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
]


@pytest.mark.parametrize("name", KEYS)
def test_arrays_in_the_place_of_values(small, capsys, tmp_path, name):
    """Of many numbers, which neither compare nor hash; the message stays one line."""
    file = parse(small[0].read_bytes())
    file.keys = [key for key in file.keys if key.name != name.encode()]
    file.keys.append(Key(name.encode(), ARRAY, list(range(300)), 4))
    path = tmp_path / "bad.gguf"
    path.write_bytes(pack(file))
    harmless = name == "general.file_type"  # only tables show it
    for command_name, args in [
        ("info", ["--check"]),
        ("run", ["-p", "x", "-n", "1"]),
        ("info", ["--to-safetensors", tmp_path / "out"]),
    ]:
        status, _, err = call(capsys, command_name, path, *args)
        if not harmless and (command_name != "info" or name.startswith("tokenizer")):
            assert_one_line(command_name, status, err, "")
        else:
            assert status in (0, 2), err
    assert model_type(Reader(path)) == model_type(Reader(small[0])).replace(
        "llama", str(Reader(path).metadata["general.architecture"])
    )
