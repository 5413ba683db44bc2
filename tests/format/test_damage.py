"""Damaged files: nothing but GwqError comes out of one, in a sentence that names the place."""

import builtins
import errno
import os
import struct

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.layout import VERSION_KEY
from gwq_export.format.reader import Reader
from gwq_export.format.types import FORMAT_VERSION, TYPES
from gwq_export.format.writer import Writer
from tests.support.gguf_files import (
    METADATA,
    descriptor,
    example,
    pair,
    patched,
    raw_file,
    refused,
    write,
)


def test_truncation_at_every_byte(small):
    path, raw = small
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        refused(path)


def test_truncation_of_a_large_header(tmp_path):
    tensors, data = example()
    raw = write(tmp_path / "a.gguf", METADATA, tensors, data).read_bytes()
    for n in (*range(0, 3000, 7), len(raw) // 2, len(raw) - 64, len(raw) - 1):
        (tmp_path / "a.gguf").write_bytes(raw[:n])
        refused(tmp_path / "a.gguf")


def test_random_damage_gives_a_reader_or_a_sentence(tmp_path, small):
    path, raw = small
    rng = np.random.default_rng(3)
    header = raw.index(b"outlier_offsets") + 200
    opened = 0
    for _ in range(2500):
        damaged = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(0, header if rng.random() < 0.9 else len(raw))
            damaged[at] = rng.choice(
                [0, 1, 0x7F, 0x80, 0xFF, rng.integers(256), damaged[at] ^ 1 << rng.integers(8)]
            )
        if rng.random() < 0.3:  # a huge count or length
            at = rng.integers(0, header - 8)
            damaged[at : at + 8] = rng.choice(
                np.array([0, 2**31, 2**40, 2**63, 2**64 - 1], "<u8")
            ).tobytes()
        path.write_bytes(damaged)
        try:
            r = Reader(path)
            opened += 1
            for key in r.metadata:
                r.metadata[key]
            for t in r.tensors.values():
                t.dequantize()
            r.check()
        except GwqError as e:
            assert str(e).isprintable() and len(str(e)) < 1000
    assert 50 < opened < 2400  # else the damage says nothing


def test_format_version(small):
    path, raw = small
    key = VERSION_KEY.encode() + struct.pack("<I", 4)
    refused(
        patched(path, raw, key + struct.pack("<I", FORMAT_VERSION), key + struct.pack("<I", 77)),
        "77",
        str(FORMAT_VERSION),
        "version",
    )
    refused(
        patched(path, raw, b"gwq.format_version", b"gwq.format_versiom"),
        "w",
        VERSION_KEY,
        "missing",
    )


@pytest.mark.parametrize(
    "version, word", [(2, "version 2"), (4, "version 4"), (3 << 24, "big-endian")]
)
def test_gguf_version(small, version, word):
    path, raw = small
    path.write_bytes(raw[:4] + struct.pack("<I", version) + raw[8:])
    refused(path, word)


def test_unknown_type(small):
    path, raw = small
    refused(
        patched(path, raw, struct.pack("<I", TYPES["gwq4"].id), struct.pack("<I", 0x39515747)),
        "tensor w",
        str(0x39515747),
    )


@pytest.mark.parametrize(
    "keys, words",
    [
        ([pair(b"a", 4, b"\0" * 4), pair(b"a", 4, b"\0" * 4)], ["key a", "twice"]),
        ([pair(b"a", 13, b"\0" * 4)], ["value of a", "13"]),
        ([pair(b"a\n" * 5000, 13, b"\0" * 4)], ["value of a\\na", "13"]),
        ([pair(b"a", 9, struct.pack("<IQ", 9, 1) + bytes(20))], ["value of a", "9"]),
        ([pair(b"a", 9, struct.pack("<IQ", 77, 1) + bytes(20))], ["value of a", "77"]),
        ([pair(b"a", 9, struct.pack("<IQ", 4, 2**62) + bytes(20))], ["array a"]),
        ([pair(b"a", 9, struct.pack("<IQ", 8, 2**62) + bytes(20))], ["value of a"]),
        ([pair(b"a", 9, struct.pack("<IQQ", 8, 1, 2**63))], []),
        ([pair(b"a", 9, struct.pack("<IQQQ", 8, 2, 2**64 - 1, 2**64 - 1))], []),
        ([pair(b"a", 8, struct.pack("<Q", 2**63))], ["value of a"]),
        ([pair(b"a", 8, struct.pack("<Q", 2) + b"\xff\xfe")], ["value of a", "UTF-8"]),
        ([pair(b"\xff", 4, b"\0" * 4)], ["key 0", "UTF-8"]),
        ([pair(b"general.alignment", 4, struct.pack("<I", 48))], ["general.alignment"]),
        ([pair(b"general.alignment", 4, struct.pack("<I", 0))], ["general.alignment"]),
        ([pair(b"general.alignment", 4, struct.pack("<I", 4))], ["general.alignment"]),
        ([pair(b"general.alignment", 8, struct.pack("<Q", 1) + b"8")], ["general.alignment"]),
        (
            [
                pair(b"gwq.format_version", 4, struct.pack("<I", FORMAT_VERSION)),
                pair(b"general.alignment", 4, struct.pack("<I", 32)),
            ],
            ["general.alignment", "64"],
        ),
        ([pair(b"gwq.format_version", 8, struct.pack("<Q", 1) + b"0")], ["format version"]),
    ],
)
def test_bad_keys(tmp_path, keys, words):
    refused(raw_file(tmp_path / "a.gguf", b"".join(keys), len(keys), data=bytes(64)), *words)


F32, TILE = TYPES["f32"].id, TYPES["gwq4"].id


@pytest.mark.parametrize(
    "descriptors, words",
    [
        ([descriptor("a", (8,), F32, 0), descriptor("a", (8,), F32, 32)], ["'a'", "twice"]),
        ([descriptor("x" * 65, (8,), F32, 0)], ["64"]),
        ([descriptor("", (8,), F32, 0)], ["64"]),
        ([descriptor("a\nb", (8,), F32, 0)], ["'a\\nb'", "printable"]),
        ([descriptor(b"\xff", (8,), F32, 0)], ["UTF-8"]),
        ([descriptor("a", (), F32, 0)], ["tensor a", "0 dim"]),
        ([descriptor("a", (1,) * 5, F32, 0)], ["tensor a", "5 dim"]),
        ([struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2**32 - 1) + bytes(60)], ["tensor a"]),
        ([descriptor("a", (0, 8), F32, 0)], ["tensor a", "shape"]),
        ([descriptor("a", (2**33, 2**33), F32, 0)], ["tensor a", "shape"]),
        ([descriptor("a", (2**61,), F32, 0)], ["cut short"]),
        ([descriptor("a", (8,), F32, 32)], ["tensor a", "starts"]),
        ([descriptor("a", (8,), F32, 0), descriptor("b", (8,), F32, 64)], ["tensor b", "starts"]),
        ([descriptor("a", (8,), F32, 0), descriptor("b", (8,), F32, 0)], ["tensor b", "starts"]),
        ([descriptor("a", (33,), 8, 0)], ["tensor a", "32"]),
        ([descriptor("a", (8, 64), TILE, 0)], ["tensor a", VERSION_KEY]),
        ([descriptor("a.outliers", (8,), 24, 0)], ["side-table", "a"]),
        (
            [descriptor("a", (8,), F32, 0), descriptor("a.outliers", (8,), 24, 32)],
            ["side-table", "a"],
        ),
    ],
)
def test_bad_descriptors(tmp_path, descriptors, words):
    refused(raw_file(tmp_path / "a.gguf", descriptors=descriptors, data=bytes(1024)), *words)


