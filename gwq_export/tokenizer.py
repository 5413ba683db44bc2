"""Tokenizers: from a Hugging Face folder to the stock GGUF keys, and from GGUF keys to a `tokenizers.Tokenizer`.

Two families: "llama" (SentencePiece-style BPE with byte fallback; pieces have scores) and "gpt2" (byte-level BPE;
merges in order, and a pre-tokenizer known by its stock name). When the keys cannot express a tokenizer exactly,
its JSON goes into the file too (`tokenizer.huggingface.json`) and is used instead of them.
"""

import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from gwq_export import GwqError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
JSON_KEY = "tokenizer.huggingface.json"
KEY_NAMES = {"unk": "unknown", "pad": "padding"}  # Hugging Face's name -> GGUF's, where they differ
SPACE = "\u2581"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
# tokens that end a turn of a chat, whatever the eos of the file
END_OF_TURN = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endoftext|>", "<EOT>"}

# Pre-tokenizers: stock name -> (normalizer, patterns applied one after another, does a whole word win over merges).
# Of several names with the same structure the first is written. DIGITS cuts out every digit.
DIGITS = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UP, _LOW, _LEAD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[^\r\n\p{L}\p{N}]?"
_CASE = rf"{_LEAD}{_UP}*{_LOW}+%s|{_LEAD}{_UP}+{_LOW}*%s|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PRE = {
    "gpt-2": (None, (_GPT2,), False),
    "olmo": ("NFC", (_GPT2,), False),  # GPT-NeoX, Pythia, OLMo
    "smollm": (None, (DIGITS, _GPT2), False),
    "starcoder": (None, (DIGITS, _GPT2), False),
    "refact": (None, (DIGITS, _GPT2), False),
    "command-r": ("NFC", (DIGITS, _GPT2), False),
    "qwen2": ("NFC", (_WORD % r"\p{N}",), False),
    "stablelm2": ("NFC", (_WORD % r"\p{N}",), False),
    "qwen35": ("NFC", (_MARKS,), False),
    "llama-bpe": (None, (_WORD % r"\p{N}{1,3}",), True),
    "dbrx": (None, (_WORD % r"\p{N}{1,3}",), False),
    "tekken": (None, (_CASE % ("", "", r"\p{N}"),), True),
    "gpt-4o": (None, (_CASE % (_SUFFIX, _SUFFIX, r"\p{N}{1,3}"),), False),
}
PRE |= {"llama3": PRE["llama-bpe"], "llama-v3": PRE["llama-bpe"], "smaug-bpe": PRE["dbrx"], "mpt": PRE["olmo"]}

# what every rebuilt tokenizer must encode like the original, besides its own added tokens
PROBE = """The quick brown fox can't jump; they'll've said: "It's 3.14159, isn't IT'S?"  Two  spaces,   three.
\tdef f(x: int) -> str:\n\t\treturn f"{x!r:>10}"  # 0x1F 1e-9 a_b->c[10:200] != None\n\n\n    if (a&&b||!c) { x += 1; }\r\n
Grüße, naïve façade, cafe\u0301 A\u030a, Œuvre, ﬁn; Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم 12٣٤ नमस्ते दुनिया
你好，世界！2024年　こんにちは、世界。 안녕하세요 สวัสดีชาวโลก Xin chào Việt Nam ½ ² Ⅷ ①
😀👍🏽👩‍👩‍👧‍👦🇩🇪 ✨→∑∞≠ \u00a0\u2003\u200b\ufeff… «quoted» ‘single’ “double” —dash– $100 €50 50% #tag @me https://example.org/a?b=c&d=1
camelCaseHTTPServer SNAKE_CASE I'LL DON'T 1234567890 1,234,567.89 ▁under \u0000 \x7f _ __ ____ ... !!! ??? (((  )))   \n   \n \t \n"""


# --- Hugging Face -> keys -------------------------------------------------------------------------------------------


