"""The tokenizer of a Hugging Face folder as the ordinary GGUF keys.

When a tokenizer rebuilt from the keys does not encode like the original, the original JSON goes
into the file too.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gwq_export.errors import GwqError, one_line
from gwq_export.files import read_optional_json
from gwq_export.tokenizer.build import (
    BYTE,
    BYTE_TOKEN,
    CONTROL,
    JSON_KEY,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    build,
    from_json,
)
from gwq_export.tokenizer.hf_folder import PROBE, keep_within, load_tokenizer
from gwq_export.tokenizer.pretokenizer import name_of, parts
from gwq_export.tokenizer.special_from_hf import chat_templates, special_keys

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger("gwq_export")
UNKNOWN_PRE = "unknown"  # llama.cpp refuses this name of a pre-tokenizer, as it should


def to_metadata(
    folder: str | os.PathLike[str], vocab_size: int, pre: str | None = None
) -> dict[str, Any]:
    """The GGUF keys {key: value} of the tokenizer in a Hugging Face folder, as transformers has it.

    vocab_size: rows of the embedding; the ids that the tokenizer lacks become unused tokens. pre:
    llama.cpp's name of the pre-tokenizer, for a byte-level tokenizer with a structure that is not
    in PRE. Raises GwqError.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise GwqError(
            f"{folder} has no tokenizer.json: "
            "save the model's fast tokenizer there with save_pretrained"
        )
    config = read_optional_json(folder / "tokenizer_config.json")
    try:
        as_saved = from_json(path.read_text(encoding="utf-8"), path)
        loaded = load_tokenizer(folder)
        spec = loaded.spec
        keep_within(spec, vocab_size, path)
        text = json.dumps(spec, ensure_ascii=False)
        original = from_json(text, path)
        _say_other(path, loaded.kind, as_saved, original)
        keys = _tokenizer_keys(path, spec, original, vocab_size, pre)
        keys |= special_keys(folder, loaded, original, vocab_size)
        keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
        keys |= chat_templates(folder, config)
        return keys | _json_key(path, text, spec, original, keys)
    except GwqError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as e:
        raise GwqError(
            f"{path} or a file beside it is not what transformers writes "
            f"({one_line(repr(e))}): download the model again"
        ) from None


def token_texts(folder: str | os.PathLike[str], vocab_size: int) -> list[str]:
    """The tokens of a folder with a tokenizer.json as `to_metadata` writes them, by id.

    Raises GwqError.
    """
    path = Path(folder) / "tokenizer.json"
    spec = load_tokenizer(Path(folder)).spec
    keep_within(spec, vocab_size, path)
    return _tokens(from_json(json.dumps(spec), path), vocab_size)


def _tokens(original: tokenizers.Tokenizer, vocab_size: int) -> list[str]:
    """The tokens by id; ids without one have a name of their own."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    for token, id in original.get_vocab(with_added_tokens=True).items():
        tokens[id] = token
    return tokens


def _say_other(
    path: Path, kind: str, as_saved: tokenizers.Tokenizer, original: tokenizers.Tokenizer
) -> None:
    """Warn when transformers' class cuts texts in another way than the file itself says."""
    probe = PROBE.read_bytes().decode()
    ids, theirs = (t.encode(probe, add_special_tokens=False).ids for t in (as_saved, original))
    if ids != theirs:
        log.warning(
            "transformers reads %s as a %s, which cuts texts in another way than the file says: "
            "the export follows transformers",
            path,
            kind,
        )


# --- tokens and how text is cut into them ---------------------------------------------------------


