"""A GGUF file, version 3, little-endian, read on the memory map.

File: header (metadata, then one descriptor per tensor), zero bytes up to the alignment, tensors in
the order of their descriptors, each padded with zero bytes to the alignment. The side-tables of a
bridge file lie in a second GGUF behind the last tensor, as its `gwq.bridge.*` keys say (see
`bridge`).
"""

import mmap
import os
import struct
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format import bridge
from gwq_export.format.header import MAGIC, U32, U64, VERSION, Cursor, Metadata
from gwq_export.format.layout import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    OFFSETS,
    OUTLIERS,
    VERSION_KEY,
    _pad,
    layout,
    outlier_counts,
)
from gwq_export.format.tiles import check_outliers, check_tiles, dequantize
from gwq_export.format.types import FORMAT_VERSION, TensorType, matrices


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of an open file.

    `data` and `outliers` are read-only views of the map and keep it alive.
    """

    name: str
    type: TensorType
    shape: tuple  # numpy order: (rows, cols), (n,) or (experts, rows, cols)
    offset: int  # of its first byte in the file
    nbytes: int
    data: np.ndarray  # uint8 (nbytes,)
    outliers: (
        tuple | None
    )  # (records uint8 (bytes,), offsets int32 (row groups + 1,)), of one matrix after another
    outlier_count: int  # of all matrices

    @property
    def companion(self):
        """True for a part of another tensor's side-table."""
        return self.name.endswith((OUTLIERS, OFFSETS))

    def matrices(self):
        """Its matrices, one for each expert: Tensors of two dimensions over the same bytes."""
        count, *shape = matrices(self.shape)
        nbytes, outliers = self.nbytes // count, self.outlier_count // count
        parts = [a.reshape(count, -1) for a in (self.data, *(self.outliers or ()))]
        return [
            replace(
                self,
                shape=tuple(shape),
                offset=self.offset + i * nbytes,
                nbytes=nbytes,
                data=data,
                outliers=tuple(table) or None,
                outlier_count=outliers,
            )
            for i, (data, *table) in enumerate(zip(*parts, strict=True))
        ]

    def dequantize(self):
        """float32 array of `shape`. Raises GwqError for a damaged side-table."""
        with about(f"tensor {self.name}"):
            parts = [dequantize(m.type, m.data, m.shape, m.outliers) for m in self.matrices()]
            return (parts[0] if len(parts) == 1 else np.stack(parts)).reshape(self.shape)

    def check(self):
        """Read every byte; raises GwqError for a value that is not finite and for damaged tiles or
        a damaged side-table.
        """
        if self.type.name in ("i8", "i32"):
            return  # a side-table is checked with its matrix
        with about(f"tensor {self.name}"), np.errstate(invalid="ignore"):
            for m in self.matrices():
                if m.type.bits:
                    check_tiles(m.type, m.data, m.shape, m.outliers)
                else:
                    m._check_ggml()

    def _check_ggml(self):
        """`check` of one matrix of a ggml type."""
        rows, cols = self.shape
        size, step = self.type.nbytes(1, cols), max(1, (1 << 20) // cols)
        for first in range(0, rows, step):
            part = self.data[first * size : (first + step) * size]
            if not np.isfinite(dequantize(self.type, part, (len(part) // size, cols))).all():
                raise GwqError(f"a value is not finite: {AGAIN}")
        if self.outliers is not None:
            check_outliers(self.outliers, self.shape)


class Reader:
    """An open GGUF file: its header checked in full, its data read when used (`check` reads all of
    it).

    path str; metadata Metadata; tensors {name: Tensor} in file order; alignment and nbytes (file
    size) in bytes; headers [(first byte, bytes)], of a bridge file two. other_type: type id ->
    TensorType of a type that is not in TYPES (only its name and sizes are used), or None. base:
    leave the deltas of a bridge file alone, whatever state they are in. Raises GwqError, naming the
    path, for anything but a whole and well-formed file.
    """

    def __init__(self, path, other_type=lambda id: None, base=False):
        self.path, self._other_type, self._base = os.fspath(path), other_type, base
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "does not exist or is not a file"
            raise GwqError(f"{self.path} {what}: give the path of a .gguf file")
        try:
            with open(path, "rb") as f:
                self.nbytes = os.fstat(f.fileno()).st_size
                buffer = memoryview(
                    mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if self.nbytes else b""
                )
        except (OSError, ValueError) as e:
            raise GwqError(
                f"cannot open {self.path}: {getattr(e, 'strerror', None) or e}; check the file and its permissions"
            ) from None
        with about(self.path):
            try:
                self._parse(buffer)
            except (struct.error, OverflowError):
                raise GwqError(f"the file ends inside its header: {AGAIN}") from None

    def _parse(self, buffer):
        values, self.alignment, tensors, places, header_end = self._section(buffer)
        self.headers = [(0, header_end)]  # (first byte, bytes)
        if not self._base and bridge.VERSION_KEY in values:
            offset, part = bridge.deltas(
                values, buffer, _pad(sum(places[-1]) if places else header_end, self.alignment)
            )
            _, _, companions, more, end = self._section(part)
            self.headers.append((offset, end))
            names = {name for name, *_ in companions}
            if not all(n.endswith((OUTLIERS, OFFSETS)) for n in names) or names & {
                name for name, *_ in tensors
            }:
                raise GwqError(f"its deltas hold a tensor that is no part of a side-table: {AGAIN}")
            tensors, places = tensors + companions, places + [(offset + at, n) for at, n in more]

        counts = outlier_counts(tensors)
        self.metadata = Metadata(values, self.path)
        whole = np.frombuffer(buffer, np.uint8)
        data = {name: whole[at:][:n] for (name, *_), (at, n) in zip(tensors, places, strict=True)}
        self.tensors = {}
        for (name, type_, shape), (at, nbytes) in zip(tensors, places, strict=True):
            table = (
                (data[name + OUTLIERS], data[name + OFFSETS].view(np.int32))
                if name in counts
                else None
            )
            self.tensors[name] = Tensor(
                name, type_, shape, at, nbytes, data[name], table, counts.get(name, 0)
            )

    def _section(self, buffer):
        """What a GGUF file that begins and, if it is ours, ends with `buffer` says, checked.

        (metadata, alignment, [(name, type, shape)], [(first byte, bytes)], end of the header)
        """
        cursor = Cursor(buffer)
        if not MAGIC.startswith(buffer[:4]) or not len(buffer):
            raise GwqError("this is not a GGUF file: give the path of a .gguf file")
        cursor.at = len(MAGIC)
        version = cursor.number(U32)
        if version == VERSION << 24:
            raise GwqError("this is a big-endian GGUF file: convert it with gguf-convert-endian")
        if version != VERSION:
            raise GwqError(
                f"this is GGUF version {version} and only version {VERSION} can be read: convert it with a current tool"
            )
        tensor_count, key_count = cursor.number(U64), cursor.number(U64)
        if tensor_count * 32 + key_count * 13 > len(buffer):  # the fewest bytes each can take
            raise GwqError(
                f"{tensor_count} tensors and {key_count} keys do not fit in {len(buffer)} bytes: {AGAIN}"
            )
        values = cursor.keys(key_count)
        tensors, offsets = cursor.descriptors(tensor_count, self._other_type)
        self._check_version(values.get(VERSION_KEY), tensors)

        ours = VERSION_KEY in values
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        least = ALIGNMENT if ours else 8
        if type(alignment) is not int or alignment < least or alignment & (alignment - 1):
            raise GwqError(f"general.alignment is not a power of two of at least {least}: {AGAIN}")
        places, length = layout(tensors, alignment)
        for (name, *_), (expected, _), offset in zip(tensors, places, offsets, strict=True):
            if offset != expected:
                raise GwqError(
                    f"tensor {name} starts at byte {offset} of the data instead of {expected}: {AGAIN}"
                )
        start = _pad(cursor.at, alignment)
        # other tools may leave out the last padding, or append bytes of their own
        needed = start + length if ours else start + sum(places[-1]) if places else cursor.at
        if len(buffer) < needed:
            raise GwqError(
                f"the file is cut short at {len(buffer)} of {needed} bytes: download or export it again"
            )
        if ours and len(buffer) > needed:
            raise GwqError(f"{len(buffer) - needed} unknown bytes follow the last tensor: {AGAIN}")
        return values, alignment, tensors, [(start + at, n) for at, n in places], cursor.at

    @staticmethod
    def _check_version(version, tensors):
        tile = next((name for name, type, _ in tensors if type.bits), None)
        if version is None and tile is not None:
            raise GwqError(
                f"tensor {tile} has a tile type, but the key {VERSION_KEY} is missing: export the model again"
            )
        if version is not None and (type(version) is not int or version != FORMAT_VERSION):
            raise GwqError(
                f"the file has format version {version!r:.20} and this gwq-export reads version {FORMAT_VERSION}: "
                "export the model again, or use the gwq-export that wrote it"
            )

    def check(self):
        """Read the whole file; raises GwqError for the first string, value or side-table that is
        damaged.
        """
        for key in self.metadata:
            self.metadata[key]
        with about(self.path):
            for tensor in self.tensors.values():
                tensor.check()
            if VERSION_KEY in self.metadata or len(self.headers) > 1:
                self._check_padding()

    def _check_padding(self):
        """Between headers, tensors and the end there are only zero bytes."""
        places = sorted(
            [
                *self.headers,
                *((t.offset, t.nbytes) for t in self.tensors.values()),
                (self.nbytes, 0),
            ]
        )
        with open(self.path, "rb") as f:
            for (start, size), (end, _) in pairwise(places):
                f.seek(start + size)
                if any(f.read(end - start - size)):
                    raise GwqError(f"the padding before byte {end} is not zero: {AGAIN}")

    def close(self):
        """Let go of the tensors.

        Views taken before stay valid: the map is closed with the last of them.
        """
        self.tensors = {}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
