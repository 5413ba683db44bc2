"""The tokenizer of a Hugging Face folder as the stock GGUF keys.

When a tokenizer rebuilt from the keys does not encode like the original, the original JSON goes into the file too.
"""

import json
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export import tokenizer as tk
from gwq_export.tokenizer import DIGITS, PRE, SPACE, build, from_json, one_line

# what every rebuilt tokenizer must encode like the original, besides its own added tokens
PROBE = """The quick brown fox can't jump; they'll've said: "It's 3.14159, isn't IT'S?"  Two  spaces,   three.
\tdef f(x: int) -> str:\n\t\treturn f"{x!r:>10}"  # 0x1F 1e-9 a_b->c[10:200] != None\n\n\n    if (a&&b||!c) { x += 1; }\r\n
Grüße, naïve façade, cafe\u0301 A\u030a, Œuvre, ﬁn; Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم 12٣٤ नमस्ते दुनिया
你好，世界！2024年　こんにちは、世界。 안녕하세요 สวัสดีชาวโลก Xin chào Việt Nam ½ ² Ⅷ ①
😀👍🏽👩‍👩‍👧‍👦🇩🇪 ✨→∑∞≠ \u00a0\u2003\u200b\ufeff… «quoted» ‘single’ “double” —dash– $100 €50 50% #tag @me https://example.org/a?b=c&d=1
camelCaseHTTPServer SNAKE_CASE I'LL DON'T 1234567890 1,234,567.89 ▁under \u0000 \x7f _ __ ____ ... !!! ??? (((  )))   \n   \n \t \n"""


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise GwqError(f"cannot read {path}: {one_line(e)}; download the model again") from None


def _parts(node, key):
    """The members of a (possibly nested) Sequence of tokenizer.json; [] for null."""
    if not node:
        return []
    return [part for n in node[key] for part in _parts(n, key)] if node["type"] == "Sequence" else [node]


def _pre_name(path, spec):
    """The name in PRE of a byte-level tokenizer.json's structure. llama.cpp does not normalize, so without or with NFC will do."""
    normalizer = "+".join(n["type"] for n in _parts(spec.get("normalizer"), "normalizers")) or None
    patterns, known = [], normalizer in (None, "NFC")
    for p in _parts(spec["pre_tokenizer"], "pretokenizers"):
        pattern = p.get("pattern", {}).get("Regex")
        if p["type"] == "ByteLevel" and not p.get("add_prefix_space"):
            patterns += [tk.GPT2] if p.get("use_regex", True) else []
        elif p["type"] == "Digits" and p.get("individual_digits"):
            patterns.append(DIGITS)
        elif p["type"] == "Split" and pattern and p.get("behavior") == "Isolated" and not p.get("invert"):
            patterns.append(pattern)
        else:
            known = False
    row = (normalizer, tuple(patterns), bool(spec["model"].get("ignore_merges")))
    names = [name for name in PRE if known and PRE[name][1:] == row[1:]]
    if not names:
        shown = json.dumps([spec.get("normalizer"), spec["pre_tokenizer"]], ensure_ascii=False)
        raise GwqError(f"{path} has an unknown pre-tokenizer, {shown:.500}: give llama.cpp's name for it with --tokenizer-pre NAME")
    return next((name for name in names if PRE[name] == row), names[0])


def _scores(tokens, merges):
    """float32 (n,) whose order is that of the merges: SentencePiece joins the pair with the highest score first."""
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
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.exists() else config.get("chat_template")
    if not isinstance(template, list):
        return {"tokenizer.chat_template": template} if template else {}
    named = {t["name"]: t["template"] for t in template}
    default = named.pop("default", None) or next(iter(named.values()))
    return {"tokenizer.chat_template": default} | {f"tokenizer.chat_template.{name}": text for name, text in named.items()}


