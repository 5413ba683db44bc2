"""The tokenizer's files of a Hugging Face folder, made from the keys of a GGUF file."""

from gwq_export.files import as_json
from gwq_export.tokenizer import build as tokenizer


def _special_ids(meta, *names):
    """{name: id or None} of special tokens."""
    ids = {
        name: meta.get(f"tokenizer.ggml.{tokenizer.KEY_NAMES.get(name, name)}_token_id")
        for name in names
    }
    return {
        name: id if type(id) is int and id < len(meta["tokenizer.ggml.tokens"]) else None
        for name, id in ids.items()
    }


def _tokenizer_files(reader):
    """tokenizer.json, tokenizer_config.json and generation_config.json from the keys."""
    meta = reader.metadata
    native, tokens = tokenizer.build(meta), meta["tokenizer.ggml.tokens"]
    ids = {
        name: id
        for name, id in _special_ids(meta, "bos", "eos", "unk", "pad").items()
        if id is not None
    }
    ends = {
        name: bool(meta.get(f"tokenizer.ggml.add_{name}_token")) and name in ids
        for name in ("bos", "eos")
    }
    if tokenizer.JSON_KEY not in meta and any(ends.values()):
        from tokenizers.processors import TemplateProcessing

        before, after = (tokens[ids[name]] if ends[name] else "" for name in ("bos", "eos"))
        parts = [p for p in (before, "$A", after) if p]
        pair = [*parts, *(p.replace("$A", "$B:1") for p in parts)]
        known = [(tokens[ids[name]], ids[name]) for name in ends if ends[name]]
        native.post_processor = TemplateProcessing(single=parts, pair=pair, special_tokens=known)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": tokens[id] for name, id in ids.items()} | {
        f"add_{name}_token": on for name, on in ends.items()
    }
    if limit := meta.get(f"{meta['general.architecture']}.context_length"):
        config["model_max_length"] = limit
    if template := meta.get("tokenizer.chat_template"):
        config["chat_template"] = template
    stops = [ids["eos"]] if "eos" in ids else []
    stops += [meta["tokenizer.ggml.eot_token_id"]] if "tokenizer.ggml.eot_token_id" in meta else []
    generation = {"eos_token_id": stops if len(stops) > 1 else stops[0]} if stops else {}
    generation |= {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    return {
        "tokenizer.json": native.to_str().encode(),
        "tokenizer_config.json": as_json(config),
        "generation_config.json": as_json(generation),
    }
