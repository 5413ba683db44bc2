"""The tokenizer of a GGUF file: from its keys to a `tokenizers.Tokenizer`, streaming decoding, chat
templates.

Three families: "llama" (SentencePiece-style BPE with byte fallback; pieces have scores), "t5"
(SentencePiece's unigram model) and "gpt2" (byte-level BPE; merges in order, and a pre-tokenizer
known by its stock name). A file whose keys cannot express its tokenizer exactly holds the original
JSON too (`tokenizer.huggingface.json`), which is used instead of them.
"""

import re

import numpy as np

from gwq_export.errors import GwqError, one_line
from gwq_export.tokenizer.pretokenizer import PRE, pre_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
JSON_KEY = "tokenizer.huggingface.json"
KEY_NAMES = {"unk": "unknown", "pad": "padding"}  # Hugging Face's name -> GGUF's, where they differ
SPACE, NO_TEXT = "\u2581", "\U0010ffff"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def _get(metadata, key, kind, default=None):
    """The value of tokenizer.ggml.<key>, which must be a `kind`;

    `default` if it is missing, unless that is KeyError.
    """
    key = key if "." in key else f"tokenizer.ggml.{key}"
    value = metadata.get(key, default)
    if value is KeyError:
        raise GwqError(
            f"the key {key} is missing, so the file has no tokenizer: use a file made from a language model"
        )
    if value is not default and type(value) is not kind:
        raise GwqError(
            f"the key {key} is not of type {kind.__name__}: the file is damaged, download or export it again"
        )
    return value


def _merges(tokens, scores, types, ids):
    """Every pair of pieces that makes a normal piece, in the order in which SentencePiece would
    join them.
    """
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
        raise GwqError(
            f"{where} cannot be used ({one_line(e)}): download the model again, or update the package tokenizers"
        ) from None
    native.no_truncation()
    native.no_padding()
    return native


def _byte_level(metadata, ids):
    from tokenizers import Tokenizer as Native
    from tokenizers import decoders, models, normalizers

    pre = _get(metadata, "pre", str, KeyError)
    steps = pre_tokenizer(pre)
    normalizer, _, whole = PRE[pre]
    merges = [tuple(m.split(" ", 1)) for m in _get(metadata, "merges", list, KeyError)]
    native = Native(models.BPE(ids, merges, ignore_merges=whole))
    native.pre_tokenizer, native.decoder = steps, decoders.ByteLevel()
    if normalizer:
        native.normalizer = normalizers.NFC()
    return native


def _sentencepiece(metadata, tokens, types, scores, ids):
    from tokenizers import Tokenizer as Native
    from tokenizers import models, normalizers

    unknown = next((tokens[i] for i in np.flatnonzero(types == UNKNOWN)), None)
    native = Native(
        models.BPE(
            ids,
            _merges(tokens, scores, types, ids),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = _get(metadata, "add_space_prefix", bool, True)
    native.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(" ", SPACE)]
    )
    native.decoder = _spaces_back(prefix)
    return native


def _charsmap(array):
    """SentencePiece's table of replacements, checked, as bytes: a length, a trie (darts-clone's
    double array), strings that end in NUL.

    The library does not check its indices: bits 10 to 30 of a node lead to its children, bit 31
    marks the start of a string.
    """
    data = array.astype(np.uint8).tobytes()
    length = int.from_bytes(data[:4], "little")
    strings = data[4 + length :]
    if length % 1024 == 0 and length and strings.endswith(b"\0"):
        units = np.frombuffer(data, "<u4", length // 4, 4)
        nodes, ends = units[units < 1 << 31], units[units >= 1 << 31] & (1 << 31) - 1
        children = np.flatnonzero(units < 1 << 31) ^ (nodes >> 10 << ((nodes & 1 << 9) >> 6))
        starts = np.flatnonzero(np.frombuffer(b"\0" + strings[:-1], np.uint8) == 0)
        if (children < len(units)).all() and np.isin(ends, starts).all():
            return data
    raise GwqError(
        "the key tokenizer.ggml.precompiled_charsmap is damaged: download or export the file again"
    )


def _unigram(metadata, tokens, types, scores):
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Native

    unknown, used = np.flatnonzero(types == UNKNOWN), np.flatnonzero(types != UNUSED)
    if not len(unknown):
        raise GwqError(
            "the unigram tokenizer has no unknown token: the file is damaged, download or export it again"
        )
    rows = enumerate(zip(tokens, types.tolist(), scores.tolist(), strict=True))
    # pieces go by their place: one that must match no text gets a name that no text has, those at
    # the end are left out
    pieces = [(t if type != UNUSED else f"{NO_TEXT}{i}", score) for i, (t, type, score) in rows]
    native = Native(
        models.Unigram(
            pieces[: used[-1] + 1], int(unknown[0]), byte_fallback=bool((types == BYTE).any())
        )
    )
    charsmap, prefix = (
        _get(metadata, "precompiled_charsmap", np.ndarray),
        _get(metadata, "add_space_prefix", bool, True),
    )
    steps = [] if charsmap is None else [normalizers.Precompiled(_charsmap(charsmap))]
    if _get(metadata, "remove_extra_whitespaces", bool, False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    native.normalizer = normalizers.Sequence(steps)
    native.pre_tokenizer = pre_tokenizers.Metaspace(
        SPACE, prepend_scheme="always" if prefix else "never", split=False
    )
    native.decoder = _spaces_back(prefix)
    return native


def _spaces_back(prefix):
    from tokenizers import decoders

    strip = [decoders.Strip(" ", 1, 0)] * prefix
    return decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def build(metadata):
    """The `tokenizers.Tokenizer` of the keys. Raises GwqError."""
    text = _get(metadata, JSON_KEY, str)
    if text is not None:
        return from_json(text, f"the tokenizer in key {JSON_KEY}")
    from tokenizers import AddedToken

    family, tokens = (
        _get(metadata, "model", str, KeyError),
        _get(metadata, "tokens", list, KeyError),
    )
    types = _get(metadata, "token_type", np.ndarray, np.full(len(tokens), NORMAL))
    scores = _get(metadata, "scores", np.ndarray, np.zeros(len(tokens)))
    if not len(types) == len(tokens) == len(scores) or not np.isfinite(scores).all():
        raise GwqError(
            "tokens, scores and types of the tokenizer do not fit together: the file is damaged, download or export it again"
        )
    ids = {
        t: i
        for i, (t, kind) in enumerate(zip(tokens, types.tolist(), strict=True))
        if kind != UNUSED or t != f"[PAD{i}]"
    }
    families = {
        "gpt2": lambda: _byte_level(metadata, ids),
        "llama": lambda: _sentencepiece(metadata, tokens, types, scores, ids),
        "t5": lambda: _unigram(metadata, tokens, types, scores),
    }
    if family not in families:
        raise GwqError(
            f"tokenizer model {family!r} is not supported: use a model with a tokenizer of type {', '.join(families)}"
        )
    try:
        native = families[family]()
    except GwqError:
        raise
    except Exception as e:  # the library raises plain Exception
        raise GwqError(
            f"the tokenizer's keys do not fit together ({one_line(e)}): the file is damaged, download or export it again"
        ) from None
    control, defined = np.isin(types, (CONTROL, UNKNOWN)), types == USER_DEFINED
    native.add_special_tokens(
        [AddedToken(tokens[i], normalized=False, special=True) for i in np.flatnonzero(control)]
    )
    native.add_tokens([AddedToken(tokens[i], normalized=False) for i in np.flatnonzero(defined)])
    return native
