"""Where a model's folder is: a folder here, or the download of a hub id."""

import re
from pathlib import Path

from gwq_export.errors import GwqError

_HUB_FILES, _HUB_WEIGHTS = ["*.json", "tokenizer.model", "*.jinja"], ["*.safetensors"]


def resolve(model, revision=None, weights=True):
    """Folder of a model: `model` itself, or the cached download of a hub id such as "org/name".
    Raises GwqError.

    Without `weights`, those are not downloaded.
    """
    path = Path(model)
    if path.is_dir():
        if revision:
            raise GwqError(
                f"--revision {revision}: {model} is a folder here, which has none; leave it out or give a hub id"
            )
        return path
    if path.exists():
        raise GwqError(
            f"{model} is a file: give the model's folder (with config.json and *.safetensors) or a hub id"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise GwqError(
            f"{model}: no such folder; give a Hugging Face model folder or a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(model), revision=revision, allow_patterns=_HUB_FILES + _HUB_WEIGHTS * weights
            )
        )
    except (
        Exception
    ) as e:  # the hub client raises many kinds; all of them mean that the model cannot be had
        reason = " ".join(str(e).split())[:200]
        raise GwqError(
            f"{model}: not a folder here, and the hub download failed ({type(e).__name__}: {reason})"
        ) from None


def commit(folder):
    """The hub's commit hash of a folder of its cache (.../snapshots/<commit>), else None."""
    folder = folder.resolve()
    return (
        folder.name
        if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
        else None
    )