def test_counts_that_do_not_fit(tmp_path):
    for counts in ((2**63, 0), (0, 2**64 - 1), (5, 5), (2**64 - 1, 2**64 - 1)):
        (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(64))
        refused(tmp_path / "a.gguf", str(counts[0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(1),
        lambda t: t.pop(2),
        lambda t: t.pop(0),
        lambda t: t.__setitem__(1, ("w.outliers", TYPES["i8"], (t[1][2][0] + 1,))),
        lambda t: t.__setitem__(1, ("w.outliers", TYPES["i8"], (1,))),
        lambda t: t.__setitem__(1, ("w.outliers", TYPES["i8"], (16 + 3 * 257,))),
        lambda t: t.__setitem__(1, ("w.outliers", TYPES["i8"], (2, 11))),
        lambda t: t.__setitem__(1, ("w.outliers", TYPES["f16"], t[1][2])),
        lambda t: t.__setitem__(2, ("w.outlier_offsets", TYPES["f32"], t[2][2])),
        lambda t: t.__setitem__(2, ("w.outlier_offsets", TYPES["i32"], (3,))),
        lambda t: t.__setitem__(0, ("w", TYPES["gwq4"], (17, 64))),
        lambda t: t.__setitem__(0, ("w", TYPES["f32"], (4, 64))),
    ],
)
def test_companions_must_fit(tmp_path, small, monkeypatch, change):
    tensors = [(t.name, t.type, t.shape) for t in Reader(small[0]).tensors.values()]
    change(tensors)
    with pytest.raises(GwqError):  # the writer refuses what the reader would
        Writer(tmp_path / "b.gguf", {}, tensors)
    with monkeypatch.context() as m:
        m.setattr("gwq_export.format.header_bytes.outlier_counts", lambda tensors: {})
        with Writer(tmp_path / "b.gguf", {VERSION_KEY: FORMAT_VERSION}, tensors) as w:
            for name, type, shape in tensors:
                w.write(name, bytes(type.nbytes(int(np.prod(shape[:-1])), shape[-1])))
    refused(tmp_path / "b.gguf", "w")


def test_check_finds_damaged_contents(small):
    path, raw = small
    Reader(path).check()
    at = {t.name: t.offset for t in Reader(path).tensors.values()}
    for name, offset, new in (
        ("w.outliers", 16 + 4, b"\x40"),  # column 64 of 64
        ("w.outliers", 0, b"\0"),  # a record with one entry too few
        ("w.outliers", 4, b"\1"),  # row 4 of 4
        ("w.outliers", 16, b"\0\x7c"),  # an infinite outlier
        ("w.outlier_offsets", 4, b"\xff"),
        ("w", 3, b"\x20"),  # a table entry of 32
        ("w", 16, b"\0\x7c"),  # an infinite row scale
        ("w", 18, b"\1\xfe"),  # a row scale that is no number
        ("w", 16 + 2 * 4, b"\0\x3c"),  # of a padded row
        ("w", 63, b"\1"),  # the head's end
        ("n", 8, b"\0\0\xc0\x7f"),
    ):
        start = at[name] + offset
        path.write_bytes(raw[:start] + new + raw[start + len(new) :])
        refused(path, "tensor w" if name != "n" else "tensor n", call=Reader.check)
    path.write_bytes(raw.replace(b"def", b"\xff\xfe\xfd"))
    refused(path, "words", "UTF-8", call=Reader.check)
    refused(path, "words", call=lambda r: r.metadata["words"])


def test_out_of_range_outlier_is_found_by_dequantize(small):
    path, raw = small
    start = Reader(path).tensors["w.outliers"].offset + 20
    path.write_bytes(raw[:start] + b"\x40" + raw[start + 1 :])
    with pytest.raises(GwqError, match="tensor w"):
        Reader(path).tensors["w"].dequantize()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_check_finds_non_finite_stock_values(tmp_path, name):
    data = encode_ggml(TYPES[name], np.ones((3000, 1024), np.float32)).copy()
    tensors = [("a", TYPES[name], (3000, 1024))]
    Reader(write(tmp_path / "a.gguf", {}, tensors, {"a": data})).check()
    last = len(data) - (34 if name == "q8_0" else 4)
    data[last : last + 4] = {"f32": (0, 0, 0x80, 0x7F), "bf16": (0x80, 0xFF) * 2}.get(
        name, (0, 0x7C, 0, 0x7C)
    )
    refused(write(tmp_path / "a.gguf", {}, tensors, {"a": data}), "tensor a", call=Reader.check)


def test_paths_that_are_no_files(tmp_path):
    refused(tmp_path, "folder")
    refused(tmp_path / "absent.gguf", "does not exist")
    refused(os.devnull, "not a file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "not a GGUF")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}" * 9)
    refused(tmp_path / "model.safetensors", "not a GGUF")
    with pytest.raises(GwqError):
        Reader("a\0b")


def test_no_permission(small, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(builtins, "open", denied)
    refused(small[0], "Permission denied")


def test_more_tensors_or_keys_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr("gwq_export.limits.TENSORS", 3)
    monkeypatch.setattr("gwq_export.limits.KEYS", 3)
    for count in (3, 4):
        tensors = [descriptor(f"t{i}", (8,), F32, 32 * i) for i in range(count)]
        keys = b"".join(pair(b"key%d" % i, 4, b"\0" * 4) for i in range(count))
        paths = [tmp_path / "tensors.gguf", tmp_path / "keys.gguf"]
        raw_file(paths[0], descriptors=tensors, data=bytes(32 * count))
        raw_file(paths[1], keys, count)
        for path, word in zip(paths, ("tensors: 4", "metadata keys: 4"), strict=True):
            if count == 4:
                refused(path, word)
            else:
                Reader(path)
