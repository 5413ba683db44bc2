"""The tokenizer's files of a Hugging Face folder, made from the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gwq_export.files import as_json
from gwq_export.tokenizer.build import JSON_KEY, KEY_NAMES, build, optional

if TYPE_CHECKING:
    from tokenizers.processors import TemplateProcessing


def special_ids(metadata: Mapping[str, Any], *names: str) -> dict[str, int | None]:
    """{name: id or None} of special tokens, by Hugging Face's names: bos, eos, unk, pad."""
    ids = {}
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    for name in names:
        id = metadata.get(f"tokenizer.ggml.{KEY_NAMES.get(name, name)}_token_id")
        exists = type(id) is int and id < len(tokens)
        ids[name] = id if exists else None
    return ids


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """{name: bytes} of tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises GwqError for keys that do not fit together.
    """
    native = build(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    special = special_ids(metadata, "bos", "eos", "unk", "pad")
    ids = {name: id for name, id in special.items() if id is not None}
    added = {  # whether a text gets them
        name: optional(metadata, f"add_{name}_token", bool, False) and name in ids
        for name in ("bos", "eos")
    }
    if JSON_KEY not in metadata and any(added.values()):
        native.post_processor = _post_processor(
            {name: (tokens[ids[name]], ids[name]) for name in ("bos", "eos") if added[name]}
        )

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": tokens[id] for name, id in ids.items()}
    config |= {f"add_{name}_token": on for name, on in added.items()}
    if limit := optional(metadata, f"{metadata['general.architecture']}.context_length", int):
        config["model_max_length"] = limit
    if template := optional(metadata, "tokenizer.chat_template", str):
        config["chat_template"] = template

    stops = [ids["eos"]] if "eos" in ids else []
    eot = optional(metadata, "eot_token_id", int)
    if eot is not None:
        stops.append(eot)
    generation: dict[str, Any] = {}
    if stops:
        generation["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    generation |= {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    return {
        "tokenizer.json": native.to_str().encode(),
        "tokenizer_config.json": as_json(config),
        "generation_config.json": as_json(generation),
    }


def _post_processor(special: dict[str, tuple[str, int]]) -> TemplateProcessing:
    """Puts bos before a text and eos behind it. special: {"bos", "eos": (token, id)} as wanted."""
    from tokenizers.processors import TemplateProcessing

    before, _ = special.get("bos", ("", 0))
    after, _ = special.get("eos", ("", 0))
    single = [part for part in (before, "$A", after) if part]
    pair = [*single, *(part.replace("$A", "$B:1") for part in single)]
    return TemplateProcessing(single=single, pair=pair, special_tokens=list(special.values()))
