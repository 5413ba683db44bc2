"""From the keys of a GGUF file to a `tokenizers.Tokenizer`.

Three families: "llama" (SentencePiece-style BPE with byte fallback; pieces have scores), "t5"
(SentencePiece's unigram model) and "gpt2" (byte-level BPE; merges in order, and a pre-tokenizer by
llama.cpp's name). A file whose keys cannot express its tokenizer exactly holds the original JSON
too (`tokenizer.huggingface.json`), which is used instead of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gwq_export import limits
from gwq_export.errors import AGAIN, GwqError, translated
from gwq_export.limits import check_limit
from gwq_export.tokenizer.bounds import check_charsmap, check_steps, check_tokens
from gwq_export.tokenizer.pretokenizer import DEFAULT, PRE, pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native
    from tokenizers.decoders import Decoder
    from tokenizers.normalizers import Normalizer

log = logging.getLogger("gwq_export")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
JSON_KEY = "tokenizer.huggingface.json"
KEY_NAMES = {"unk": "unknown", "pad": "padding"}  # Hugging Face's name -> GGUF's, where they differ
SPACE = "\u2581"  # stands for a space in SentencePiece's pieces
NO_TEXT = "\U0010ffff"  # starts the name of a piece that is to match no text
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

# --- keys -----------------------------------------------------------------------------------------


def optional(metadata: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of tokenizer.ggml.<key> (of `key` itself if it has a dot), or `default`.

    Raises GwqError when it is not a `kind`.
    """
    key = _full(key)
    value = metadata.get(key, default)
    if value is not default and type(value) is not kind:
        raise GwqError(
            f"the key {key} is not of type {kind.__name__}: "
            "the file is damaged, download or export it again"
        )
    return value


