"""GGUF files: what is written is read back, stock tools agree, and nothing but GwqError comes out
of a damaged file.
"""

import builtins
import errno
import itertools
import os
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from kernel_cases import random_parts

from gwq_export import GwqError
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.layout import ALIGNMENT, VERSION_KEY
from gwq_export.format.outliers import pack_outliers, unpack_outliers
from gwq_export.format.reader import Reader
from gwq_export.format.tiles import dequantize, pack_tiles
from gwq_export.format.types import FORMAT_VERSION, TYPES
from gwq_export.format.writer import Writer, file_size

METADATA = {
    "general.architecture": "llama",
    "text": "Grüße \u0000 你好",
    "empty": "",
    "yes": True,
    "no": False,
    "u32": 2**32 - 1,
    "i32": -1,
    "u64": 2**32,
    "i64": -(2**31) - 1,
    "f32": 0.5,
    "f64": np.float64(0.1),
    "u8": np.uint8(255),
    "i16": np.int16(-2),
    "strings": ["a", "", "▁the", "\n"],
    "none": [],
    "ints": np.arange(-3, 4, dtype=np.int32),
    "floats": np.array([0.25, -1.5], np.float32),
    "bools": np.array([True, False, True]),
}


def stock_data(name, shape, rng):
    if name in ("i8", "i32"):
        return rng.integers(-9, 9, shape).astype({"i8": np.int8, "i32": np.int32}[name])
    return encode_ggml(TYPES[name], rng.normal(size=shape))


def example(rng=None):
    """(tensors, {name: bytes}) with every type, awkward shapes and side-tables."""
    rng = rng or np.random.default_rng(7)
    tensors, data = [], {}
    for name in (t.name for t in TYPES.values() if not t.bits):
        for suffix, shape in (("vector", (96,)), ("matrix", (5, 64)), ("experts", (2, 3, 32))):
            tensors.append((f"{name}.{suffix}", TYPES[name], shape))
            data[f"{name}.{suffix}"] = stock_data(name, shape, rng)
    for type in (t for t in TYPES.values() if t.bits):
        for shape, count in (((17, 300), 40), ((16, 64), 0), ((1, 1), 1), ((40, 700), None)):
            name = f"{type.name}.{shape[0]}x{shape[1]}"
            at = rng.permutation(shape[0] * shape[1])[: count or 0]
            tensors.append((name, type, shape))
            data[name] = pack_tiles(type, *random_parts(rng, type, *shape))
            if count is not None:
                records, offsets = pack_outliers(
                    at // shape[1], at % shape[1], rng.normal(size=count).astype(np.float16), shape
                )
                for suffix, kind, array in (
                    (".outliers", "i8", records),
                    (".outlier_offsets", "i32", offsets),
                ):
                    tensors.append((name + suffix, TYPES[kind], array.shape))
                    data[name + suffix] = array
    return tensors, data


def write(path, metadata, tensors, data, order=None):
    with Writer(path, metadata, tensors) as w:
        for name in order or [t[0] for t in tensors]:
            w.write(name, data[name])
    return path


@pytest.fixture
def small(tmp_path):
    """A small file of ours: a tile tensor with two outliers, and a vector; (path, bytes)."""
    records, offsets = pack_outliers([0, 3], [1, 2], np.array([1, 2], np.float16), (4, 64))
    type = TYPES["gwq4"]
    tensors = [
        ("w", type, (4, 64)),
        ("w.outliers", TYPES["i8"], records.shape),
        ("w.outlier_offsets", TYPES["i32"], offsets.shape),
        ("n", TYPES["f32"], (3,)),
    ]
    head = np.zeros(16, np.int8), np.ones(4, np.float16)
    dense = pack_tiles(type, *head, np.ones((16, 4), np.int8), np.zeros((16, 64), np.uint8))
    data = {"w": dense, "w.outliers": records, "w.outlier_offsets": offsets}
    data["n"] = np.ones(3, np.float32)
    metadata = {
        "general.architecture": "llama",
        "words": ["a", "bc", "def"],
        "ints": np.arange(5, dtype=np.int32),
        "x": 1.5,
    }
    path = write(tmp_path / "small.gguf", metadata, tensors, data)
    return path, path.read_bytes()


