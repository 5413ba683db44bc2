"""MODEL, whatever it is: a folder, a hub id, a folder with the weights of a GGUF file, a GGUF file.

A GGUF file keeps the keys that it has; those of a folder are made from its config and tokenizer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.hf.config_to_gguf import config_keys
from gwq_export.hf.gguf_model import GGUFModel
from gwq_export.hf.gguf_source import GGUFSource
from gwq_export.hf.hub import resolve
from gwq_export.hf.lora import Adapter
from gwq_export.hf.rope_to_gguf import rope_factors
from gwq_export.hf.source import Source
from gwq_export.tokenizer.from_hf import to_metadata


@dataclass(frozen=True)
class Opened:
    """A model to export."""

    source: Source
    name: str
    keys: dict[str, Any]  # GGUF keys of model and tokenizer
    rope: dict[str, np.ndarray]  # rope factor tensors, float32


def open_model(
    model: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    tokenizer_pre: str | None = None,
    lora: str | os.PathLike[str] | None = None,
) -> Opened:
    """Open MODEL: a folder, a hub id, or the path of a GGUF file.

    base: a GGUF file with the weights for a folder; revision: of the hub's model; tokenizer_pre:
    name of the pre-tokenizer; lora: folder of an adapter that is added to the weights. Raises
    GwqError.
    """
    adapter = Adapter(lora) if lora else None
    if os.path.isfile(model):
        opened = _open_file(Path(model), base, revision, tokenizer_pre)
    else:
        opened = _open_folder(model, base, revision, tokenizer_pre)
    if adapter:
        opened.source.adapt(adapter)
    return opened


def _open_folder(
    model: str | os.PathLike[str],
    base: str | os.PathLike[str] | None,
    revision: str | None,
    tokenizer_pre: str | None,
) -> Opened:
    folder = resolve(model, revision, weights=base is None)
    source = Source(folder) if base is None else GGUFSource(folder, base)
    tokens = to_metadata(folder, source.vocab, tokenizer_pre)
    source.check_vocabulary(tokens)
    from_hub = folder != Path(model)
    name = str(model) if from_hub else folder.resolve().name
    return Opened(source, name, config_keys(source) | tokens, rope_factors(source))


def _open_file(
    path: Path,
    base: str | os.PathLike[str] | None,
    revision: str | None,
    tokenizer_pre: str | None,
) -> Opened:
    for flag, value, why in (
        ("--base", base, "the weights are those of MODEL"),
        ("--revision", revision, "a file has none"),
    ):
        if value:
            raise GwqError(f"{flag} {value}: {path} is a file, and {why}: leave {flag} out")
    with open(path, "rb") as f:
        if f.read(4) != b"GGUF":
            raise GwqError(
                f"{path} is a file, but not a GGUF file: give the model's folder "
                "(with config.json and *.safetensors), a hub id or a GGUF file"
            )
    source = GGUFModel(path)
    return Opened(source, source.name, source.keys(tokenizer_pre), source.rope_tensors())