def _tokenizer_keys(
    path: Path,
    spec: dict[str, Any],
    original: tokenizers.Tokenizer,
    vocab_size: int,
    pre: str | None,
) -> dict[str, Any]:
    """The keys, without their prefix, of tokens and of how text is cut into them."""
    model = spec["model"]
    steps = parts(spec.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind not in ("BPE", "Unigram") or (
        kind == "BPE" and not (byte_level or model.get("byte_fallback"))
    ):
        raise GwqError(
            f"{path} is a {kind} tokenizer: "
            "only byte-level BPE, BPE with byte fallback and unigram are supported"
        )
    ids = original.get_vocab(with_added_tokens=True)
    tokens = _tokens(original, vocab_size)
    types = np.full(vocab_size, UNUSED, np.int32)
    for token, id in ids.items():
        types[id] = BYTE if not byte_level and BYTE_TOKEN.fullmatch(token) else NORMAL
    for added in spec.get("added_tokens") or []:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if kind == "Unigram":
        keys = _unigram(original, spec, tokens, types)
    elif byte_level:
        keys = _byte_level(spec, pre)
    else:
        keys = _sentencepiece(original, spec, tokens, types)
    return keys | {"tokens": tokens, "token_type": types}


def _byte_level(spec: dict[str, Any], pre: str | None) -> dict[str, Any]:
    return {
        "model": "gpt2",
        "pre": pre or name_of(spec) or UNKNOWN_PRE,
        "merges": [" ".join(m) for m in _merges(spec)],
    }


def _sentencepiece(
    original: tokenizers.Tokenizer, spec: dict[str, Any], tokens: list[str], types: np.ndarray
) -> dict[str, Any]:
    """Also marks the unknown token in `types`."""
    unknown = spec["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return {
        "model": "llama",
        "pre": "default",
        "scores": _scores(tokens, _merges(spec)),
        "add_space_prefix": _prefixed(original),
    }


def _unigram(
    original: tokenizers.Tokenizer, spec: dict[str, Any], tokens: list[str], types: np.ndarray
) -> dict[str, Any]:
    """Also marks the unknown token in `types`."""
    types[spec["model"]["unk_id"]] = UNKNOWN
    scores = np.zeros(len(tokens), np.float32)
    scores[: len(spec["model"]["vocab"])] = [score for _, score in spec["model"]["vocab"]]
    one, two = (original.encode(text, add_special_tokens=False).ids for text in ("a b", "a  b"))
    keys = {
        "model": "t5",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": _prefixed(original),
        "remove_extra_whitespaces": one == two,
    }
    for step in parts(spec.get("normalizer"), "normalizers"):
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            keys["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return keys


def _merges(spec: dict[str, Any]) -> list[Sequence[str]]:
    return [m.split(" ", 1) if isinstance(m, str) else m for m in spec["model"]["merges"]]


def _scores(tokens: Iterable[str], merges: Iterable[Sequence[str]]) -> np.ndarray:
    """float32 (n,) whose order is that of the merges.

    SentencePiece joins the pair with the highest score first.
    """
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return np.array([-rank.get(token, len(rank)) for token in tokens], np.float32)


def _prefixed(original: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer puts a space before a text."""
    return original.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)


# --- the original itself --------------------------------------------------------------------------


def _json_key(
    path: Path,
    text: str,
    spec: dict[str, Any],
    original: tokenizers.Tokenizer,
    keys: dict[str, Any],
) -> dict[str, str]:
    """The key of the original JSON, with a warning, where the other keys cannot express it."""
    if _alike(keys, original, [token["content"] for token in spec.get("added_tokens") or []]):
        return {}
    why = (
        "the GGUF keys cannot say all that it does: other programs may cut texts into other tokens"
    )
    if keys["tokenizer.ggml.pre"] == UNKNOWN_PRE:
        shown = json.dumps([spec.get("normalizer"), spec["pre_tokenizer"]], ensure_ascii=False)
        why = (
            f"its pre-tokenizer has no known name ({shown:.300}): "
            "other programs will refuse the file, unless you give llama.cpp's name for it "
            "with --tokenizer-pre NAME"
        )
    log.warning(
        "%s goes into the file as a whole (%.1f MB), which makes it exact here; %s",
        path,
        len(text.encode()) / 1e6,
        why,
    )
    return {JSON_KEY: text}


def _alike(
    keys: dict[str, Any], original: tokenizers.Tokenizer, added_tokens: Sequence[str]
) -> bool:
    """Whether the keys give the original's ids and its text back.

    Compared for PROBE, for added tokens amid text and for every token's own text.
    """
    try:
        rebuilt = build(keys)
    except GwqError:
        return False
    probe = PROBE.read_bytes().decode()  # as it is, with its carriage returns
    singles = [[id] for id in range(len(keys["tokenizer.ggml.tokens"]))]
    pieces = original.decode_batch(singles, skip_special_tokens=False)
    if rebuilt.decode_batch(singles, skip_special_tokens=False) != pieces:
        return False
    texts = [
        probe,
        *probe.splitlines(keepends=True),
        *probe.split(" "),
        *(f"{a}b {a} c{a}{a}\n{a}" for a in added_tokens),
        *pieces,
    ]
    expected, ids = (
        [encoding.ids for encoding in native.encode_batch(texts, add_special_tokens=False)]
        for native in (original, rebuilt)
    )
    return ids == expected and original.decode_batch(ids) == rebuilt.decode_batch(ids)
