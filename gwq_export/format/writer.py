"""The streaming GGUF writer: the header first, then tensors in any order, the final name last."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from gwq_export.errors import GwqError
from gwq_export.files import check_output, sync_folder
from gwq_export.format import bridge
from gwq_export.format.header_bytes import headers
from gwq_export.format.types import TensorType

PWRITE_BYTES = 1 << 30  # in one call
DIGEST_BYTES = 1 << 20  # read at once


def file_size(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, TensorType, Sequence[int]]]
) -> int:
    """Bytes of the file that `Writer` would write; nothing is written. Raises like it."""
    _, _, size = headers(metadata, tensors)
    return size


class Writer:
    """Writes a GGUF file tensor by tensor, in any order, in constant memory.

    Use it as a context manager. The bytes go to <path>.part, and `close` gives them their name; on
    an exception, and on `abort`, the .part is removed and a file that was there before stays.

    metadata: {key: str, bool, int, float, numpy scalar, numpy array (n,) or list of str}; tensors:
    [(name, TensorType, shape)] in file order, companions included. With tile types
    `general.alignment` and `gwq.format_version` are set here, and in a bridge file (whose metadata
    has `gwq.bridge.version`) the other keys of its deltas. Raises GwqError when the file cannot be
    written, ValueError for a fault of the caller.
    """

    path: str
    part: str  # the file while it is written
    folder: str
    nbytes: int  # size of the file

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        tensors: Sequence[tuple[str, TensorType, Sequence[int]]],
    ):
        self.path = os.fspath(path)
        self.part = self.path + ".part"
        self.folder = os.path.dirname(os.path.abspath(self.path))
        self._fd = -1  # of the .part, while it is open
        self._metadata = metadata
        self._tensors = tensors
        header_at, self._places, self.nbytes = headers(metadata, tensors)
        self._deltas_at = max(header_at)  # first byte of a bridge file's deltas, else 0
        # bytes written at each first byte, by tensor
        self._written: dict[str, dict[int, int]] = {name: {} for name in self._places}
        check_output(self.path, "output")
        try:
            with self._explained():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.part)
                free = shutil.disk_usage(self.folder).free
                if free < self.nbytes:
                    raise GwqError(
                        f"{self.path} needs {self.nbytes} bytes and {free} are free: "
                        "free space or choose another disk"
                    )
                self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                os.ftruncate(self._fd, self.nbytes)  # all padding reads as zeros
                for at, header in header_at.items():
                    self._pwrite(header, at)
        except BaseException:
            self.abort()
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """An OSError becomes a GwqError."""
        try:
            yield
        except OSError as e:
            raise GwqError(
                f"cannot write {self.path}: {e.strerror or e}; "
                "free space or choose another output name"
            ) from None

    def _pwrite(self, data: Any, at: int) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            n = os.pwrite(self._fd, rest[:PWRITE_BYTES], at)
            rest = rest[n:]
            at += n

    def write(self, name: str, data: Any, part: int = 0, parts: int = 1) -> None:
        """Write the tensor `name`, or part `part` of its `parts` equal parts, once.

        data: exactly its bytes, in any contiguous buffer. Several threads may write.
        """
        start, size = self._places[name]
        size //= parts
        at = start + part * size
        written = self._written[name]
        given = memoryview(data).nbytes
        if given != size or at in written:
            raise ValueError(f"tensor {name}: {given} bytes instead of {size}, or written twice")
        with self._explained():
            self._pwrite(data, at)
        written[at] = size

    def close(self) -> None:
        """Flush the file to the disk and give it its name."""
        try:
            missing = [
                name
                for name, written in self._written.items()
                if sum(written.values()) < self._places[name][1]
            ]
            if missing:
                raise ValueError(f"tensors never written: {', '.join(sorted(missing)[:5])}")
            with self._explained():
                if self._deltas_at:
                    self._write_checksum()
                os.fsync(self._fd)
                if not self._owns_part():
                    raise GwqError(
                        f"{self.part} was taken over by another export: "
                        "give each its own output name"
                    )
                os.replace(self.part, self.path)
        except BaseException:
            self.abort()
            raise
        os.close(self._fd)
        self._fd = -1
        sync_folder(self.folder)

    def _write_checksum(self) -> None:
        """Put the checksum of a bridge file's deltas into its header."""
        digest = hashlib.sha256()
        for at in range(self._deltas_at, self.nbytes, DIGEST_BYTES):
            digest.update(os.pread(self._fd, DIGEST_BYTES, at))
        metadata = {**self._metadata, bridge.SHA256_KEY: digest.hexdigest()}
        header_at, _, _ = headers(metadata, self._tensors)
        self._pwrite(header_at[0], 0)

    def _owns_part(self) -> bool:
        """Whether the .part under its name is still the file that this Writer opened."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._fd), os.stat(self.part))
        return False

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `close`."""
        if self._fd >= 0:
            if self._owns_part():
                os.unlink(self.part)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind:
            self.abort()
        elif self._fd >= 0:
            self.close()
