"""Special tokens and chat templates of a Hugging Face folder as GGUF keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwq_export.errors import GwqError
from gwq_export.files import read_optional_json
from gwq_export.tokenizer.build import KEY_NAMES
from gwq_export.tokenizer.hf_folder import NAMES, HFTokenizer, end_ids, named_tokens

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger("gwq_export")


def special_keys(
    folder: Path, loaded: HFTokenizer, original: tokenizers.Tokenizer, vocab_size: int
) -> dict[str, Any]:
    """The keys, without their prefix, of bos, eos, unk, pad and of other tokens that end a text.

    original: the tokenizer of loaded.spec. Raises GwqError where GGUF's keys cannot say what the
    tokenizer does, and for a bos or eos without a row of the embedding.
    """
    before, after = _around(original)
    special = _special_tokens(folder, loaded, before, vocab_size)
    for id in (*before, *after):
        if id >= vocab_size:
            raise GwqError(
                f"{folder}: the tokenizer puts token {id} around every text, for which the model's "
                f"{vocab_size} embeddings have no row: "
                "use the tokenizer that the model was trained with"
            )
    if before and before != [special.get("bos")]:
        raise GwqError(
            f"{folder}: the tokenizer puts {_texts(original, before)} before every text, but "
            f"{_texts(original, [special['bos']])} is its bos_token; GGUF files cannot say that: "
            "correct bos_token in tokenizer_config.json"
        )
    keys: dict[str, Any] = {
        f"{KEY_NAMES.get(name, name)}_token_id": id for name, id in special.items()
    }
    keys["add_bos_token"] = bool(before)
    keys["add_eos_token"] = bool(after) and after == [special.get("eos")]
    others = [id for id in end_ids(folder) if id != special.get("eos") and 0 <= id < vocab_size]
    keys |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    if others[2:]:
        log.warning(
            "%s names %d tokens that end a text, GGUF has room for 3: left out: %s",
            folder,
            len(others) + 1,
            others[2:],
        )
    return keys


def _around(original: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """(ids before, ids after) that the tokenizer puts around a text."""
    plain, full = (original.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    starts = (i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    start = next(starts, 0)
    return full[:start], full[start + len(plain) :]


def _texts(original: tokenizers.Tokenizer, ids: Iterable[int]) -> str:
    return " ".join(original.id_to_token(id) or str(id) for id in ids)


def _special_tokens(
    folder: Path, loaded: HFTokenizer, before: list[int], vocab_size: int
) -> dict[str, int]:
    """{"bos": id} and eos, unk, pad: of the tokenizer, else of the model's configs."""
    named = named_tokens(folder)
    special = {}
    for name, id in loaded.special.items():
        if id < vocab_size:
            special[name] = id
        elif name in ("bos", "eos") and name in named:
            raise GwqError(
                f"{folder}: the {name}_token has the id {id}, for which the model's {vocab_size} "
                "embeddings have no row: use the tokenizer that the model was trained with"
            )
    for file in ("generation_config.json", "config.json"):
        config = read_optional_json(folder / file)
        for name in NAMES:
            said: Any = config.get(f"{name}_token_id")
            first = said[0] if isinstance(said, list) and said else said
            if type(first) is int and 0 <= first < vocab_size:
                special.setdefault(name, first)
    if len(before) == 1:
        special.setdefault("bos", before[0])
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
