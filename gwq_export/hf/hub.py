"""Where a model's folder is: a folder here, or the download of a hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gwq_export.errors import GwqError

_SMALL_FILES = ["*.json", "tokenizer.model", "*.jinja"]
_WEIGHTS = ["*.safetensors"]


def resolve(
    model: str | os.PathLike[str], revision: str | None = None, weights: bool = True
) -> Path:
    """Folder of a model: `model` itself, or the cached download of a hub id such as "org/name".

    revision: of the hub's repository. Without `weights`, those are not downloaded. Raises GwqError.
    """
    path = Path(model)
    if path.is_dir():
        if revision:
            raise GwqError(
                f"--revision {revision}: {model} is a folder here, which has none; "
                "leave it out or give a hub id"
            )
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise GwqError(
            f"{model}: no such folder or file; "
            "give a Hugging Face model folder, a GGUF file or a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download

    patterns = _SMALL_FILES + _WEIGHTS if weights else _SMALL_FILES
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=patterns))
    except Exception as e:  # the client raises many kinds; all mean that the model cannot be had
        reason = " ".join(str(e).split())[:200]
        raise GwqError(
            f"{model}: not a folder here, and the hub download failed "
            f"({type(e).__name__}: {reason})"
        ) from None


def commit(folder: Path) -> str | None:
    """The hub's commit hash of a folder of its cache (.../snapshots/<commit>), else None."""
    folder = folder.resolve()
    in_cache = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if in_cache else None
