"""GGUF files: what is written is read back, and other programs agree."""

import itertools
import os
import time

import gguf
import numpy as np
import pytest

from gwq_export.format.decoding import dequantize
from gwq_export.format.layout import ALIGNMENT, VERSION_KEY
from gwq_export.format.outliers import unpack_outliers
from gwq_export.format.reader import Reader
from gwq_export.format.types import FORMAT_VERSION, TYPES
from gwq_export.format.writer import file_size
from tests.support.gguf_files import METADATA, ONE, descriptor, example, raw_file, refused, write


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
        assert set(r.metadata) == set(metadata) | {"general.alignment"}
        assert len(r.metadata) == len(metadata) + 1
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


# --- other programs ---


def test_gguf_package_reads_ours(tmp_path):
    tensors, data = example()
    plain = [t for t in tensors if not t[1].bits and "outlier" not in t[0]]
    theirs = gguf.GGUFReader(write(tmp_path / "a.gguf", METADATA, plain, data))
    assert [t.name for t in theirs.tensors] == [t[0] for t in plain]
    for t, (name, type, shape) in zip(theirs.tensors, plain, strict=True):
        assert t.tensor_type == type.id and t.shape.tolist() == list(shape[::-1])
        assert t.data.tobytes() == np.asarray(data[name]).tobytes()
    for key, value in METADATA.items():
        if isinstance(value, (str, int, float, list)) and key != "none":
            assert theirs.fields[key].contents() == value, key
    assert theirs.fields["ints"].contents() == METADATA["ints"].tolist()
    assert theirs.fields["u64"].types == [gguf.GGUFValueType.UINT64]
    assert theirs.fields["i32"].types == [gguf.GGUFValueType.INT32]


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
    assert r.alignment == 32
    assert r.metadata["words"] == ["a", "é"]
    assert r.metadata["d"] == 0.1
    assert r.metadata["flag"] is True
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


# --- size and speed ---


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
    start = time.process_time()  # of this process alone: the machine may be busy
    r = Reader(path)
    assert time.process_time() - start < 1.5
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
