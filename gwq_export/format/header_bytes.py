"""The header of a GGUF file as bytes, and where it places the tensors: the inverse of `header`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format import bridge
from gwq_export.format.header import (
    ARRAY,
    ID_OF,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    STRING,
    U32,
    U64,
    VERSION,
    Description,
)
from gwq_export.format.layout import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    VERSION_KEY,
    Place,
    is_companion,
    layout,
    outlier_counts,
)
from gwq_export.format.types import FORMAT_VERSION, TensorType


def headers(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, TensorType, Sequence[int]]]
) -> tuple[dict[int, bytes], dict[str, Place], int]:
    """Returns ({first byte: header with padding}, {name: place in the file}, size of the file).

    With the keys of a bridge file, companions are described by a header of their own behind the
    other tensors. Raises ValueError for what no file may hold, GwqError for what the user can mend.
    """
    metadata = dict(metadata)
    # other files say nothing and keep the default alignment: llama-quantize writes by it
    if VERSION_KEY in metadata or any(type.bits for _, type, _ in tensors):
        metadata |= {"general.alignment": ALIGNMENT, VERSION_KEY: FORMAT_VERSION}
    described = [(name, type, tuple(int(n) for n in shape)) for name, type, shape in tensors]
    _check_descriptions(described)
    if bridge.VERSION_KEY not in metadata:
        header, places, size = _section(metadata, described)
        return {0: header}, places, size

    ggml_tensors = [t for t in described if not is_companion(t[0])]
    companions = [t for t in described if is_companion(t[0])]
    deltas, companion_places, deltas_size = _section({}, companions)
    metadata = bridge.keys(deltas_size) | metadata
    _, _, offset = _section(metadata, ggml_tensors)
    metadata[bridge.OFFSET_KEY] = np.uint64(offset)
    header, places, _ = _section(metadata, ggml_tensors)
    for name, (at, n) in companion_places.items():
        places[name] = (offset + at, n)
    return {0: header, offset: deltas}, places, offset + deltas_size


def _check_descriptions(tensors: Sequence[Description]) -> None:
    """ValueError for what no file may hold, GwqError for a type or a side-table that does not fit.

    llama.cpp refuses names of 64 bytes.
    """
    for name, _, shape in tensors:
        if (
            not 0 < len(name.encode()) < MAX_NAME
            or not 1 <= len(shape) <= MAX_DIMS
            or min(shape) < 1
        ):
            raise ValueError(f"tensor {name!r} of shape {shape} cannot be written")
    if len({name for name, *_ in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    outlier_counts(tensors)


def _section(
    metadata: Mapping[str, Any], tensors: Sequence[Description]
) -> tuple[bytes, dict[str, Place], int]:
    """(header with padding, {name: place}, size) of a GGUF file."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    places, length = layout(tensors, alignment)
    parts = [MAGIC, U32.pack(VERSION), U64.pack(len(tensors)), U64.pack(len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key, key), _value(key, value)]
    for (name, type, shape), (at, _) in zip(tensors, places, strict=True):
        parts += [_string(name, name), U32.pack(len(shape)), *map(U64.pack, shape[::-1])]
        parts += [U32.pack(type.id), U64.pack(at)]
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    start = len(header)
    in_file = {t[0]: (start + at, n) for t, (at, n) in zip(tensors, places, strict=True)}
    return header, in_file, start + length


def _string(text: str, key: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise GwqError(
            f"a string of {key} cannot be written as UTF-8: mend it in the model's folder"
        ) from None
    return U64.pack(len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """The bytes of a metadata value, type id first."""
    if isinstance(value, str):
        return U32.pack(STRING) + _string(value, key)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        strings = b"".join(_string(v, key) for v in value)
        return U32.pack(ARRAY) + U32.pack(STRING) + U64.pack(len(value)) + strings
    if type(value) in (bool, int, float):
        value = _as_numpy(value)
    dtype = value.dtype.newbyteorder("<") if isinstance(value, (np.generic, np.ndarray)) else None
    if dtype not in ID_OF or value.ndim > 1:
        raise ValueError(
            f"metadata {key} has a value that GGUF cannot hold: {type(value).__name__}"
        )
    head = U32.pack(ID_OF[dtype])
    if value.ndim:
        head = U32.pack(ARRAY) + head + U64.pack(len(value))
    return head + value.astype(dtype).tobytes()


def _as_numpy(value: bool | int | float) -> np.generic:
    """A Python number in the type that GGUF files have for it: 32 bits, 64 for a large integer."""
    if type(value) is int:
        small, large = ("<i4", "<i8") if value < 0 else ("<u4", "<u8")
        fits = np.iinfo(small).min <= value <= np.iinfo(small).max
        code = small if fits else large
    else:
        code = {bool: "?", float: "<f4"}[type(value)]
    return np.dtype(code).type(value)
