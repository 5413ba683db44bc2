"""What a file's tokenizer may ask of the `tokenizers` library, which takes everything.

Counts and lengths are checked before the library sees them. What it makes of an embedded
tokenizer.json is read back, because the steps around its vocabulary can make a text grow with each
of them, or search it for as long as the universe lasts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gwq_export import limits
from gwq_export.errors import AGAIN, GwqError, translated
from gwq_export.limits import Deadline, check_limit
from gwq_export.tokenizer.patterns import repeats_repeats
from gwq_export.tokenizer.pretokenizer import parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native

MODELS = ("BPE", "Unigram")
# where a step holds the steps that it consists of
MEMBERS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "decoder": "decoders",
}
# letters, digits, spaces and signs, alone and in runs; as long as a prompt
PROBE = (
    "The city's 1,234,567 people: naïve \u00e9\u0301 Ünïcode, 你好世界, привет!\r\n"
    "\n\tx = [1, 2];  \n" + "".join(c * 48 + " " for c in "aZ0 -=.\n\u00e9\u4e16")
)


def check_tokens(tokens: Sequence[str], merges: Sequence[str] = ()) -> None:
    """Raise GwqError for a vocabulary that no model has.

    merges: pairs of pieces as the file has them; the library looks their pieces up in the tokens.
    """
    check_limit("tokens of the vocabulary", len(tokens), limits.TOKENS)
    check_limit("merges of the vocabulary", len(merges), limits.MERGES)
    check_limit("characters of a token", max(map(len, tokens), default=0), limits.PIECE)


def check_steps(native: Native) -> None:
    """Raise GwqError unless text stays of a length, and is searched in a time, that models need.

    native: what the library made of a tokenizer.json.
    """
    kind = type(native.model).__name__
    if kind not in MODELS:
        raise GwqError(f"its tokenizer is of type {kind}, and only {', '.join(MODELS)} are read")
    if kind == "Unigram" and native.token_to_id("") is not None:
        raise GwqError(f"a token of its vocabulary is empty: {AGAIN}")
    for name, members in MEMBERS.items():
        part = getattr(native, name)
        state = json.loads(part.__getstate__()) if part is not None else None
        steps = parts(state, members)
        check_limit(f"{members} of the tokenizer", len(steps), limits.STEPS)
        growth = 1.0
        for step in steps:
            _check_pattern(step)
            growth *= _growth(step)
        check_limit(
            f"times as long a text gets by the {members} of the tokenizer",
            round(growth),
            limits.GROWTH,
        )


def _check_pattern(step: Mapping[str, Any]) -> None:
    """Raise GwqError for a regular expression that may be searched for without end."""
    pattern = (step.get("pattern") or {}).get("Regex")
    if pattern is None:
        return
    check_limit("characters of a pattern of the tokenizer", len(pattern), limits.PATTERN)
    if repeats_repeats(pattern):
        raise GwqError(
            f"its tokenizer repeats what is repeated already ({pattern:.60}), "
            f"for which a text may be searched without end: {AGAIN}"
        )


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text can get by one normalizer or decoder."""
    if step["type"] == "Precompiled":
        strings = check_charsmap(base64.b64decode(step["precompiled_charsmap"]))
        return max(1, max(map(len, strings.split(b"\0"))))
    if step["type"] == "Replace":
        content = step["content"]
        text = (step.get("pattern") or {}).get("String")
        # a pattern may match between any two characters
        return max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
    longest = max((len(value) for value in step.values() if isinstance(value, str)), default=0)
    check_limit("characters of a step of the tokenizer", longest, limits.PIECE)
    return 1.0


def check_charsmap(data: bytes) -> bytes:
    """The strings of SentencePiece's table of replacements, once its indices are checked.

    It is the length of a trie, the trie (darts-clone's double array of 32-bit units), and strings
    that end in NUL. The library does not check its indices: bits 10 to 30 of a node lead to its
    children, bit 31 marks the start of a string. Raises GwqError.
    """
    length = int.from_bytes(data[:4], "little")
    strings = data[4 + length :]
    if length % 1024 == 0 and length and strings.endswith(b"\0"):
        units = np.frombuffer(data, "<u4", length // 4, 4)
        is_node = units < 1 << 31
        nodes = units[is_node]
        offsets = nodes >> 10 << ((nodes & 1 << 9) >> 6)  # bit 9: counted in units of 256
        children = np.flatnonzero(is_node) ^ offsets
        ends = units[~is_node] & (1 << 31) - 1
        starts = np.flatnonzero(np.frombuffer(b"\0" + strings[:-1], np.uint8) == 0)
        if (children < len(units)).all() and np.isin(ends, starts).all():
            return strings
    raise GwqError(
        "the key tokenizer.ggml.precompiled_charsmap is damaged: download or export the file again"
    )


def check_probe(native: Native) -> None:
    """Encode and decode PROBE, so that what the library makes of any text is known at once.

    Raises GwqError for what it raises, and when it takes long.
    """
    deadline = Deadline(limits.PROBE_SECONDS)
    with translated(f"the file's tokenizer fails on a plain text ({{}}): {AGAIN}"):
        ids = native.encode(PROBE, add_special_tokens=False).ids
        native.decode(ids, skip_special_tokens=False)
        for id in ids[:32]:
            native.decode([id])
    if deadline.passed:
        raise GwqError(
            f"the file's tokenizer takes more than {limits.PROBE_SECONDS:.0f} seconds for "
            f"{len(PROBE)} characters: {AGAIN}"
        )