def refused(path, *words, call=None):
    """The one sentence with which `path` is refused."""
    with pytest.raises(GwqError) as caught:
        reader = Reader(path)
        call and call(reader)
    text = str(caught.value)
    assert str(path) in text and text.isprintable()
    for word in words:
        assert word in text
    return text


def patched(path, raw, old, new, count=1):
    assert len(old) == len(new) and raw.count(old) >= count
    path.write_bytes(raw.replace(old, new, count))
    return path


# --- round trips ----------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    tensors, data = example()
    path = write(tmp_path / "a.gguf", METADATA, tensors, data)
    with Reader(path) as r:
        assert list(r.tensors) == [t[0] for t in tensors]
        assert (r.path, r.nbytes, r.alignment) == (str(path), path.stat().st_size, ALIGNMENT)
        assert r.nbytes == file_size(METADATA, tensors)
        for name, type, shape in tensors:
            t = r.tensors[name]
            assert (t.name, t.type, t.shape, t.offset % ALIGNMENT) == (name, type, shape, 0)
            assert t.data.tobytes() == np.asarray(data[name]).tobytes() and t.nbytes == len(t.data)
            assert not t.data.flags.writeable and t.data.dtype == np.uint8
            table = (
                (data[name + ".outliers"], data[name + ".outlier_offsets"])
                if name + ".outliers" in data
                else None
            )
            assert (t.outliers is None) == (table is None) and t.companion == ("outlier" in name)
            assert t.outlier_count == (len(unpack_outliers(*table, shape)[0]) if table else 0)
            matrix = (int(np.prod(shape[:-1])), shape[-1])
            expected = dequantize(
                type, np.asarray(data[name]).reshape(-1).view(np.uint8), matrix, table
            ).reshape(shape)
            got = t.dequantize()
            assert got.dtype == np.float32 and got.shape == shape and np.array_equal(got, expected)
        r.check()


def test_metadata_round_trip(tmp_path):
    metadata = METADATA | {VERSION_KEY: FORMAT_VERSION}
    with Reader(write(tmp_path / "a.gguf", metadata, [], {})) as r:
        assert (
            set(r.metadata) == set(metadata) | {"general.alignment"}
            and len(r.metadata) == len(metadata) + 1
        )
        for key, value in metadata.items():
            got = r.metadata[key]
            assert type(got) is (
                type(value) if not isinstance(value, np.generic) else type(value.item())
            ), key
            assert (
                got.dtype == value.dtype and np.array_equal(got, value)
                if isinstance(value, np.ndarray)
                else got == value
            ), key
        assert r.metadata["strings"] is r.metadata["strings"]
        assert "absent" not in r.metadata and r.metadata.get("absent", 3) == 3
        with pytest.raises(KeyError):
            r.metadata["absent"]


def test_any_order_gives_the_same_bytes(tmp_path, small):
    path, raw = small
    r = Reader(path)
    tensors = [(t.name, t.type, t.shape) for t in r.tensors.values()]
    data = {t.name: t.data for t in r.tensors.values()}
    for i, order in enumerate(itertools.permutations(data)):
        assert (
            write(tmp_path / f"{i}.gguf", dict(r.metadata), tensors, data, order).read_bytes()
            == raw
        )


def test_views_outlive_the_reader(small):
    with Reader(small[0]) as r:
        weight, metadata = r.tensors["w"], r.metadata
    r.close()
    del r
    assert metadata["words"] == ["a", "bc", "def"]
    assert weight.dequantize()[3, 2] == 2


def test_replacing_an_open_file_leaves_its_views(small):
    r = Reader(small[0])
    write(small[0], {}, [("n", TYPES["f32"], (3,))], {"n": np.zeros(3, np.float32)})
    assert r.tensors["n"].dequantize().tolist() == [1, 1, 1]
    assert Reader(small[0]).tensors["n"].dequantize().tolist() == [0, 0, 0]


# --- other people's tools -------------------------------------------------------------------------------------------


