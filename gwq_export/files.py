"""Small files: read with a clear error, or written so that they are whole under their final name."""

import json
import os
import sys
from pathlib import Path

from gwq_export.errors import GwqError


def check_output(path, flag):
    """Raises GwqError when `path` cannot become a file: before the long work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise GwqError(f"{flag} {path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise GwqError(
            f"{flag} {path}: the folder {path.absolute().parent} does not exist; create it or choose another name"
        )


def save(path, text, flag):
    """Write text as UTF-8 under another name first. Raises GwqError."""
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(part, path)
    except OSError as e:
        raise GwqError(
            f"{flag} {path}: cannot be written ({e.strerror or e}); free space or choose another name"
        ) from None


def read_text(path, flag):
    try:
        return (sys.stdin.buffer if path == "-" else open(path, "rb")).read().decode()
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(
            f"{flag} {path}: cannot be read as UTF-8 text ({e}); give a text file"
        ) from None


def as_json(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path, what):
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


def check_place(path):
    """Raise GwqError when no file can have this path."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.lexists(path) and not os.path.isfile(path):
        raise GwqError(f"{path} is a folder or a device: choose another output name")
    if not os.path.isdir(folder):
        raise GwqError(
            f"the folder {folder} does not exist: create it or choose another output name"
        )
