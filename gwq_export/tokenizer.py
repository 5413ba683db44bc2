"""The tokenizer of a GGUF file: from its keys to a `tokenizers.Tokenizer`, streaming decoding, chat templates.

Two families: "llama" (SentencePiece-style BPE with byte fallback; pieces have scores) and "gpt2" (byte-level BPE;
merges in order, and a pre-tokenizer known by its stock name). A file whose keys cannot express its tokenizer exactly
holds the original JSON too (`tokenizer.huggingface.json`), which is used instead of them.
"""

import json
import re
from datetime import datetime
from functools import cached_property

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
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UP, _LOW, _LEAD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[^\r\n\p{L}\p{N}]?"
_CASE = rf"{_LEAD}{_UP}*{_LOW}+%s|{_LEAD}{_UP}+{_LOW}*%s|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PRE = {
    "gpt-2": (None, (GPT2,), False),
    "olmo": ("NFC", (GPT2,), False),  # GPT-NeoX, Pythia, OLMo
    "smollm": (None, (DIGITS, GPT2), False),
    "starcoder": (None, (DIGITS, GPT2), False),
    "refact": (None, (DIGITS, GPT2), False),
    "command-r": ("NFC", (DIGITS, GPT2), False),
    "qwen2": ("NFC", (_WORD % r"\p{N}",), False),
    "stablelm2": ("NFC", (_WORD % r"\p{N}",), False),
    "qwen35": ("NFC", (_MARKS,), False),
    "llama-bpe": (None, (_WORD % r"\p{N}{1,3}",), True),
    "dbrx": (None, (_WORD % r"\p{N}{1,3}",), False),
    "tekken": (None, (_CASE % ("", "", r"\p{N}"),), True),
    "gpt-4o": (None, (_CASE % (_SUFFIX, _SUFFIX, r"\p{N}{1,3}"),), False),
}
PRE |= {"llama3": PRE["llama-bpe"], "llama-v3": PRE["llama-bpe"], "smaug-bpe": PRE["dbrx"], "mpt": PRE["olmo"]}


def one_line(error):
    """The message of another library's exception, on one line."""
    return " ".join(str(error).split())[:300]


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


def from_json(text, where):
    from tokenizers import Tokenizer as Native

    try:
        native = Native.from_str(text)
    except Exception as e:  # the library raises plain Exception
        raise GwqError(f"{where} cannot be used ({one_line(e)}): download the model again, or update the package tokenizers") from None
    native.no_truncation()
    native.no_padding()
    return native


def build(metadata):
    """The `tokenizers.Tokenizer` of the keys. Raises GwqError."""
    text = _get(metadata, JSON_KEY, str)
    if text is not None:
        return from_json(text, f"the tokenizer in key {JSON_KEY}")
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
        raise GwqError(
            f"the tokenizer's keys do not fit together ({one_line(e)}): the file is damaged, download or export it again"
        ) from None
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
        self._native = build(metadata)
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
        native = from_json(self._native.to_str(), "the tokenizer")
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
                f"the file's chat template refuses these messages ({one_line(e)}): change the messages or give a plain prompt"
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
