"""Bridge files: an ordinary GGUF file with FP16 deltas behind its last tensor (docs/bridge.md).

Readers that know ggml types only do not look there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gwq_export.errors import GwqError

VERSION = 1
VERSION_KEY = "gwq.bridge.version"
OFFSET_KEY = "gwq.bridge.offset"  # of the deltas in the file
SIZE_KEY = "gwq.bridge.size"  # in bytes
SHA256_KEY = "gwq.bridge.sha256"  # of these bytes, in hexadecimal
WITHOUT = "or go without them (gwq-run, gwq-eval and gwq-info take --base)"
_GET = f"get the file that gwq-export wrote, {WITHOUT}"


def keys(size: int) -> dict[str, Any]:
    """The keys that lead to the deltas. size: bytes of these.

    Offset and checksum are placeholders that take as many bytes as the values put in later.
    """
    return {
        VERSION_KEY: np.uint32(VERSION),
        OFFSET_KEY: np.uint64(0),
        SIZE_KEY: np.uint64(size),
        SHA256_KEY: "0" * 64,
    }


def deltas(values: Mapping[str, Any], buffer: memoryview, end: int) -> tuple[int, memoryview]:
    """(offset, the part of the file that holds the deltas).

    values: the file's metadata; buffer: the file; end: where its last tensor ends, padding
    included. Raises GwqError unless the deltas are whole and in their place.
    """
    version = values.get(VERSION_KEY)
    offset = values.get(OFFSET_KEY)
    size = values.get(SIZE_KEY)
    if type(version) is not int or version != VERSION:
        raise GwqError(
            f"its deltas have version {version!r:.20} and this gwq-export reads version {VERSION}: "
            f"use a newer one, {WITHOUT}"
        )
    if type(offset) is not int or type(size) is not int or offset != end or len(buffer) <= offset:
        raise GwqError(
            f"the deltas behind its tensors are gone, another tool has rewritten it: {_GET}"
        )
    if len(buffer) < offset + size:
        raise GwqError(
            f"its deltas are cut short at {len(buffer)} of {offset + size} bytes: {_GET}"
        )
    if len(buffer) > offset + size:
        raise GwqError(f"{len(buffer) - offset - size} unknown bytes follow its deltas: {_GET}")
    import hashlib  # other files are opened without: it brings OpenSSL

    if hashlib.sha256(buffer[offset:]).hexdigest() != values.get(SHA256_KEY):
        raise GwqError(f"its deltas are damaged, their checksum differs: {_GET}")
    return offset, buffer[offset:]
