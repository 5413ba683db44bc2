"""The text model inside a checkpoint of a larger one, such as one that also sees images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError


def text_names(folder: Path, names: Iterable[str], arch: Arch, blocks: int) -> dict[str, str]:
    """{name in the checkpoint: name in a checkpoint of the text model alone}.

    Checkpoints put the text model under one prefix or another ("model.language_model.",
    "language_model.model."): it is where the embedding lies beside the first block. What lies
    behind its `blocks`, as GLM-OCR's block that predicts a second token, is not part of it. Raises
    GwqError when there is no such place, or more than one.
    """
    names = list(names)
    root = arch.layers.partition(".")[0] + "."
    embed, layers, norm = (n.removeprefix(root) for n in (arch.embed, arch.layers, arch.norm))
    parts = (embed, f"{layers}.", norm, norm.replace(".weight", ".bias"))
    prefixes = [
        prefix
        for name in names
        if f".{name}".endswith(f".{embed}")
        for prefix in [name.removesuffix(embed)]
        if any(other.startswith(f"{prefix}{layers}.0.") for other in names)
    ]
    if len(prefixes) != 1:
        found = ", ".join(f"{prefix}{layers}" for prefix in prefixes) or "none"
        raise GwqError(
            f"{folder}: which of the model's parts is its text model cannot be told (found: {found}"
            "); save the text model by itself with save_pretrained"
        )
    (prefix,) = prefixes
    inside = {
        name: root + rest
        for name in names
        if name.startswith(prefix) and (rest := name.removeprefix(prefix)).startswith(parts)
        if not (block := re.match(rf"{re.escape(layers)}\.(\d+)\.", rest)) or int(block[1]) < blocks
    }
    # the head lies beside the text model or further out; the nearest is its own
    heads = [
        name
        for name in names
        if f".{name}".endswith(f".{arch.head}") and prefix.startswith(name.removesuffix(arch.head))
    ]
    return inside | {name: arch.head for name in sorted(heads, key=len)[-1:]}


def left_out(names: Iterable[str], kept: Mapping[str, str]) -> dict[str, int]:
    """{part of the checkpoint: how many tensors}, of what is not the text model."""
    parts: Counter[str] = Counter()
    for name in names:
        if name not in kept:
            first, _, rest = name.removeprefix("model.").partition(".")
            parts[first if rest else name] += 1
    return dict(parts)
