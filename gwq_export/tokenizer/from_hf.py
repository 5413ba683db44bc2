"""The tokenizer of a Hugging Face folder as the ordinary GGUF keys.

When a tokenizer rebuilt from the keys does not encode like the original, the original JSON goes
into the file too.
"""

import base64
import json
import logging
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError, one_line
from gwq_export.tokenizer import build as tk
from gwq_export.tokenizer.build import SPACE, build, from_json
from gwq_export.tokenizer.pretokenizer import name_of, parts

log = logging.getLogger("gwq_export")
PROBE = Path(__file__).parents[1] / "data" / "tokenizer_probe.txt"
UNKNOWN_PRE = "unknown"  # stock readers refuse this name, as they should


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise GwqError(f"cannot read {path}: {one_line(e)}; download the model again") from None


def _scores(tokens, merges):
    """float32 (n,) whose order is that of the merges:

    SentencePiece joins the pair with the highest score first.
    """
    rank = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return np.array([-rank.get(token, len(rank)) for token in tokens], np.float32)


def _special_tokens(configs, ids):
    """{"bos": id} and eos, unk, pad: the first that a configuration names, by its text or its id."""
    found = {}
    for config in configs:
        for name in ("bos", "eos", "unk", "pad"):
            token, id = config.get(f"{name}_token"), config.get(f"{name}_token_id")
            token = token.get("content") if isinstance(token, dict) else token
            id = ids.get(token, id[0] if isinstance(id, list) and id else id)
            if id in ids.values():
                found.setdefault(name, id)
    return found


def _chat_templates(folder, config):
    """The default template, those with names and their names; files go before
    tokenizer_config.json, as in transformers.
    """
    found = config.get("chat_template") or {}
    named = (
        {t["name"]: t["template"] for t in found}
        if isinstance(found, list)
        else {"default": found}
        if found
        else {}
    )
    files = {"default": folder / "chat_template.jinja"} | {
        p.stem: p for p in sorted(folder.glob("additional_chat_templates/*.jinja"))
    }
    named |= {
        name: path.read_text(encoding="utf-8") for name, path in files.items() if path.exists()
    }
    if not named:
        return {}
    default = named.pop("default", None) or next(iter(named.values()))
    keys = {"tokenizer.chat_template": default} | {
        f"tokenizer.chat_template.{name}": text for name, text in named.items()
    }
    return keys | ({"tokenizer.chat_templates": sorted(named)} if named else {})


def to_metadata(folder, vocab_size, pre=None):
    """The GGUF keys {key: value} of the tokenizer in a Hugging Face folder.

    vocab_size: rows of the embedding; the ids that the tokenizer lacks become unused tokens. pre:
    llama.cpp's name of the pre-tokenizer, for a byte-level tokenizer with a structure that is not
    in PRE. Raises GwqError.
    """
    folder, path = Path(folder), Path(folder, "tokenizer.json")
    if not path.is_file():
        raise GwqError(
            f"{folder} has no tokenizer.json: save the model's fast tokenizer there with save_pretrained"
        )
    spec, config, generation = (
        _read_json(folder / f"{name}.json")
        for name in ("tokenizer", "tokenizer_config", "generation_config")
    )
    try:
        text = path.read_text(encoding="utf-8")
        return _to_metadata(
            folder, text, spec, config, generation, from_json(text, path), vocab_size, pre
        )
    except GwqError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as e:
        raise GwqError(
            f"{path} or a file beside it is not what transformers writes ({one_line(repr(e))}): download the model again"
        ) from None


def _byte_level(spec, pre):
    return {
        "model": "gpt2",
        "pre": pre or name_of(spec) or UNKNOWN_PRE,
        "merges": [" ".join(m) for m in _merges(spec)],
    }


def _sentencepiece(original, spec, tokens, types):
    unknown = spec["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = tk.UNKNOWN
    return {
        "model": "llama",
        "pre": "default",
        "scores": _scores(tokens, _merges(spec)),
        "add_space_prefix": _prefixed(original),
    }


def _unigram(original, spec, tokens, types):
    types[spec["model"]["unk_id"]] = tk.UNKNOWN
    scores = np.zeros(len(tokens), np.float32)
    scores[: len(spec["model"]["vocab"])] = [score for _, score in spec["model"]["vocab"]]
    one, two = (original.encode(text, add_special_tokens=False).ids for text in ("a b", "a  b"))
    keys = {
        "model": "t5",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": _prefixed(original),
    }
    keys["remove_extra_whitespaces"] = one == two
    for step in parts(spec.get("normalizer"), "normalizers"):
        if step["type"] == "Precompiled":
            keys["precompiled_charsmap"] = np.frombuffer(
                base64.b64decode(step["precompiled_charsmap"]), np.uint8
            )
    return keys


def _merges(spec):
    return [m.split(" ", 1) if isinstance(m, str) else m for m in spec["model"]["merges"]]


def _prefixed(original):
    return original.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)