def required(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    """The value of a key, as `optional` reads it. Raises GwqError also when it is missing."""
    if _full(key) not in metadata:
        raise GwqError(
            f"the key {_full(key)} is missing, so the file has no tokenizer: "
            "use a file made from a language model"
        )
    return optional(metadata, key, kind)


def _full(key: str) -> str:
    return key if "." in key else f"tokenizer.ggml.{key}"


def vocabulary(metadata: Mapping[str, Any]) -> list[str | None]:
    """The token of every id; None where there is only padding, which never ends the list.

    Raises GwqError for a file without tokens.
    """
    tokens = required(metadata, "tokens", list)
    types = optional(metadata, "token_type", np.ndarray, np.full(len(tokens), NORMAL))
    found = [
        None if type == UNUSED and token == f"[PAD{i}]" else token
        for i, (token, type) in enumerate(zip(tokens, types.tolist(), strict=False))
    ]
    while found and found[-1] is None:
        found.pop()
    return found


# --- the three families ---------------------------------------------------------------------------


def _byte_level(metadata: Mapping[str, Any], ids: dict[str, int]) -> Native:
    from tokenizers import Tokenizer as Native
    from tokenizers import decoders, models, normalizers

    pre = optional(metadata, "pre", str) or DEFAULT
    if pre == DEFAULT:
        log.warning(
            "the file does not say how its tokenizer cuts text into words: it is cut as llama.cpp"
            " does with such files, which is seldom what the model has learned from; if you know"
            " llama.cpp's name for it, export the file with --tokenizer-pre NAME"
        )
    steps = pre_tokenizer(pre)
    merges = [tuple(m.split(" ", 1)) for m in required(metadata, "merges", list)]
    native = Native(models.BPE(ids, merges, ignore_merges=PRE[pre].whole))
    native.pre_tokenizer = steps
    native.decoder = decoders.ByteLevel()
    if PRE[pre].normalizer:
        native.normalizer = normalizers.NFC()
    return native


def _sentencepiece(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: np.ndarray,
    scores: np.ndarray,
    ids: dict[str, int],
) -> Native:
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
    prefix = optional(metadata, "add_space_prefix", bool, True)
    steps: list[Normalizer] = [normalizers.Replace(" ", SPACE)]
    if prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
    native.normalizer = normalizers.Sequence(steps)
    native.decoder = _spaces_back(prefix)
    return native


def _merges(
    tokens: Sequence[str], scores: np.ndarray, types: np.ndarray, ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a normal piece, in the order in which SentencePiece joins.

    That is by the score of the piece they make, highest first.
    """
    merges: list[tuple[float, int, int]] = []
    work = text = 0
    for token, score, type in zip(tokens, scores.tolist(), types.tolist(), strict=True):
        if type == NORMAL and len(token) > 1:
            work += len(token) ** 2
            if work > limits.PIECES_WORK or text > limits.MERGES_TEXT:
                raise GwqError(
                    f"the tokens of the vocabulary have too many merges to be looked for: {AGAIN}"
                )
            pairs = [
                (-score, left, right)
                for i in range(1, len(token))
                if (left := ids.get(token[:i])) is not None
                and (right := ids.get(token[i:])) is not None
            ]
            pairs.sort()
            merges += pairs
            text += len(pairs) * len(token)
    check_limit("merges of the vocabulary", len(merges), limits.MERGES)
    merges.sort(key=lambda merge: merge[0])
    return [(tokens[left], tokens[right]) for _, left, right in merges]


def _unigram(
    metadata: Mapping[str, Any], tokens: list[str], types: np.ndarray, scores: np.ndarray
) -> Native:
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Native

    unknown = np.flatnonzero(types == UNKNOWN)
    used = np.flatnonzero(types != UNUSED)
    if not len(unknown):
        raise GwqError(
            "the unigram tokenizer has no unknown token: "
            "the file is damaged, download or export it again"
        )
    rows = enumerate(zip(tokens, types.tolist(), scores.tolist(), strict=True))
    # the id of a piece is its place: unused ones at the end are left out, others get a name that no
    # text has, as do empty ones, which would match anywhere
    pieces = [
        (token if token and type != UNUSED else f"{NO_TEXT}{i}", score)
        for i, (token, type, score) in rows
    ]
    byte_fallback = bool((types == BYTE).any())
    native = Native(
        models.Unigram(pieces[: used[-1] + 1], int(unknown[0]), byte_fallback=byte_fallback)
    )
    charsmap = optional(metadata, "precompiled_charsmap", np.ndarray)
    prefix = optional(metadata, "add_space_prefix", bool, True)
    steps: list[Normalizer] = []
    if charsmap is not None:
        data = charsmap.astype(np.uint8).tobytes()
        check_charsmap(data)
        steps.append(normalizers.Precompiled(data))
    if optional(metadata, "remove_extra_whitespaces", bool, False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    native.normalizer = normalizers.Sequence(steps)
    native.pre_tokenizer = pre_tokenizers.Metaspace(
        SPACE, prepend_scheme="always" if prefix else "never", split=False
    )
    native.decoder = _spaces_back(prefix)
    return native


def _spaces_back(prefix: bool) -> Decoder:
    """SPACE becomes a space again, bytes become text, and an added first space goes."""
    from tokenizers import decoders

    steps: list[Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


# --- any file -------------------------------------------------------------------------------------


def from_json(text: str, where: object) -> Native:
    """The tokenizer of a tokenizer.json. where: its name in the message. Raises GwqError."""
    from tokenizers import Tokenizer as Native

    with translated(
        f"{where} cannot be used ({{}}): download the model again, or update the package tokenizers"
    ):
        native = Native.from_str(text)
        native.no_truncation()
        native.no_padding()
    return native


def _embedded(text: str, tokens: Sequence[str]) -> Native:
    """The tokenizer of the tokenizer.json in a file, within the bounds of models.

    tokens: of the file's keys. Raises GwqError.
    """
    where = f"the tokenizer in key {JSON_KEY}"
    check_limit(f"characters of {where}", len(text), limits.TOKENIZER_JSON)
    check_tokens(tokens)
    native = from_json(text, where)
    # what it adds to a text was never asked for, and may be without end
    native.post_processor = None
    check_steps(native)
    return native


def build(metadata: Mapping[str, Any]) -> Native:
    """The `tokenizers.Tokenizer` of a file's keys, within the bounds of models. Raises GwqError."""
    text = optional(metadata, JSON_KEY, str)
    if text is not None:
        return _embedded(text, required(metadata, "tokens", list))
    from tokenizers import AddedToken

    family = required(metadata, "model", str)
    tokens = required(metadata, "tokens", list)
    check_tokens(tokens, optional(metadata, "merges", list, []))
    types = optional(metadata, "token_type", np.ndarray, np.full(len(tokens), NORMAL))
    scores = optional(metadata, "scores", np.ndarray, np.zeros(len(tokens)))
    if not len(types) == len(tokens) == len(scores) or not np.isfinite(scores).all():
        raise GwqError(
            "tokens, scores and types of the tokenizer do not fit together: "
            "the file is damaged, download or export it again"
        )
    ids = {token: i for i, token in enumerate(vocabulary(metadata)) if token is not None}
    families = {
        "gpt2": lambda: _byte_level(metadata, ids),
        "llama": lambda: _sentencepiece(metadata, tokens, types, scores, ids),
        "t5": lambda: _unigram(metadata, tokens, types, scores),
    }
    if family not in families:
        raise GwqError(
            f"tokenizer model {family!r} is not supported: "
            f"use a model with a tokenizer of type {', '.join(families)}"
        )
    control = np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN)))
    defined = np.flatnonzero(types == USER_DEFINED)
    with translated(f"the tokenizer's keys do not fit together ({{}}): {AGAIN}"):
        native = families[family]()
        native.add_special_tokens(
            [AddedToken(tokens[i], normalized=False, special=True) for i in control]
        )
        native.add_tokens([AddedToken(tokens[i], normalized=False) for i in defined])
    check_steps(native)
    return native
