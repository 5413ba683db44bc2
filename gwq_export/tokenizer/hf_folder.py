"""What transformers makes of the tokenizer files of a folder.

tokenizer.json is not all: tokenizer_config.json and older files add tokens to it, and the class
that they name may cut texts in another way. transformers itself says what comes out.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gwq_export.errors import GwqError, translated
from gwq_export.files import read_optional_json

PROBE = Path(__file__).parents[1] / "data" / "tokenizer_probe.txt"
log = logging.getLogger("gwq_export")
NAMES = ("bos", "eos", "unk", "pad")  # of special tokens
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")  # where a folder names them


@dataclass(frozen=True)
class HFTokenizer:
    """A folder's tokenizer as transformers has it."""

    spec: dict[str, Any]  # tokenizer.json of it, without padding and truncation
    special: dict[str, int]  # ids of those of NAMES that it has
    kind: str  # name of the class


def load_tokenizer(folder: Path) -> HFTokenizer:
    """The tokenizer of a folder that has a tokenizer.json. Raises GwqError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # without a config there is no architecture to go by
    loader: Any = AutoTokenizer if (folder / "config.json").exists() else PreTrainedTokenizerFast
    with translated(
        f"{folder}: transformers cannot load the tokenizer ({{}}): "
        "download the model again, or update transformers"
    ):
        loaded = loader.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, mistral_format=False
        )
        loaded(PROBE.read_bytes().decode())  # a class may take files that it cannot use
    backend = getattr(loaded, "backend_tokenizer", None)
    kind = type(loaded).__name__
    if backend is None:
        raise GwqError(
            f"{folder}: transformers loads the tokenizer as {kind}, which does not go by "
            "tokenizer.json: save the model's fast tokenizer there with save_pretrained"
        )
    if getattr(loaded, "split_special_tokens", False):
        raise GwqError(
            f"{folder}: split_special_tokens, which takes the names of special tokens for text, "
            "is not supported: set it to false in tokenizer_config.json"
        )
    spec = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    ids = {name: getattr(loaded, f"{name}_token_id", None) for name in NAMES}
    return HFTokenizer(spec, {name: id for name, id in ids.items() if id is not None}, kind)


def end_ids(folder: Path) -> list[int]:
    """The ids that end a generation of transformers.

    Those of generation_config.json or, where there is none, of config.json. Raises GwqError.
    """
    from transformers import GenerationConfig

    for name, options in [
        ("generation_config.json", {}),
        ("config.json", {"_from_model_config": True}),
    ]:
        if not (folder / name).exists():
            continue
        read_optional_json(folder / name)  # refuses what is no JSON
        with translated(
            f"{folder / name}: transformers does not accept it ({{}}): "
            "correct it or download the model again"
        ):
            ends = GenerationConfig.from_pretrained(
                str(folder), config_file_name=name, local_files_only=True, **options
            ).eos_token_id
        return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]
    return []


def named_tokens(folder: Path) -> set[str]:
    """Those of NAMES that the folder's files name, not just the class that reads them."""
    configs = [read_optional_json(folder / name) for name in CONFIGS]
    return {name for name in NAMES if any(config.get(f"{name}_token") for config in configs)}


def keep_within(spec: dict[str, Any], vocab_size: int, where: Path) -> dict[str, int]:
    """Leave out of a tokenizer.json the added tokens without a row of the embedding.

    Returns them, {text: id}, with a warning. Raises GwqError where other tokens have none either.
    """
    added = spec.get("added_tokens") or []
    vocab = spec["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
    surplus = {t["content"]: t["id"] for t in added if t["id"] >= vocab_size}
    if any(id >= vocab_size and token not in surplus for token, id in ids.items()):
        raise GwqError(
            f"{where} has more ids than the model's {vocab_size} embeddings: "
            "use the tokenizer that the model was trained with"
        )
    if surplus:
        log.warning(
            "%s: left out, because the model's %d embeddings have no row for it: %s",
            where,
            vocab_size,
            ", ".join(f"{token} ({id})" for token, id in list(surplus.items())[:8])
            + (f" and {len(surplus) - 8} more" if len(surplus) > 8 else ""),
        )
        spec["added_tokens"] = [token for token in added if token["id"] < vocab_size]
        spec["model"]["vocab"] = (
            {token: id for token, id in vocab.items() if id < vocab_size}
            if isinstance(vocab, dict)
            else vocab[:vocab_size]
        )
    return surplus
