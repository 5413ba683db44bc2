"""A model with weights from a GGUF file (--base).

Config, tokenizer and chat template come from a Hugging Face folder.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

from gwq_export.arch.config import read_config
from gwq_export.errors import GwqError
from gwq_export.format.foreign import foreign_type
from gwq_export.format.reader import Reader
from gwq_export.hf.gguf_checkpoint import Checkpoint
from gwq_export.hf.source import Source

if TYPE_CHECKING:
    import torch

TOKENS = "tokenizer.ggml.tokens"
# share of the tokens that a file's vocabulary and the folder's must have in common: added ones may
# be renamed
ALIKE = 0.9
log = logging.getLogger("gwq_export")


class GGUFSource(Source):
    """A Source over the GGUF file `path`.

    Its tensors may have any type of gwq-export or that gguf-py decodes, side-tables and deltas
    included. They are decoded one at a time, and have the names and the layout of a checkpoint.
    Raises GwqError for a file of another model than the folder's config describes.
    """

    again = "give the whole file of an unchanged model"

    def __init__(self, folder: str | os.PathLike[str], path: str | os.PathLike[str]):
        self._reader = Reader(path, foreign_type)
        super().__init__(folder)

    @property
    def place(self) -> str:
        """The file, for messages."""
        return f"--base {self._reader.path}"

    def _find_tensors(self) -> dict[str, tuple[int, ...]]:
        theirs = read_config(self._reader)
        for what, a, b in [
            ("architecture", theirs.arch.gguf, self.arch.gguf),
            ("number of experts", theirs.experts, self.dims.get("experts", 0)),
            ("number of blocks", theirs.layers, self.layers),
            ("order of kinds of blocks", theirs.kinds, self.kinds),
            ("number of attention heads", theirs.heads, self.heads["heads"]),
            ("number of key-value heads", theirs.kv_heads, self.heads["kv_heads"]),
            ("width", theirs.dim, self.dims["dim"]),
            ("vocabulary size", theirs.vocab, self.vocab),
        ]:
            if a != b:
                self._refuse(f"its {what} is {a}, that of {self.folder} is {b}")
        self._checkpoint = Checkpoint(self._reader, self.arch, self.layers, self.dims, self.heads)
        return {name: place.checkpoint_shape for name, place in self._checkpoint.places.items()}

    def _refuse(self, why: str) -> NoReturn:
        raise GwqError(
            f"{self.place} is another model: {why}; give the file and the folder of one model"
        )

    def _read(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._checkpoint.read(name))

    def check_vocabulary(self, tokens: dict[str, Any]) -> None:
        """Raise GwqError when fewer than ALIKE of the file's tokens are those of the folder.

        Warns about fewer differences. tokens: the GGUF keys of the folder's tokenizer.
        """
        ours = tokens[TOKENS]
        theirs = self._reader.metadata.get(TOKENS)
        if theirs is None:
            return
        renamed = sum(a != b for a, b in zip(ours, theirs, strict=False))
        different = renamed + abs(len(ours) - len(theirs))
        if different > (1 - ALIKE) * len(ours):
            self._refuse(f"{different} of its {len(theirs)} tokens are not those of {self.folder}")
        if different:
            log.warning(
                "%s: %d of %d tokens have other names than in %s, whose tokenizer is used",
                self.place,
                different,
                len(theirs),
                self.folder,
            )

    def _origin(self) -> dict[str, str]:
        """Which file, and the types of its matrices."""
        return self._checkpoint.provenance

    def _own_files(self) -> list[tuple[str, int, int]]:
        """The folder's, and the GGUF file or its parts, of which the whole path counts."""
        return [*super()._own_files(), *self._checkpoint.files]
