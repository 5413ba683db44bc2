"""Special tokens and chat templates of a Hugging Face folder as GGUF keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.files import read_optional_json
from gwq_export.tokenizer.build import KEY_NAMES

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger("gwq_export")


def special_keys(
    folder: Path,
    original: tokenizers.Tokenizer,
    config: dict[str, Any],
    generation: dict[str, Any],
    vocab_size: int,
) -> dict[str, Any]:
    """The keys, without their prefix, of bos, eos, unk, pad and of other tokens that end a text."""
    ids = original.get_vocab(with_added_tokens=True)
    plain, full = (original.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    configs = [
        config,
        read_optional_json(folder / "special_tokens_map.json"),
        generation,
        read_optional_json(folder / "config.json"),
    ]
    if full[1:] == plain:
        configs.append({"bos_token_id": full[0]})
    special = _special_tokens(configs, ids)
    keys: dict[str, Any] = {
        f"{KEY_NAMES.get(name, name)}_token_id": id for name, id in special.items()
    }
    for name, end in (("bos", full[:1]), ("eos", full[-1:])):
        added_by_json = len(full) > len(plain) and end == [special.get(name)]
        said = config.get(f"add_{name}_token")
        added = said if type(said) is bool else added_by_json
        keys[f"add_{name}_token"] = name in special and added
    others = []
    if isinstance(generation.get("eos_token_id"), list):
        others = [
            id
            for id in generation["eos_token_id"]
            if id != special.get("eos") and 0 <= id < vocab_size
        ]
    keys |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    if others[2:]:
        log.warning(
            "%s names %d tokens that end a text, GGUF has room for 3: left out: %s",
            folder,
            len(others) + 1,
            others[2:],
        )
    return keys


def _special_tokens(configs: Iterable[dict[str, Any]], ids: Mapping[Any, int]) -> dict[str, int]:
    """{"bos": id} and eos, unk, pad: the first that a configuration names, by its text or id."""
    special: dict[str, int] = {}
    for config in configs:
        for name in ("bos", "eos", "unk", "pad"):
            token: Any = config.get(f"{name}_token")
            id: Any = config.get(f"{name}_token_id")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(id, list) and id:
                id = id[0]
            id = ids.get(token, id)
            if id in ids.values():
                special.setdefault(name, id)
    return special


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The keys of the default template, of those with names, and of the list of these names.

    Files go before tokenizer_config.json, as in transformers.
    """
    in_config: Any = config.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(in_config, list):
        named = {t["name"]: t["template"] for t in in_config}
    elif in_config:
        named = {"default": in_config}
    files = {"default": folder / "chat_template.jinja"}
    files |= {p.stem: p for p in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    named |= {
        name: path.read_text(encoding="utf-8") for name, path in files.items() if path.exists()
    }
    if not named:
        return {}
    default = named.pop("default", None) or next(iter(named.values()))
    keys: dict[str, Any] = {"tokenizer.chat_template": default}
    keys |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        keys["tokenizer.chat_templates"] = sorted(named)
    return keys