def test_gguf_package_reads_ours(tmp_path):
    tensors, data = example()
    stock = [t for t in tensors if not t[1].bits and "outlier" not in t[0]]
    theirs = gguf.GGUFReader(write(tmp_path / "a.gguf", METADATA, stock, data))
    assert [t.name for t in theirs.tensors] == [t[0] for t in stock]
    for t, (name, type, shape) in zip(theirs.tensors, stock, strict=True):
        assert t.tensor_type == type.id and t.shape.tolist() == list(shape[::-1])
        assert t.data.tobytes() == np.asarray(data[name]).tobytes()
    for key, value in METADATA.items():
        if isinstance(value, (str, int, float, list)) and key != "none":
            assert theirs.fields[key].contents() == value, key
    assert theirs.fields["ints"].contents() == METADATA["ints"].tolist()
    assert theirs.fields["u64"].types == [gguf.GGUFValueType.UINT64] and theirs.fields[
        "i32"
    ].types == [gguf.GGUFValueType.INT32]


@pytest.mark.parametrize("trailing", [b"", b"appended by another tool"])
def test_we_read_the_gguf_package(tmp_path, trailing):
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.normal(size=(3, 32)).astype(np.float32),
        "b": rng.normal(size=7).astype(np.float16),
        "c": rng.normal(size=(4, 3, 2, 5)).astype(np.float32),
    }
    w = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    w.add_array("words", ["a", "é"])
    w.add_array("ints", [1, -2])
    w.add_float64("d", 0.1)
    w.add_bool("flag", True)
    for name, array in arrays.items():
        w.add_tensor(name, array)
    w.add_tensor(
        "q",
        gguf.quantize(arrays["a"], gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with open(tmp_path / "a.gguf", "ab") as f:
        f.write(trailing)
    r = Reader(tmp_path / "a.gguf")
    assert (
        r.alignment == 32
        and r.metadata["words"] == ["a", "é"]
        and r.metadata["d"] == 0.1
        and r.metadata["flag"] is True
    )
    assert r.metadata["ints"].tolist() == [1, -2]
    for name, array in arrays.items():
        assert np.array_equal(r.tensors[name].dequantize(), array)
    assert np.array_equal(
        r.tensors["q"].dequantize(),
        gguf.dequantize(r.tensors["q"].data.reshape(3, 34), gguf.GGMLQuantizationType.Q8_0),
    )
    r.check()


def test_last_padding_may_be_missing_in_stock_files_only(tmp_path, small):
    path = write(
        tmp_path / "a.gguf", {}, [("n", TYPES["f32"], (3,))], {"n": np.ones(3, np.float32)}
    )
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - 20])
    assert Reader(path).tensors["n"].dequantize().tolist() == [1, 1, 1]
    path.write_bytes(raw[: len(raw) - 21])
    refused(path, "cut short")
    small[0].write_bytes(small[1][:-1])
    refused(small[0], "cut short")
    small[0].write_bytes(small[1] + b"\0")
    refused(small[0], "follow the last tensor")


def test_stock_type_that_we_lack(tmp_path):
    w = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    w.add_tensor("blk.0.w", np.zeros((2, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    refused(tmp_path / "a.gguf", "blk.0.w", "q4_k", "12")


# --- damaged files --------------------------------------------------------------------------------------------------


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


def descriptor(name, shape, id, offset):
    name = name if isinstance(name, bytes) else name.encode()
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], id, offset)
    )


def raw_file(path, keys=b"", key_count=0, descriptors=(), data=b""):
    header = (
        b"GGUF" + struct.pack("<IQQ", 3, len(descriptors), key_count) + keys + b"".join(descriptors)
    )
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def pair(key, type, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", type) + value


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
                pair(b"gwq.format_version", 4, struct.pack("<I", 1)),
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


# --- writing --------------------------------------------------------------------------------------------------------

ONE = [("n", TYPES["f32"], (3,)), ("m", TYPES["f16"], (2, 4))]


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GwqError])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_crash_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "a.gguf"
    old and path.write_bytes(old)
    with pytest.raises(error), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        assert Path(w.part).stat().st_size == w.nbytes == file_size({}, ONE)
        raise error
    assert leftovers(path) == ["a.gguf"] * bool(old) and (not old or path.read_bytes() == old)


def test_a_stale_part_is_replaced(tmp_path):
    (tmp_path / "a.gguf.part").write_bytes(b"x" * 9999)
    path = write(tmp_path / "a.gguf", {}, ONE, {"n": bytes(12), "m": bytes(16)})
    assert leftovers(path) == ["a.gguf"] and path.stat().st_size == file_size({}, ONE)