def _to_metadata(folder, text, spec, config, generation, original, vocab_size, pre):
    path, model = folder / "tokenizer.json", spec["model"]
    byte_level = any(
        p["type"] == "ByteLevel" for p in parts(spec.get("pre_tokenizer"), "pretokenizers")
    )
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind not in ("BPE", "Unigram") or (
        kind == "BPE" and not (byte_level or model.get("byte_fallback"))
    ):
        raise GwqError(
            f"{path} is a {kind} tokenizer: only byte-level BPE, BPE with byte fallback and unigram are supported"
        )
    ids = original.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= vocab_size:
        raise GwqError(
            f"{path} has more ids than the model's {vocab_size} embeddings: use the tokenizer that the model was trained with"
        )

    tokens, types = (
        [f"[PAD{i}]" for i in range(vocab_size)],
        np.full(vocab_size, tk.UNUSED, np.int32),
    )
    for token, id in ids.items():
        tokens[id], types[id] = (
            token,
            tk.BYTE if not byte_level and tk.BYTE_TOKEN.fullmatch(token) else tk.NORMAL,
        )
    added = spec.get("added_tokens") or []
    for token in added:
        types[token["id"]] = tk.CONTROL if token["special"] else tk.USER_DEFINED
    if kind == "Unigram":
        keys = _unigram(original, spec, tokens, types)
    elif byte_level:
        keys = _byte_level(spec, pre)
    else:
        keys = _sentencepiece(original, spec, tokens, types)
    keys |= {"tokens": tokens, "token_type": types}

    plain, full = (original.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    configs = [
        config,
        _read_json(folder / "special_tokens_map.json"),
        generation,
        _read_json(folder / "config.json"),
    ]
    special = _special_tokens(
        [*configs, {"bos_token_id": full[0]} if full[1:] == plain else {}], ids
    )
    keys |= {f"{tk.KEY_NAMES.get(name, name)}_token_id": id for name, id in special.items()}
    for name, end in (("bos", full[:1]), ("eos", full[-1:])):
        added_by_json = len(full) > len(plain) and end == [special.get(name)]
        wanted = config.get(f"add_{name}_token")
        keys[f"add_{name}_token"] = name in special and (
            wanted if type(wanted) is bool else added_by_json
        )
    stops = generation.get("eos_token_id")
    others = (
        [id for id in stops if id != special.get("eos") and 0 <= id < vocab_size]
        if isinstance(stops, list)
        else []
    )
    keys |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    if others[2:]:
        log.warning(
            "%s names %d tokens that end a text, GGUF has room for 3: left out: %s",
            folder,
            len(others) + 1,
            others[2:],
        )
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | _chat_templates(
        folder, config
    )
    if _alike(keys, original, [token["content"] for token in added]):
        return keys
    why = (
        "the stock keys cannot say all that it does: other programs may cut texts into other tokens"
    )
    if keys["tokenizer.ggml.pre"] == UNKNOWN_PRE:
        shown = json.dumps([spec.get("normalizer"), spec["pre_tokenizer"]], ensure_ascii=False)
        why = f"its pre-tokenizer has no stock name ({shown:.300}): other programs will refuse the file, unless you give llama.cpp's name "
        why += "for it with --tokenizer-pre NAME"
    log.warning(
        "%s goes into the file as a whole (%.1f MB), which makes it exact here; %s",
        path,
        len(text.encode()) / 1e6,
        why,
    )
    return keys | {tk.JSON_KEY: text}


def _alike(keys, original, added):
    """Whether the keys give the original's ids and its text back: for PROBE, for added tokens amid
    text, for every token's own text.
    """
    try:
        ours = build(keys)
    except GwqError:
        return False
    probe = PROBE.read_bytes().decode()  # as it is, with its carriage returns
    size = len(keys["tokenizer.ggml.tokens"])
    singles = [[id] for id in range(size)]
    pieces = original.decode_batch(singles, skip_special_tokens=False)
    if ours.decode_batch(singles, skip_special_tokens=False) != pieces:
        return False
    texts = [
        probe,
        *probe.splitlines(keepends=True),
        *probe.split(" "),
        *(f"{a}b {a} c{a}{a}\n{a}" for a in added),
        *pieces,
    ]
    ids, same = (
        [e.ids for e in native.encode_batch(texts, add_special_tokens=False)]
        for native in (original, ours)
    )
    return ids == same and original.decode_batch(ids) == ours.decode_batch(ids)
