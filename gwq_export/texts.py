"""Small text files that a command writes beside the model: whole under their final name, or not there."""

import os
from pathlib import Path

from gwq_export import GwqError


def check_output(path, flag):
    """Raises GwqError when `path` cannot become a file: before the long work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise GwqError(f"{flag} {path} is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise GwqError(f"{flag} {path}: the folder {path.absolute().parent} does not exist; create it or choose another name")


def save(path, text, flag):
    """Write text as UTF-8 under another name first. Raises GwqError."""
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(part, path)
    except OSError as e:
        raise GwqError(f"{flag} {path}: cannot be written ({e.strerror or e}); free space or choose another name") from None
