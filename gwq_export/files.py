"""Small files: read with a clear error, written so that they are whole under their final name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gwq_export.errors import GwqError, one_line


def read_text(path: str | os.PathLike[str], flag: str) -> str:
    """The text of a UTF-8 file, of standard input for "-".

    flag: the command-line flag that named it, for the message. Raises GwqError.
    """
    try:
        return (sys.stdin.buffer if path == "-" else open(path, "rb")).read().decode()
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(
            f"{flag} {path}: cannot be read as UTF-8 text ({e}); give a text file"
        ) from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file of a Hugging Face folder.

    what: its name in the message. Raises GwqError when it is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except FileNotFoundError:
        raise GwqError(
            f"{path.parent}: no {path.name}; give the folder of a Hugging Face model"
        ) from None
    except (OSError, ValueError) as e:
        raise GwqError(f"{path}: {what} cannot be read ({e}); download the model again") from None


def read_optional_json(path: Path) -> Any:
    """What a JSON file of a Hugging Face folder holds, {} when it is missing. Raises GwqError."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise GwqError(f"cannot read {path}: {one_line(e)}; download the model again") from None


def as_json(value: object) -> bytes:
    """The bytes of a JSON file: indented, in UTF-8, with a newline at its end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def save(path: str | os.PathLike[str], text: str | bytes, flag: str) -> None:
    """Write text, as UTF-8, or bytes into <path>.part, then give that file its name.

    It is on the disk before it has the name. What cannot be finished is removed.

    flag: the command-line flag that named `path`, for the message. Raises GwqError.
    """
    part = f"{path}.part"
    try:
        write_synced(part, text.encode() if isinstance(text, str) else text)
        os.replace(part, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if not isinstance(e, OSError):
            raise
        raise GwqError(
            f"{flag} {path}: cannot be written ({e.strerror or e}); "
            "free space or choose another name"
        ) from None
    sync_folder(os.path.dirname(os.path.abspath(path)))


def write_synced(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, and bring it to the disk. Raises OSError."""
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync_folder(folder: str) -> None:
    """Bring the names of a folder's files to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def check_output(path: str | os.PathLike[str], flag: str) -> None:
    """Raise GwqError when no file can be written to `path`: before the long work, not after it.

    It is tried, with the name under which the file is written first. flag: the command-line flag
    that named `path`, for the message.
    """
    what = f"{flag} {os.fspath(path)}"
    if os.path.lexists(path) and not os.path.isfile(path):
        raise GwqError(f"{what} is a folder or a device: give the name of a file")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise GwqError(
            f"{what}: the folder {folder} does not exist; create it or choose another name"
        )
    part = f"{os.fspath(path)}.part"
    there = os.path.lexists(part)  # of another run: left as it is
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT, 0o666))
        if not there:
            os.unlink(part)
    except OSError as e:
        raise GwqError(
            f"{what} cannot be written ({e.strerror or e}); choose another name, or see to the"
            " permissions and the free space of its folder"
        ) from None


def check_space(wanted: Sequence[tuple[str | os.PathLike[str], int, str]]) -> None:
    """Raise GwqError unless the disks have room for what is wanted.

    wanted: (folder that exists, bytes, what takes them). Needs on one disk are added up.
    """
    by_disk: dict[int, list[tuple[str | os.PathLike[str], int, str]]] = {}
    for need in wanted:
        by_disk.setdefault(os.stat(need[0]).st_dev, []).append(need)
    for needs in by_disk.values():
        folder = needs[0][0]
        needed = sum(nbytes for _, nbytes, _ in needs)
        free = shutil.disk_usage(folder).free
        if needed > free:
            names = " and ".join(what for *_, what in needs)
            verb = "needs" if len(needs) == 1 else "need"
            raise GwqError(
                f"{names} {verb} {needed} bytes and {free} are free: "
                "free space or choose another disk"
            )
