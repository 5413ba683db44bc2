"""The streaming GGUF writer: the header first, then tensors in any order, the final name last."""

import contextlib
import hashlib
import os
import shutil

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.files import check_place
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
)
from gwq_export.format.layout import (
    ALIGNMENT,
    DEFAULT_ALIGNMENT,
    OFFSETS,
    OUTLIERS,
    VERSION_KEY,
    layout,
    outlier_counts,
)
from gwq_export.format.types import FORMAT_VERSION


def _string(text, key):
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise GwqError(
            f"a string of {key} cannot be written as UTF-8: mend it in the model's folder"
        ) from None
    return U64.pack(len(data)) + data


def _value(key, value):
    """The bytes of a metadata value, type id first."""
    if isinstance(value, str):
        return U32.pack(STRING) + _string(value, key)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return (
            U32.pack(ARRAY)
            + U32.pack(STRING)
            + U64.pack(len(value))
            + b"".join(_string(v, key) for v in value)
        )
    if type(value) in (bool, int, float):
        small, large = ("<i4", "<i8") if value < 0 else ("<u4", "<u8")
        fits = type(value) is not int or np.iinfo(small).min <= value <= np.iinfo(small).max
        value = np.dtype({bool: "?", float: "<f4"}.get(type(value), small if fits else large)).type(
            value
        )
    dtype = value.dtype.newbyteorder("<") if isinstance(value, (np.generic, np.ndarray)) else None
    if dtype not in ID_OF or value.ndim > 1:
        raise ValueError(
            f"metadata {key} has a value that GGUF cannot hold: {type(value).__name__}"
        )
    kind = (
        U32.pack(ARRAY) + U32.pack(ID_OF[dtype]) + U64.pack(len(value))
        if value.ndim
        else U32.pack(ID_OF[dtype])
    )
    return kind + value.astype(dtype).tobytes()


def _header(metadata, tensors):
    """({first byte: header with padding}, {name: (offset in the file, bytes)}, file size).

    With the keys of a bridge file, companions are described by a header of their own behind the
    other tensors.
    """
    metadata = dict(metadata)
    if VERSION_KEY in metadata or any(
        type.bits for _, type, _ in tensors
    ):  # other files say nothing and keep the default: llama-quantize writes by it
        metadata |= {"general.alignment": ALIGNMENT, VERSION_KEY: FORMAT_VERSION}
    tensors = [(name, type, tuple(int(n) for n in shape)) for name, type, shape in tensors]
    for name, _, shape in tensors:
        if (
            not 0 < len(name.encode()) < MAX_NAME
            or not 1 <= len(shape) <= MAX_DIMS
            or min(shape) < 1
        ):  # llama.cpp refuses 64
            raise ValueError(f"tensor {name!r} of shape {shape} cannot be written")
    if len({name for name, *_ in tensors}) < len(tensors):
        raise ValueError("two tensors have the same name")
    outlier_counts(tensors)
    if bridge.VERSION_KEY not in metadata:
        header, places, size = _section(metadata, tensors)
        return {0: header}, places, size
    stock, companions = (
        [t for t in tensors if t[0].endswith((OUTLIERS, OFFSETS)) == side] for side in (False, True)
    )
    deltas, inside, size = _section({}, companions)
    metadata = bridge.keys(size) | metadata
    _, _, offset = _section(metadata, stock)
    header, places, _ = _section(metadata | {bridge.OFFSET_KEY: np.uint64(offset)}, stock)
    return (
        {0: header, offset: deltas},
        places | {name: (offset + at, n) for name, (at, n) in inside.items()},
        offset + size,
    )


def _section(metadata, tensors):
    """(header with padding, {name: (offset, bytes)}, size) of a GGUF file."""
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    places, length = layout(tensors, alignment)
    parts = [MAGIC, U32.pack(VERSION), U64.pack(len(tensors)), U64.pack(len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key, key), _value(key, value)]
    for (name, type, shape), (at, _) in zip(tensors, places, strict=True):
        parts += [
            _string(name, name),
            U32.pack(len(shape)),
            *map(U64.pack, shape[::-1]),
            U32.pack(type.id),
            U64.pack(at),
        ]
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    return (
        header,
        {t[0]: (len(header) + at, n) for t, (at, n) in zip(tensors, places, strict=True)},
        len(header) + length,
    )