def to_metadata(folder, vocab_size, pre=None):
    """The GGUF keys {key: value} of the tokenizer in a Hugging Face folder.

    vocab_size: rows of the embedding; the ids that the tokenizer lacks become unused tokens. pre: llama.cpp's name
    of the pre-tokenizer, for a byte-level tokenizer with a structure that is not in PRE. Raises GwqError.
    """
    folder, path = Path(folder), Path(folder, "tokenizer.json")
    if not path.is_file():
        raise GwqError(f"{folder} has no tokenizer.json: save the model's fast tokenizer there with save_pretrained")
    spec, config, generation = (_read_json(folder / f"{name}.json") for name in ("tokenizer", "tokenizer_config", "generation_config"))
    try:
        original = from_json(path.read_text(encoding="utf-8"), path)
        return _to_metadata(folder, spec, config, generation, original, vocab_size, pre)
    except GwqError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as e:
        raise GwqError(
            f"{path} or a file beside it is not what transformers writes ({one_line(repr(e))}): download the model again"
        ) from None


def _to_metadata(folder, spec, config, generation, original, vocab_size, pre):
    path, model = folder / "tokenizer.json", spec["model"]
    byte_level = any(p["type"] == "ByteLevel" for p in _parts(spec.get("pre_tokenizer"), "pretokenizers"))
    if model.get("type", "BPE") != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise GwqError(f"{path} is a {model.get('type')} tokenizer: only byte-level BPE and BPE with byte fallback are supported")
    ids = original.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= vocab_size:
        raise GwqError(f"{path} has more ids than the model's {vocab_size} embeddings: use the tokenizer that the model was trained with")

    tokens, types = [f"[PAD{i}]" for i in range(vocab_size)], np.full(vocab_size, tk.UNUSED, np.int32)
    for token, id in ids.items():
        tokens[id], types[id] = token, tk.BYTE if not byte_level and tk.BYTE_TOKEN.fullmatch(token) else tk.NORMAL
    added = spec.get("added_tokens") or []
    for token in added:
        types[token["id"]] = tk.CONTROL if token["special"] else tk.USER_DEFINED
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]

    if byte_level:
        pre = pre or _pre_name(path, spec)
        keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": [" ".join(m) for m in merges]}
    else:
        if model.get("unk_token") in ids:
            types[ids[model["unk_token"]]] = tk.UNKNOWN
        prefix = original.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)
        keys = {"model": "llama", "pre": "default", "tokens": tokens, "token_type": types, "scores": _scores(tokens, merges)}
        keys["add_space_prefix"] = prefix

    plain, full = (original.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    configs = [config, _read_json(folder / "special_tokens_map.json"), generation, _read_json(folder / "config.json")]
    special = _special_tokens([*configs, {"bos_token_id": full[0]} if full[1:] == plain else {}], ids)
    keys |= {f"{tk.KEY_NAMES.get(name, name)}_token_id": id for name, id in special.items()}
    for name, end in (("bos", full[:1]), ("eos", full[-1:])):
        added_by_json = len(full) > len(plain) and end == [special.get(name)]
        wanted = config.get(f"add_{name}_token")
        keys[f"add_{name}_token"] = name in special and (wanted if type(wanted) is bool else added_by_json)
    stops = generation.get("eos_token_id")
    others = [id for id in stops if id != special.get("eos") and id in ids.values()] if isinstance(stops, list) else []
    keys |= {"eot_token_id": others[0]} if others else {}
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | _chat_templates(folder, config)
    try:
        exact = _alike(build(keys), original, [token["content"] for token in added])
    except GwqError:
        exact = False
    return keys if exact else keys | {tk.JSON_KEY: path.read_text(encoding="utf-8")}


def _alike(ours, original, added):
    """Whether both give the same ids and the same text back, for PROBE and for the added tokens amid text."""
    for text in [PROBE, *PROBE.splitlines(keepends=True), *PROBE.split(" "), *(f"{a}b {a} c{a}{a}\n{a}" for a in added)]:
        ids = original.encode(text, add_special_tokens=False).ids
        if ours.encode(text, add_special_tokens=False).ids != ids or ours.decode(ids) != original.decode(ids):
            return False
    return True
