"""A GGUF file as the whole model: its keys have config and tokenizer, its tensors the weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gwq_export.arch.config import ROPE_TENSORS, read_config
from gwq_export.errors import GwqError, about
from gwq_export.format.foreign import foreign_type
from gwq_export.format.reader import Reader
from gwq_export.hf.config_from_gguf import config_json
from gwq_export.hf.gguf_checkpoint import Checkpoint, bytes_of
from gwq_export.hf.source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# keys that say how the file was made and stored: a file made of it has its own
_OF_THE_FILE = (
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "gwq.",
    "quantize.",
    "split.",
)
PRE = "tokenizer.ggml.pre"
AT_ONCE = 1 << 24  # bytes of two tensors that are compared


class GGUFModel(Source):
    """A Source of nothing but the GGUF file `path`, or of the file and its other parts.

    Tensors are read as in GGUFSource. Raises GwqError for a file that is not a whole language model
    of a supported architecture.
    """

    again = "give the whole file of an unchanged model"

    def __init__(self, path: str | os.PathLike[str]):
        self.folder = Path(path)  # for messages: there is no folder
        self._reader = reader = Reader(path, foreign_type)
        self._numbers = c = read_config(reader)
        self.arch = c.arch
        self.layers = c.layers
        self.kinds = c.kinds
        self.vocab = c.vocab
        self.heads = {"heads": c.heads, "kv_heads": c.kv_heads}
        self.dims = c.dims
        self._checkpoint = Checkpoint(reader, c.arch, c.layers, c.dims, self.heads)
        places = self._checkpoint.places
        self._shapes = {name: place.checkpoint_shape for name, place in places.items()}
        self._elsewhere = {}
        self.tied = self.arch.head not in self._shapes or self._has_copy()
        # all that is asked of a config.json here; hyperparameters go from file to file as keys
        self.config = {
            "license": reader.metadata.get("general.license"),
            "tie_word_embeddings": self.tied,
        }
        self._check_tensors()

    def _has_copy(self) -> bool:
        """Whether the head is a copy of the embedding, which some tools write."""
        head, embed = (
            self._reader.tensors[name] for name in ("output.weight", "token_embd.weight")
        )
        if (head.type, head.shape) != (embed.type, embed.shape):
            return False
        with about(self.folder):
            for at in range(0, head.nbytes, AT_ONCE):
                a, b = (bytes_of(t, at, min(AT_ONCE, t.nbytes - at)) for t in (head, embed))
                if not np.array_equal(a, b):
                    return False
        return True

    @property
    def embedding_scale(self) -> float:
        """What a row of the embedding is multiplied by before the first block."""
        return self._numbers.embedding_scale

    @property
    def name(self) -> str:
        """What the file calls the model, or the file's own name."""
        return str(self._reader.metadata.get("general.name") or self.folder.stem)

    def keys(self, tokenizer_pre: str | None = None) -> dict[str, Any]:
        """The GGUF keys of model and tokenizer, as the file has them.

        tokenizer_pre: replaces the name of the pre-tokenizer. Raises GwqError for more tokens than
        the embedding has rows.
        """
        metadata = self._reader.metadata
        keys = {key: metadata[key] for key in metadata if not key.startswith(_OF_THE_FILE)}
        tokens = keys.get("tokenizer.ggml.tokens", [])
        if len(tokens) > self.vocab:
            raise GwqError(
                f"{self.folder} has {len(tokens)} tokens and {self.vocab} embeddings: {self.again}"
            )
        return keys | ({PRE: tokenizer_pre} if tokenizer_pre else {})

    def rope_tensors(self) -> dict[str, np.ndarray]:
        """{tensor name: divisors of the rope frequencies, float32 (rotated / 2,)}."""
        tensors = self._reader.tensors
        return {name: tensors[name].dequantize() for name in sorted(ROPE_TENSORS & set(tensors))}

    def transformers_config(self) -> PretrainedConfig:
        """The config with which transformers computes what the file's keys say.

        Raises GwqError for what it cannot be told.
        """
        from transformers import CONFIG_MAPPING

        config = self._config_json()
        return CONFIG_MAPPING[config["model_type"]].from_dict(config)

    def _config_json(self) -> dict[str, Any]:
        remedy = "give the model's folder, and this file as --base"
        return config_json(self._reader, self._numbers, "float32", remedy, any_factors=True)

    @property
    def _whole(self) -> bool:
        """It is all there is."""
        return False

    def _origin(self) -> dict[str, str]:
        """Which file, and the types of its matrices."""
        return self._checkpoint.provenance

    def _own_files(self) -> list[tuple[str, int, int]]:
        """[(path, bytes, time of last change in ns)] of the file, or of its parts."""
        return self._checkpoint.files

    def _read(self, name: str) -> torch.Tensor:
        import torch

        return torch.from_numpy(self._checkpoint.read(name))
