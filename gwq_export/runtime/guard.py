"""Whether a model's files can be run, and stay what was opened while it is computed with."""

from collections.abc import Iterable
from contextlib import suppress

from gwq_export.arch.registry import ARCHS
from gwq_export.errors import GwqError, about
from gwq_export.format.header import text
from gwq_export.format.mapped import MappedFile
from gwq_export.format.reader import Reader
from gwq_export.native.maps import WatchedMap


class FileGuard:
    """Watches mapped files. Without the native library, only their sizes and times.

    What is computed between two calls of `check` that raise nothing was computed of the files that
    were opened.
    """

    def __init__(self, files: Iterable[MappedFile]) -> None:
        self._files = list(files)
        self._maps: list[WatchedMap] = []
        with suppress(GwqError):
            self._maps = [WatchedMap(file.buffer) for file in self._files]

    def check(self) -> None:
        """Raise GwqError when a file has changed, or could not be read."""
        for file in self._files:
            file.check()
        for watched, file in zip(self._maps, self._files, strict=False):
            if watched.faults:
                raise GwqError(
                    f"{file.path} could not be read any more: see to its disk and open it again"
                )


def check_tokenizer(reader: Reader) -> None:
    """Raise GwqError when the tokenizer or the chat template of a file cannot be used here.

    Files without a tokenizer, and models that are not run here, have nothing to be checked.
    """
    metadata = reader.metadata
    known = {arch.gguf for arch in ARCHS.values()}
    runs = text(metadata, "general.architecture") in known
    if not runs or "tokenizer.ggml.model" not in metadata:
        return
    from gwq_export.tokenizer.chat_template import check_template
    from gwq_export.tokenizer.tokenizer import Tokenizer

    with about(reader.path):
        template = Tokenizer(metadata).chat_template
        if template is not None:
            check_template(template)