def test_two_writers_of_one_name(tmp_path):
    path = tmp_path / "a.gguf"
    first, second = Writer(path, {"a": 1}, ONE), Writer(path, {"a": 2}, ONE)
    for w in (first, second):
        w.write("n", bytes(12))
        w.write("m", bytes(16))
    with pytest.raises(GwqError, match="another export"):
        first.close()
    second.close()
    assert Reader(path).metadata["a"] == 2 and leftovers(path) == ["a.gguf"]


def test_no_space(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
        with pytest.raises(GwqError, match=f"needs {file_size({}, ONE)} bytes and 100 are free"):
            Writer(path, {}, ONE)
    pwrite, calls = os.pwrite, []

    def full(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GwqError, match="No space left"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        w.write("m", bytes(16))
    assert leftovers(path) == ["a.gguf"] and path.read_bytes() == b"old"


def test_failing_flush(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.gguf"
    w = Writer(path, {}, [])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(GwqError, match="Input/output"):
        w.close()
    assert leftovers(path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5], at))
    path = write(
        tmp_path / "a.gguf",
        {"k": "v"},
        ONE,
        {"n": np.arange(3, dtype=np.float32), "m": np.ones((2, 4), np.float16)},
    )
    assert (
        Reader(path).tensors["n"].dequantize().tolist() == [0, 1, 2]
        and Reader(path).tensors["m"].dequantize().sum() == 8
    )


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "folder",
        tmp_path / "absent" / "a.gguf",
        os.devnull,
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(GwqError) as caught:
            Writer(path, {}, ONE)
        assert Path(path).name[:9] in str(caught.value) or "absent" in str(caught.value)
    assert leftovers(tmp_path / "folder") == ["folder"] and Path(os.devnull).is_char_device()


def test_faults_of_the_caller(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(ValueError, match="same name"):
        Writer(path, {}, [ONE[0], ONE[0]])
    for bad in (
        ("", TYPES["f32"], (1,)),
        ("x" * 64, TYPES["f32"], (1,)),
        ("n", TYPES["f32"], ()),
        ("n", TYPES["f32"], (0, 4)),
    ):
        with pytest.raises(ValueError, match="cannot be written"):
            Writer(path, {}, [bad])
    with pytest.raises(GwqError, match=r"tensor n.*32"):
        Writer(path, {}, [("n", TYPES["q8_0"], (2, 33))])
    for value in (None, {}, [1, 2], np.zeros((2, 2)), np.array(["a"]), 1j, b"x"):
        with pytest.raises(ValueError, match="metadata k"):
            Writer(path, {"k": value}, [])
    with pytest.raises(GwqError, match="UTF-8"):
        Writer(path, {"k": "\ud800"}, [])
    with pytest.raises(ValueError, match="tensor n"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(11))
    for part in (0, 1):
        with pytest.raises(ValueError, match="twice"), Writer(path, {}, ONE) as w:
            w.write("n", bytes(4), part, 3)
            w.write("n", bytes(4), part, 3)
    with pytest.raises(ValueError, match="never written: m, n"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(4), 0, 3)
        w.write("n", bytes(4), 2, 3)
    with pytest.raises(ValueError, match="twice"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        w.write("n", bytes(12))
    with pytest.raises(ValueError, match="never written: m"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
    assert leftovers(path) == []


# --- size and speed -------------------------------------------------------------------------------------------------


def test_a_large_vocabulary_opens_fast(tmp_path):
    words = [f"▁token{i}" for i in range(151_936)]
    merges = [f"a{i} b{i}" for i in range(151_387)]
    keys = {
        "tokens": words,
        "merges": merges,
        "types": np.ones(len(words), np.int32),
        "scores": np.zeros(len(words), np.float32),
    }
    path = write(tmp_path / "a.gguf", keys, ONE, {"n": bytes(12), "m": bytes(16)})
    start = time.perf_counter()
    r = Reader(path)
    assert time.perf_counter() - start < 1.5
    assert r.metadata["tokens"] == words and r.metadata["merges"] == merges


def test_opening_reads_no_data(tmp_path):
    size = 1 << 40  # a sparse terabyte
    path = raw_file(tmp_path / "a.gguf", descriptors=[descriptor("a", (size,), 24, 0)])
    start = path.stat().st_size
    try:
        os.truncate(path, start + size)
    except OSError:
        pytest.skip("the file system has no files of a terabyte")
    assert Reader(path).tensors["a"].data[-1] == 0