def _line(error):
    """The message of another library's exception, on one line."""
    return " ".join(str(error).split())[:300]


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as e:
        raise GwqError(f"cannot read {path}: {_line(e)}; download the model again") from None


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
            patterns += [_GPT2] if p.get("use_regex", True) else []
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
        original = _from_json(path.read_text(encoding="utf-8"), path)
        return _to_metadata(folder, spec, config, generation, original, vocab_size, pre)
    except GwqError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as e:
        raise GwqError(f"{path} or a file beside it is not what transformers writes ({_line(repr(e))}): download the model again") from None


def _to_metadata(folder, spec, config, generation, original, vocab_size, pre):
    path, model = folder / "tokenizer.json", spec["model"]
    byte_level = any(p["type"] == "ByteLevel" for p in _parts(spec.get("pre_tokenizer"), "pretokenizers"))
    if model.get("type", "BPE") != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise GwqError(f"{path} is a {model.get('type')} tokenizer: only byte-level BPE and BPE with byte fallback are supported")
    ids = original.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= vocab_size:
        raise GwqError(f"{path} has more ids than the model's {vocab_size} embeddings: use the tokenizer that the model was trained with")

    tokens, types = [f"[PAD{i}]" for i in range(vocab_size)], np.full(vocab_size, UNUSED, np.int32)
    for token, id in ids.items():
        tokens[id], types[id] = token, BYTE if not byte_level and BYTE_TOKEN.fullmatch(token) else NORMAL
    added = spec.get("added_tokens") or []
    for token in added:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]

    if byte_level:
        pre = pre or _pre_name(path, spec)
        keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": [" ".join(m) for m in merges]}
    else:
        if model.get("unk_token") in ids:
            types[ids[model["unk_token"]]] = UNKNOWN
        prefix = original.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)
        keys = {"model": "llama", "pre": "default", "tokens": tokens, "token_type": types, "scores": _scores(tokens, merges)}
        keys["add_space_prefix"] = prefix

    plain, full = (original.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    configs = [config, _read_json(folder / "special_tokens_map.json"), generation, _read_json(folder / "config.json")]
    special = _special_tokens([*configs, {"bos_token_id": full[0]} if full[1:] == plain else {}], ids)
    keys |= {f"{KEY_NAMES.get(name, name)}_token_id": id for name, id in special.items()}
    for name, end in (("bos", full[:1]), ("eos", full[-1:])):
        added_by_json = len(full) > len(plain) and end == [special.get(name)]
        wanted = config.get(f"add_{name}_token")
        keys[f"add_{name}_token"] = name in special and (wanted if type(wanted) is bool else added_by_json)
    stops = generation.get("eos_token_id")
    others = [id for id in stops if id != special.get("eos") and id in ids.values()] if isinstance(stops, list) else []
    keys |= {"eot_token_id": others[0]} if others else {}
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | _chat_templates(folder, config)
    try:
        exact = _alike(_build(keys), original, [token["content"] for token in added])
    except GwqError:
        exact = False
    return keys if exact else keys | {JSON_KEY: path.read_text(encoding="utf-8")}


def _alike(ours, original, added):
    """Whether both give the same ids and the same text back, for PROBE and for the added tokens amid text."""
    for text in [PROBE, *PROBE.splitlines(keepends=True), *PROBE.split(" "), *(f"{a}b {a} c{a}{a}\n{a}" for a in added)]:
        ids = original.encode(text, add_special_tokens=False).ids
        if ours.encode(text, add_special_tokens=False).ids != ids or ours.decode(ids) != original.decode(ids):
            return False
    return True


# --- keys -> tokenizer ----------------------------------------------------------------------------------------------


def _get(metadata, key, kind, default=None):
    """The value of tokenizer.ggml.<key>, which must be a `kind`; `default` if it is missing, unless that is KeyError."""
    key = key if "." in key else f"tokenizer.ggml.{key}"
    value = metadata.get(key, default)
    if value is KeyError:
        raise GwqError(f"the key {key} is missing, so the file has no tokenizer: use a file made from a language model")
    if value is not default and type(value) is not kind:
        raise GwqError(f"the key {key} is not of type {kind.__name__}: the file is damaged, download or export it again")
    return value


def _merges(tokens, scores, types, ids):
    """Every pair of pieces that makes a normal piece, in the order in which SentencePiece would join them."""
    merges = []
    for token, score, type in zip(tokens, scores.tolist(), types.tolist(), strict=True):
        if type == NORMAL and len(token) > 1:
            pairs = ((ids.get(token[:i]), ids.get(token[i:])) for i in range(1, len(token)))
            merges += sorted((-score, *pair) for pair in pairs if None not in pair)
    return [(tokens[left], tokens[right]) for _, left, right in sorted(merges, key=lambda m: m[0])]


def _from_json(text, where):
    from tokenizers import Tokenizer as Native

    try:
        native = Native.from_str(text)
    except Exception as e:  # the library raises plain Exception
        raise GwqError(f"{where} cannot be used ({_line(e)}): download the model again, or update the package tokenizers") from None
    native.no_truncation()
    native.no_padding()
    return native


def _build(metadata):
    """The `tokenizers.Tokenizer` of the keys. Raises GwqError."""
    text = _get(metadata, JSON_KEY, str)
    if text is not None:
        return _from_json(text, f"the tokenizer in key {JSON_KEY}")
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Native

    family, tokens = _get(metadata, "model", str, KeyError), _get(metadata, "tokens", list, KeyError)
    types = _get(metadata, "token_type", np.ndarray, np.full(len(tokens), NORMAL))
    scores = _get(metadata, "scores", np.ndarray, np.zeros(len(tokens)))
    if not len(types) == len(tokens) == len(scores) or not np.isfinite(scores).all():
        raise GwqError("tokens, scores and types of the tokenizer do not fit together: the file is damaged, download or export it again")
    ids = {t: i for i, (t, kind) in enumerate(zip(tokens, types.tolist(), strict=True)) if kind != UNUSED or t != f"[PAD{i}]"}
    try:
        if family == "gpt2":
            pre = _get(metadata, "pre", str, KeyError)
            if pre not in PRE:
                raise GwqError(f"the file's pre-tokenizer {pre!r} is unknown: export the model with gwq-export, which stores more")
            normalizer, patterns, whole = PRE[pre]
            merges = [tuple(m.split(" ", 1)) for m in _get(metadata, "merges", list, KeyError)]
            native = Native(models.BPE(ids, merges, ignore_merges=whole))
            steps = [pre_tokenizers.Digits(True) if p == DIGITS else pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
            native.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
            native.decoder = decoders.ByteLevel()
            if normalizer:
                native.normalizer = normalizers.NFC()
        elif family == "llama":
            unknown = next((tokens[i] for i in np.flatnonzero(types == UNKNOWN)), None)
            native = Native(models.BPE(ids, _merges(tokens, scores, types, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True))
            prefix = _get(metadata, "add_space_prefix", bool, True)
            spaces = [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(" ", SPACE)]
            native.normalizer = normalizers.Sequence(spaces)
            strip = [decoders.Strip(" ", 1, 0)] * prefix
            native.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
        else:
            raise GwqError(f"tokenizer model {family!r} is not supported: use a model with a gpt2 or llama tokenizer")
    except GwqError:
        raise
    except Exception as e:  # the library raises plain Exception
        raise GwqError(f"the tokenizer's keys do not fit together ({_line(e)}): the file is damaged, download or export it again") from None
    control, defined = np.isin(types, (CONTROL, UNKNOWN)), types == USER_DEFINED
    native.add_special_tokens([AddedToken(tokens[i], normalized=False, special=True) for i in np.flatnonzero(control)])
    native.add_tokens([AddedToken(tokens[i], normalized=False) for i in np.flatnonzero(defined)])
    return native


class Tokenizer:
    """The tokenizer of a GGUF file; `metadata` maps keys to values. Safe from several threads. Raises GwqError.

    bos, eos: ids or None; add_bos: whether a text starts with bos; stop_ids: set of the ids that end a generation;
    vocab_size; chat_template: str or None.
    """

    def __init__(self, metadata):
        self._native = _build(metadata)
        self.vocab_size = len(_get(metadata, "tokens", list, KeyError))
        ids = {name: _get(metadata, f"{name}_token_id", int) for name in ("bos", "eos", "eot", "eom")}
        for name, id in ids.items():
            if id is not None and not 0 <= id < self.vocab_size:
                raise GwqError(f"the id {id} of the {name} token is beyond the vocabulary: the file is damaged, export it again")
        self.bos, self.eos = ids["bos"], ids["eos"]
        add_bos = _get(metadata, "add_bos_token", bool, _get(metadata, "model", str) == "llama")
        self.add_bos = add_bos and self.bos is not None
        self.chat_template = _get(metadata, "tokenizer.chat_template", str)
        added = self._native.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self.stop_ids = {ids["eos"], ids["eot"], ids["eom"]} - {None} | {id for id, t in added.items() if t.content in END_OF_TURN}

    @cached_property
    def _plain(self):
        """The same tokenizer, blind to special tokens in the text."""
        native = _from_json(self._native.to_str(), "the tokenizer")
        native.encode_special_tokens = True
        return native

    def encode(self, text, special=True, bos=None):
        """Token ids of `text`. special: read special tokens in it as such; bos: start with bos (None: as the file says, but once)."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GwqError("the text is not valid Unicode: give it in UTF-8") from None
        ids = (self._native if special else self._plain).encode(text, add_special_tokens=False).ids
        wanted = self.add_bos and ids[:1] != [self.bos] if bos is None else bos and self.bos is not None
        return [self.bos, *ids] if wanted else ids

    def decode(self, ids, special=False):
        """The text of token ids; special tokens are left out unless `special`."""
        return self._native.decode([int(id) for id in ids], skip_special_tokens=not special)

    def stream(self, special=False):
        """An incremental decoder: see `Stream`."""
        return Stream(self, special)

    def chat(self, messages, add_generation_prompt=True):
        """The prompt of `messages`, a list of {"role", "content"}, by the file's chat template. Encode it with special=True."""
        if self.chat_template is None:
            raise GwqError("the file has no chat template: give a plain prompt")
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):  # {% generation %} marks what the model says; it prints nothing
            tags = frozenset(["generation"])

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        def raise_exception(message):
            raise TemplateError(message)

        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
        env.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
        env.globals |= {"raise_exception": raise_exception, "strftime_now": lambda format: datetime.now().strftime(format)}
        bos, eos = ("" if id is None else self._native.id_to_token(id) or "" for id in (self.bos, self.eos))
        names = {"messages": messages, "add_generation_prompt": add_generation_prompt, "bos_token": bos, "eos_token": eos}
        try:
            return env.from_string(self.chat_template).render(**names, tools=None, documents=None)
        except Exception as e:  # the template is a program from the file: anything may happen in it
            raise GwqError(
                f"the file's chat template refuses these messages ({_line(e)}): change the messages or give a plain prompt"
            ) from None


class Stream:
    """Token ids in, text out as soon as it is certain. The fragments, with `flush`, join to what `decode` gives for all ids."""

    def __init__(self, tokenizer, special=False):
        self._tokenizer, self._show = tokenizer, special
        self._ids, self._sent = [], ""  # ids since the last certain text, after one id of context; text of the context

    def feed(self, id):
        """The text that became certain with `id`; "" while a character is incomplete."""
        token = self._tokenizer._native.id_to_token(int(id))
        if token is None or (id in self._tokenizer._special and not self._show):
            return ""
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids, self._show)
        if text.endswith("\ufffd") or BYTE_TOKEN.fullmatch(token):  # a run of bytes is text or not as a whole
            return ""
        fragment = text[len(self._sent) :]
        self._ids, self._sent = [id], self._tokenizer.decode([id], self._show)
        return fragment

    def flush(self):
        """The text held back; the next `feed` starts a new text."""
        fragment = self._tokenizer.decode(self._ids, self._show)[len(self._sent) :]
        self._ids, self._sent = [], ""
        return fragment
