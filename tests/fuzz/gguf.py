"""A GGUF file taken apart so that one thing of it can be changed, and put together again."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from gwq_export.format import bridge
from gwq_export.format.header import ARRAY, SCALARS, STRING, Cursor
from gwq_export.format.layout import padded

NUMBER = struct.Struct("<Q")


@dataclass
class Key:
    """A metadata value. data: number, bytes of a string, or list of either; item: type of these."""

    name: bytes
    type: int
    data: object
    item: int = 0


@dataclass
class Info:
    """A tensor. dims as in the file, innermost first; offset None: where it belongs."""

    name: bytes
    dims: list[int]
    type: int
    data: bytes
    offset: int | None = None


@dataclass
class File:
    keys: list[Key]
    tensors: list[Info]
    alignment: int = 64
    deltas: File | None = None  # of a bridge file
    spots: list[tuple[int, int]] = field(default_factory=list)  # (place, bytes) of every count,
    # length, type and offset in what `pack` gave

    def copy(self) -> File:
        """One that can be changed without this one."""
        keys = [
            Key(k.name, k.type, k.data[:] if isinstance(k.data, list) else k.data, k.item)
            for k in self.keys
        ]
        tensors = [Info(t.name, t.dims[:], t.type, t.data, t.offset) for t in self.tensors]
        return File(keys, tensors, self.alignment, self.deltas and self.deltas.copy())

    def key(self, name: bytes) -> Key | None:
        """The key of a name."""
        return next((k for k in self.keys if k.name == name), None)


def parse(data: bytes) -> File:
    """Take a well-formed file apart."""
    cursor = Cursor(memoryview(data))
    cursor.at = 8
    tensor_count, key_count = cursor.number(NUMBER), cursor.number(NUMBER)

    def string() -> bytes:
        return bytes(cursor.bytes(cursor.number(NUMBER), ""))

    def value(type: int) -> object:
        return string() if type == STRING else cursor.number(SCALARS[type])

    keys = []
    for _ in range(key_count):
        name = string()
        type = cursor.number(SCALARS[4])
        if type == ARRAY:
            item = cursor.number(SCALARS[4])
            keys.append(Key(name, type, [value(item) for _ in range(cursor.number(NUMBER))], item))
        else:
            keys.append(Key(name, type, value(type)))
    found = []
    for _ in range(tensor_count):
        name = string()
        dims = [cursor.number(NUMBER) for _ in range(cursor.number(SCALARS[4]))]
        found.append((name, dims, cursor.number(SCALARS[4]), cursor.number(NUMBER)))
    file = File(keys, [])
    aligned = file.key(b"general.alignment")
    file.alignment = int(aligned.data) if aligned else 32  # type: ignore[call-overload]
    start = padded(cursor.at, file.alignment)
    tail = file.key(bridge.OFFSET_KEY.encode())
    whole = int(tail.data) if tail else len(data)  # type: ignore[call-overload]
    ends = [offset for *_, offset in found[1:]] + [whole - start]
    for (name, dims, type, offset), end in zip(found, ends, strict=True):
        file.tensors.append(Info(name, dims, type, data[start + offset : start + end]))
    if tail:
        file.deltas = parse(data[whole:])
    return file


def pack(file: File) -> bytes:
    """The bytes of a file; notes in file.spots where its numbers are."""
    out = bytearray(b"GGUF")
    spots = []

    def number(value: int, code: str = "<Q") -> None:
        spots.append((len(out), struct.calcsize(code)))
        out.extend(struct.pack(code, value & (1 << 8 * struct.calcsize(code)) - 1))

    def string(text: bytes) -> None:
        number(len(text))
        out.extend(text)

    def value(type: int, data: object) -> None:
        if type == STRING or type not in SCALARS:
            string(data if isinstance(data, bytes) else str(data).encode())
            return
        scalar = SCALARS[type]
        if isinstance(data, bytes):
            data = len(data)
        try:
            out.extend(scalar.pack(data))
        except (struct.error, OverflowError):
            bits = int(data) if data == data and abs(data) < 2**63 else 0  # type: ignore
            out.extend((bits & (1 << 8 * scalar.size) - 1).to_bytes(scalar.size, "little"))

    deltas = pack(file.deltas) if file.deltas else b""
    number(3, "<I")
    number(len(file.tensors))
    number(len(file.keys))
    bridged: dict[bytes, int] = {}
    for key in file.keys:
        string(key.name)
        number(key.type, "<I")
        bridged[key.name] = len(out)
        if key.type == ARRAY:
            items = key.data if isinstance(key.data, list) else [key.data]
            number(key.item, "<I")
            number(len(items))
            if items and key.item in SCALARS and all(type(x) in (int, float) for x in items):
                try:
                    out += struct.pack(f"<{len(items)}{SCALARS[key.item].format[1:]}", *items)
                    continue
                except (struct.error, OverflowError):
                    pass
            for item in items:
                value(key.item, item)
        else:
            value(key.type, key.data[0] if isinstance(key.data, list) else key.data)
    offset = 0
    for t in file.tensors:
        string(t.name)
        number(len(t.dims), "<I")
        for n in t.dims:
            number(n)
        number(t.type, "<I")
        number(offset if t.offset is None else t.offset)
        offset = padded(offset + len(t.data), file.alignment)
    out += bytes(-len(out) % file.alignment)
    for t in file.tensors:
        out += t.data
        out += bytes(-len(out) % file.alignment)
    if deltas:
        digest = hashlib.sha256(deltas).hexdigest().encode()
        for name, found in (
            (bridge.OFFSET_KEY, NUMBER.pack(len(out))),
            (bridge.SIZE_KEY, NUMBER.pack(len(deltas))),
            (bridge.SHA256_KEY, NUMBER.pack(64) + digest),
        ):
            if (at := bridged.get(name.encode())) is not None:
                out[at : at + len(found)] = found
        out += deltas
    file.spots = spots
    return bytes(out)
