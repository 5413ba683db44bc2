"""The header of a GGUF file: metadata values and tensor descriptors, and how they are read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.types import TYPES, TYPES_BY_ID, TensorType

MAGIC = b"GGUF"
VERSION = 3
MAX_NAME = 64  # bytes of a tensor's name
MAX_DIMS = 4

# ids of metadata values: a string, an array, and numbers with their struct and numpy codes
STRING = 8
ARRAY = 9
BOOL = 7
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}
SCALARS = {id: struct.Struct("<" + code) for id, code in NUMBERS.items()}
ID_OF = {np.dtype("<" + code): id for id, code in NUMBERS.items()}
U32 = SCALARS[4]
U64 = SCALARS[10]

# ggml types that this package does not compute with, as id:name:columns:bytes of a block
_GGML = """
    3:q4_1:32:20 6:q5_0:32:22 7:q5_1:32:24 9:q8_1:32:36 10:q2_k:256:84 11:q3_k:256:110
    12:q4_k:256:144 13:q5_k:256:176 14:q6_k:256:210 15:q8_k:256:292 16:iq2_xxs:256:66
    17:iq2_xs:256:74 18:iq3_xxs:256:98 19:iq1_s:256:50 21:iq3_s:256:110 22:iq2_s:256:82
    23:iq4_xs:256:136 25:i16:1:2 27:i64:1:8 28:f64:1:8 29:iq1_m:256:56 34:tq1_0:256:54
    35:tq2_0:256:66 39:mxfp4:32:17 40:nvfp4:64:36 41:q1_0:128:18 42:q2_0:64:18
"""
GGML_TYPES: dict[int, TensorType] = {
    int(id): TensorType(name, int(id), int(unit), int(unit_bytes))
    for id, name, unit, unit_bytes in (entry.split(":") for entry in _GGML.split())
}

Description = tuple[str, TensorType, tuple[int, ...]]  # (name, type, shape) of a tensor


def _not_read(id: int) -> str:
    """What a type is that is not read, and what to do."""
    if id in GGML_TYPES:
        return (
            f"its ggml type {GGML_TYPES[id].name} ({id}) is one that only llama.cpp computes with: "
            "gwq-export FILE.gguf --out NEW.gguf makes a file of it that runs here; "
            "gwq-eval and gwq-info take the file as it is"
        )
    return (
        f"it has the unknown type {id}: "
        f"use a file with types of {', '.join(TYPES)}, or a newer gwq-export"
    )


def text(metadata: Mapping[str, Any], key: str) -> str | None:
    """A value that is a string; None where there is none, or something else."""
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def whole(metadata: Mapping[str, Any], key: str, default: int) -> int:
    """A value that is a whole number; `default` where there is none, or something else."""
    value = metadata.get(key)
    return value if type(value) is int else default


class Metadata(Mapping[str, Any]):
    """Key -> str, bool, int, float, numpy array (n,) or list of str.

    Arrays are decoded at their first use, which raises GwqError for strings that are not UTF-8.
    """

    def __init__(self, values: dict[str, Any], path: str):
        self._values = values
        self._path = path

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            with about(self._path):
                try:
                    value = self._values[key] = value.decode()
                except UnicodeDecodeError:
                    raise GwqError(f"a string of {key} is not UTF-8: {AGAIN}") from None
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class _Array:
    """A metadata array not decoded yet: `count` elements of type `id` in `buffer`."""

    id: int
    count: int
    buffer: memoryview

    def decode(self) -> np.ndarray | list[str]:
        if self.id != STRING:
            stored = "B" if self.id == BOOL else "<" + NUMBERS[self.id]
            return np.frombuffer(self.buffer, stored).astype(NUMBERS[self.id])
        data = bytes(self.buffer)
        strings = []
        at = 0
        for _ in range(self.count):
            end = at + 8 + U64.unpack_from(data, at)[0]
            strings.append(data[at + 8 : end].decode())
            at = end
        return strings


class Cursor:
    """Reads a header; `at` is the next byte.

    Its methods raise struct.error, OverflowError or GwqError past the end of the file, GwqError for
    what no GGUF file holds.
    """

    def __init__(self, buffer: memoryview):
        self.buffer = buffer
        self.at = 0

    def number(self, code: struct.Struct) -> Any:
        """The next number."""
        self.at += code.size
        return code.unpack_from(self.buffer, self.at - code.size)[0]

    def bytes(self, n: int, what: str) -> memoryview:
        """The next n bytes. what: their name in the message."""
        if n > len(self.buffer) - self.at:
            raise GwqError(f"{what} is longer than the file: {AGAIN}")
        self.at += n
        return self.buffer[self.at - n : self.at]

    def string(self, what: str) -> str:
        """The next string. what: its name in the message."""
        try:
            return str(self.bytes(self.number(U64), what), "utf-8")
        except UnicodeDecodeError:
            raise GwqError(f"{what} is not UTF-8: {AGAIN}") from None

    def value(self, key: str) -> Any:
        """The next metadata value, type id first; arrays as _Array."""
        id = self.number(U32)
        if id == STRING:
            return self.string(f"the value of {key}")
        if id in SCALARS:
            return self.number(SCALARS[id])
        if id == ARRAY:
            id = self.number(U32)
            count = self.number(U64)
            if id in SCALARS:
                return _Array(id, count, self.bytes(count * SCALARS[id].size, f"the array {key}"))
            if id == STRING and count <= (len(self.buffer) - self.at) // 8:
                at, buffer, unpack = self.at, self.buffer, U64.unpack_from
                for _ in range(count):  # passes over whole vocabularies: keep it bare
                    at += 8 + unpack(buffer, at)[0]
                return _Array(id, count, self.bytes(at - self.at, f"the array {key}"))
        raise GwqError(
            f"the value of {key} has a type ({id}) or a length that no GGUF file has: {AGAIN}"
        )

    def keys(self, count: int) -> dict[str, Any]:
        """{key: value} of the metadata."""
        values: dict[str, Any] = {}
        for i in range(count):
            key = self.string(f"the name of key {i}")
            if key in values:
                raise GwqError(f"key {key} occurs twice: {AGAIN}")
            values[key] = self.value(key)
        return values

    def descriptors(
        self, count: int, other_type: Callable[[int], TensorType | None]
    ) -> tuple[list[Description], list[int]]:
        """The tensors, and the offset of each in the data section.

        other_type: type id -> the TensorType of one that is not in TYPES, or None.
        """
        tensors: list[Description] = []
        offsets: list[int] = []
        names: set[str] = set()
        for i in range(count):
            name = self.string(f"the name of tensor {i}")
            if name in names or not name.isprintable() or not 0 < len(name.encode()) <= MAX_NAME:
                raise GwqError(
                    f"tensor name {name[:MAX_NAME]!r} is used twice "
                    f"or is not 1 to {MAX_NAME} printable bytes: {AGAIN}"
                )
            names.add(name)
            dims = self.number(U32)
            shape = tuple(self.number(U64) for _ in range(min(dims, MAX_DIMS)))[::-1]
            if not 1 <= dims <= MAX_DIMS or not 0 < prod(shape) < 1 << 63:
                raise GwqError(
                    f"tensor {name} has the impossible shape {shape} ({dims} dimensions): {AGAIN}"
                )
            id = self.number(U32)
            with about(f"tensor {name}"):
                type = TYPES_BY_ID.get(id) or other_type(id)
                if type is None:
                    raise GwqError(_not_read(id))
            tensors.append((name, type, shape))
            offsets.append(self.number(U64))
        return tensors, offsets
