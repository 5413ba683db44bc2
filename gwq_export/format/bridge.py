"""Bridge files: a ordinary GGUF file whose FP16 deltas lie behind its last tensor, where stock readers
do not look (docs/bridge.md).
"""

import hashlib

import numpy as np

from gwq_export.errors import GwqError

VERSION = 1
VERSION_KEY, OFFSET_KEY, SIZE_KEY, SHA256_KEY = (
    f"gwq.bridge.{key}" for key in ("version", "offset", "size", "sha256")
)
WITHOUT = "or go without them (gwq-run, gwq-eval and gwq-info take --base)"
_GET = f"get the file that gwq-export wrote, {WITHOUT}"


def keys(size):
    """The keys that lead to the deltas; offset and checksum are put in once they are known, and
    take as many bytes then.
    """
    return {
        VERSION_KEY: np.uint32(VERSION),
        OFFSET_KEY: np.uint64(0),
        SIZE_KEY: np.uint64(size),
        SHA256_KEY: "0" * 64,
    }


def deltas(values, buffer, end):
    """(offset, the part of the file that holds the deltas). Raises GwqError unless it is whole and
    in its place.

    values: the file's metadata; buffer: the file; end: where its last tensor ends, padding
    included.
    """
    version, offset, size, sha256 = (
        values.get(key) for key in (VERSION_KEY, OFFSET_KEY, SIZE_KEY, SHA256_KEY)
    )
    if type(version) is not int or version != VERSION:
        raise GwqError(
            f"its deltas have version {version!r:.20} and this gwq-export reads version {VERSION}: use a newer one, {WITHOUT}"
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
    if hashlib.sha256(buffer[offset:]).hexdigest() != sha256:
        raise GwqError(f"its deltas are damaged, their checksum differs: {_GET}")
    return offset, buffer[offset:]
