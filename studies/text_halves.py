"""One text for two purposes."""

import atexit
import shutil
import tempfile
from pathlib import Path

from gwq_export import GwqError


def halves(path):
    """(calibration file, evaluation file): the two halves of a text, cut at a line.

    Both are gone when the process ends. Raises GwqError when there is no such line.
    """
    text = Path(path).read_text(encoding="utf-8")
    cut = text.find("\n", len(text) // 2)
    if cut < 0:
        raise GwqError(f"{path}: no line ends in its second half, so there is no place to cut it")
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "calibration.txt").write_text(text[:cut], encoding="utf-8")
    (folder / "evaluation.txt").write_text(text[cut:], encoding="utf-8")
    return folder / "calibration.txt", folder / "evaluation.txt"
