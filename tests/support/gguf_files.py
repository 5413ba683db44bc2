"""GGUF files for tests: whole ones by the writer, broken ones byte by byte."""

import struct

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.reader import Reader
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from tests.support.kernel_cases import random_parts

ONE = [("n", TYPES["f32"], (3,)), ("m", TYPES["f16"], (2, 4))]  # (name, type, shape)
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


def ggml_data(name, shape, rng):
    if name in ("i8", "i32"):
        return rng.integers(-9, 9, shape).astype({"i8": np.int8, "i32": np.int32}[name])
    return encode_ggml(TYPES[name], rng.normal(size=shape))


def example(rng=None):
    """(tensors, {name: bytes}) with every type, awkward shapes and side-tables."""
    rng = rng or np.random.default_rng(7)
    tensors = []
    data = {}
    for name in (t.name for t in TYPES.values() if not t.bits):
        for suffix, shape in (("vector", (96,)), ("matrix", (5, 64)), ("experts", (2, 3, 32))):
            tensors.append((f"{name}.{suffix}", TYPES[name], shape))
            data[f"{name}.{suffix}"] = ggml_data(name, shape, rng)
    for type in (t for t in TYPES.values() if t.bits):
        for shape, count in (((17, 300), 40), ((16, 64), 0), ((1, 1), 1), ((40, 700), None)):
            name = f"{type.name}.{shape[0]}x{shape[1]}"
            at = rng.permutation(shape[0] * shape[1])[: count or 0]
            tensors.append((name, type, shape))
            data[name] = pack_tiles(type, *random_parts(rng, type, *shape), cols=shape[1])
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


def refused(path, *words, call=None):
    """The one sentence with which `path` is refused."""
    with pytest.raises(GwqError) as caught:
        reader = Reader(path)
        if call:
            call(reader)
    text = str(caught.value)
    assert str(path) in text and text.isprintable()
    for word in words:
        assert word in text
    return text


def patched(path, raw, old, new, count=1):
    assert len(old) == len(new) and raw.count(old) >= count
    path.write_bytes(raw.replace(old, new, count))
    return path


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


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir())