def file_size(metadata, tensors):
    """Bytes of the file that `Writer` would write; nothing is written."""
    return _header(metadata, tensors)[2]


class Writer:
    """Writes a GGUF file tensor by tensor, in any order, in constant memory. Use it as a context
    manager.

    metadata: {key: str, bool, int, float, numpy scalar, numpy array (n,) or list of str}; tensors:
    [(name, TensorType, shape)] in file order, companions included. With tile types
    `general.alignment` and `gwq.format_version`, in a bridge file (whose metadata has
    `gwq.bridge.version`) the other keys of its deltas are set here. The bytes go to `path`.part,
    and `close` gives them their name; on an exception, and on `abort`, the .part is removed and a
    file that was there before stays. Raises GwqError when the file cannot be written, ValueError
    for a fault of the caller. `nbytes` is the size of the file.
    """

    def __init__(self, path, metadata, tensors):
        self.path, self._fd = os.fspath(path), None
        self.part, self.folder = self.path + ".part", os.path.dirname(os.path.abspath(self.path))
        self._described = metadata, tensors
        headers, self._places, self.nbytes = _header(metadata, tensors)
        self._deltas = max(headers)  # first byte of a bridge file's
        self._written = {name: {} for name in self._places}  # place -> bytes
        check_place(self.path)
        try:
            with self._sentences():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.part)
                free = shutil.disk_usage(self.folder).free
                if free < self.nbytes:
                    raise GwqError(
                        f"{self.path} needs {self.nbytes} bytes and {free} are free: free space or choose another disk"
                    )
                self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                os.ftruncate(self._fd, self.nbytes)  # all padding reads as zeros
                for at, header in headers.items():
                    self._pwrite(header, at)
        except BaseException:
            self.abort()
            raise

    @contextlib.contextmanager
    def _sentences(self):
        try:
            yield
        except OSError as e:
            raise GwqError(
                f"cannot write {self.path}: {e.strerror or e}; free space or choose another output name"
            ) from None

    def _pwrite(self, data, at):
        data = memoryview(data).cast("B")
        while data:
            n = os.pwrite(self._fd, data[: 1 << 30], at)
            data, at = data[n:], at + n

    def write(self, name, data, part=0, parts=1):
        """Write the tensor `name`, or one of its equal parts, once: exactly its bytes, in any
        contiguous buffer.

        Several threads may write.
        """
        at, nbytes = self._places[name]
        nbytes, written = nbytes // parts, self._written[name]
        at += part * nbytes
        if memoryview(data).nbytes != nbytes or at in written:
            raise ValueError(
                f"tensor {name}: {memoryview(data).nbytes} bytes instead of {nbytes}, or written twice"
            )
        with self._sentences():
            self._pwrite(data, at)
        written[at] = nbytes

    def close(self):
        """Flush the file to the disk and give it its name."""
        try:
            missing = [
                name
                for name, written in self._written.items()
                if sum(written.values()) < self._places[name][1]
            ]
            if missing:
                raise ValueError(f"tensors never written: {', '.join(sorted(missing)[:5])}")
            with self._sentences():
                if self._deltas:
                    self._seal()
                os.fsync(self._fd)
                if not self._owns_part():
                    raise GwqError(
                        f"{self.part} was taken over by another export: give each its own output name"
                    )
                os.replace(self.part, self.path)
        except BaseException:
            self.abort()
            raise
        os.close(self._fd)
        self._fd = None
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _seal(self):
        """Put the checksum of a bridge file's deltas into its header."""
        digest = hashlib.sha256()
        for at in range(self._deltas, self.nbytes, 1 << 20):
            digest.update(os.pread(self._fd, 1 << 20, at))
        metadata, tensors = self._described
        self._pwrite(_header(metadata | {bridge.SHA256_KEY: digest.hexdigest()}, tensors)[0][0], 0)

    def _owns_part(self):
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._fd), os.stat(self.part))
        return False

    def abort(self):
        """Remove what was written so far; does nothing after `close`."""
        if self._fd is not None:
            if self._owns_part():
                os.unlink(self.part)
            os.close(self._fd)
            self._fd = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind:
            self.abort()
        elif self._fd is not None:
            self.close()
