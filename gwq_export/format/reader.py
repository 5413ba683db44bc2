"""A GGUF file, version 3, little-endian, read on the memory map.

File: header (metadata, then one descriptor per tensor), zero bytes up to the alignment, tensors in
the order of their descriptors, each padded with zero bytes to the alignment. The side-tables of a
bridge file lie in a second GGUF behind the last tensor, as its `gwq.bridge.*` keys say (see
`bridge`). The other files of a model that is split into several are opened with the first (see
`split`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gwq_export import limits
from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format import bridge, split
from gwq_export.format.header import MAGIC, U32, U64, VERSION, Cursor, Description, Metadata
from gwq_export.format.layout import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    OFFSETS,
    OUTLIERS,
    VERSION_KEY,
    Place,
    is_companion,
    layout,
    outlier_counts,
    padded,
)
from gwq_export.format.mapped import MappedFile
from gwq_export.format.tensor import Tensor
from gwq_export.format.types import FORMAT_VERSION, TensorType
from gwq_export.limits import check_limit


@dataclass(frozen=True)
class _Section:
    """What a GGUF file says of itself. A bridge file consists of two."""

    metadata: dict[str, Any]
    alignment: int
    tensors: list[Description]
    places: list[Place]
    header_end: int  # without padding

    @property
    def end(self) -> int:
        """Where the last tensor ends, without padding."""
        return sum(self.places[-1]) if self.places else self.header_end


class Reader:
    """An open GGUF file: its header checked in full, its data read when used.

    path: of a model that is split into several files, the first one's. other_type: type id ->
    TensorType of a type that is not in TYPES (only its name and sizes are used), or None. base:
    leave the deltas of a bridge file alone, whatever state they are in. part: of a split model,
    which part this one is, counted from 0; only Reader itself gives it.
    Raises GwqError, naming the path, for anything but a whole and well-formed file.
    """

    path: str
    nbytes: int  # size of the file, or of all parts
    alignment: int  # bytes
    headers: list[Place]  # of a bridge file two
    metadata: Metadata  # of a split model, its first part's
    tensors: dict[str, Tensor]  # in file order, of all parts
    file: MappedFile

    def __init__(
        self,
        path: str | os.PathLike[str],
        other_type: Callable[[int], TensorType | None] = lambda id: None,
        base: bool = False,
        part: int = 0,
    ):
        self.path = os.fspath(path)
        self._other_type = other_type
        self._base = base
        self._others: list[Reader] = []  # of a split model
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "does not exist or is not a file"
            if os.path.isfile(f"{self.path}.part"):
                raise GwqError(
                    f"{self.path} {what}, but {self.path}.part does: its export was stopped; run"
                    " the same command again (with --work-dir it goes on), or delete the .part"
                )
            raise GwqError(f"{self.path} {what}: give the path of a .gguf file")
        try:
            self.file = MappedFile(path)
            self.nbytes = self.file.nbytes
        except (OSError, ValueError) as e:
            raise GwqError(
                f"cannot open {self.path}: {getattr(e, 'strerror', None) or e}; "
                "check the file and its permissions"
            ) from None
        with about(self.path):
            try:
                self._parse(self.file.buffer)
            except (struct.error, OverflowError, GwqError) as e:
                if split.is_piece(self.path):
                    raise GwqError(
                        "this is a piece of a file that was cut by bytes: "
                        "join all pieces in their order first, `cat PIECES > MODEL.gguf`"
                    ) from None
                if isinstance(e, GwqError):
                    raise
                raise GwqError(f"the file ends inside its header: {AGAIN}") from None
        if part == 0:
            self._open_others()

    @property
    def parts(self) -> list[Reader]:
        """The files of the model, this one first."""
        return [self, *self._others]

    def check_unchanged(self) -> None:
        """Raise GwqError when a file of the model was written to since it was opened."""
        for part in self.parts:
            part.file.check()

    def let_pages_go(self) -> None:
        """Let the system drop the pages of the files that were read so far; they can be read again.

        A page that somebody has mapped stays in the page cache.
        """
        for part in self.parts:
            part.file.let_pages_go()

    def _open_others(self) -> None:
        """Open the other files of a split model, and take their tensors."""
        with about(self.path):
            paths = split.later_parts(self.path, self.metadata)
        for no, path in enumerate(paths, 1):
            other = Reader(path, self._other_type, self._base, no)
            with about(path):
                split.check_part(self.metadata, other.metadata, no)
            self._others.append(other)
        if paths:
            with about(self.path):
                names = [name for part in self.parts for name in part.tensors]
                split.check_tensors(self.metadata, names)
            for other in self._others:
                self.tensors |= other.tensors
                self.nbytes += other.nbytes

    @property
    def header_bytes(self) -> int:
        """Bytes of all headers, each up to the alignment on which it ends."""
        return sum(padded(n, part.alignment) for part in self.parts for _, n in part.headers)

    def _parse(self, buffer: memoryview) -> None:
        main = self._section(buffer)
        self.alignment = main.alignment
        self.headers = [(0, main.header_end)]
        tensors = main.tensors
        places = main.places
        if not self._base and bridge.VERSION_KEY in main.metadata:
            offset, part = bridge.deltas(main.metadata, buffer, padded(main.end, self.alignment))
            deltas = self._section(part)
            self.headers.append((offset, deltas.header_end))
            names = {name for name, *_ in deltas.tensors}
            if not all(map(is_companion, names)) or names & {name for name, *_ in tensors}:
                raise GwqError(f"its deltas hold a tensor that is no part of a side-table: {AGAIN}")
            tensors = tensors + deltas.tensors
            places = places + [(offset + at, n) for at, n in deltas.places]

        counts = outlier_counts(tensors)
        self.metadata = Metadata(main.metadata, self.path)
        whole = np.frombuffer(buffer, np.uint8)
        data = {name: whole[at:][:n] for (name, *_), (at, n) in zip(tensors, places, strict=True)}
        self.tensors = {}
        for (name, type, shape), (at, nbytes) in zip(tensors, places, strict=True):
            outliers = None
            if name in counts:
                outliers = (data[name + OUTLIERS], data[name + OFFSETS].view(np.int32))
            self.tensors[name] = Tensor(
                name, type, shape, at, nbytes, data[name], outliers, counts.get(name, 0), self.path
            )

    def _section(self, buffer: memoryview) -> _Section:
        """The GGUF file that begins and, if it is ours, ends with `buffer`, checked."""
        cursor = Cursor(buffer)
        if not MAGIC.startswith(buffer[:4]) or not len(buffer):
            raise GwqError("this is not a GGUF file: give the path of a .gguf file")
        cursor.at = len(MAGIC)
        version = cursor.number(U32)
        if version == VERSION << 24:
            raise GwqError("this is a big-endian GGUF file: convert it with gguf-convert-endian")
        if version != VERSION:
            raise GwqError(
                f"this is GGUF version {version} and only version {VERSION} can be read: "
                "convert it with a current tool"
            )
        tensor_count = cursor.number(U64)
        key_count = cursor.number(U64)
        if tensor_count * 32 + key_count * 13 > len(buffer):  # the fewest bytes each can take
            raise GwqError(
                f"{tensor_count} tensors and {key_count} keys "
                f"do not fit in {len(buffer)} bytes: {AGAIN}"
            )
        check_limit("metadata keys", key_count, limits.KEYS)
        check_limit("tensors", tensor_count, limits.TENSORS)
        values = cursor.keys(key_count)
        tensors, offsets = cursor.descriptors(tensor_count, self._other_type)
        self._check_version(values.get(VERSION_KEY), tensors)

        ours = VERSION_KEY in values
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        smallest = ALIGNMENT if ours else 8
        if type(alignment) is not int or alignment < smallest or alignment & (alignment - 1):
            raise GwqError(
                f"general.alignment is not a power of two of at least {smallest}: {AGAIN}"
            )
        places, length = layout(tensors, alignment)
        for (name, *_), (expected, _), offset in zip(tensors, places, offsets, strict=True):
            if offset != expected:
                raise GwqError(
                    f"tensor {name} starts at byte {offset} of the data "
                    f"instead of {expected}: {AGAIN}"
                )
        start = padded(cursor.at, alignment)
        places = [(start + at, n) for at, n in places]
        section = _Section(values, alignment, tensors, places, cursor.at)
        # other tools may leave out the last padding, or append bytes of their own
        needed = start + length if ours else section.end
        if len(buffer) < needed:
            raise GwqError(
                f"the file is cut short at {len(buffer)} of {needed} bytes: "
                "download or export it again"
            )
        if ours and len(buffer) > needed:
            raise GwqError(f"{len(buffer) - needed} unknown bytes follow the last tensor: {AGAIN}")
        return section

    @staticmethod
    def _check_version(version: Any, tensors: list[Description]) -> None:
        tile = next((name for name, type, _ in tensors if type.bits), None)
        if version is None and tile is not None:
            raise GwqError(
                f"tensor {tile} has a tile type, but the key {VERSION_KEY} is missing: "
                "export the model again"
            )
        if version is not None and (type(version) is not int or version != FORMAT_VERSION):
            raise GwqError(
                f"the file has format version {version!r:.20} "
                f"and this gwq-export reads version {FORMAT_VERSION}: "
                "export the model again, or use the gwq-export that wrote it"
            )

    def check(
        self, progress: Callable[[str, int, int], None] = lambda phase, done, total: None
    ) -> None:
        """Read the whole file, or all parts.

        progress(phase, done, total) is called with bytes of tensors, as it goes on. Raises GwqError
        for the first string, value, side-table or padding that is damaged.
        """
        for part in self.parts:
            for key in part.metadata:
                part.metadata[key]
        done = 0
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        for tensor in self.tensors.values():
            progress("check", done, total)
            with about(tensor.path):
                tensor.check()
            done += tensor.nbytes
        progress("check", total, total)
        with about(self.path):
            if VERSION_KEY in self.metadata or len(self.headers) > 1:
                self._check_padding()
        self.check_unchanged()

    def _check_padding(self) -> None:
        """Between headers, tensors and the end there are only zero bytes."""
        tensors = [(t.offset, t.nbytes) for t in self.tensors.values()]
        with open(self.path, "rb") as f:
            places = sorted([*self.headers, *tensors, (os.fstat(f.fileno()).st_size, 0)])
            for (start, size), (end, _) in pairwise(places):
                f.seek(start + size)
                if any(f.read(end - start - size)):
                    raise GwqError(f"the padding before byte {end} is not zero: {AGAIN}")

    def close(self) -> None:
        """Let go of the tensors.

        Views taken before stay valid: the map is closed with the last of them.
        """
        self.tensors = {}
        for part in self.parts:
            part.file.close()
        self._others = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
