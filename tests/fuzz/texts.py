"""Texts that a file may hold, made worse: names, tokenizer.json, chat templates."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD = [b"", b" ", b"\0", b"\n", b"\xff\xfe", "▁".encode(), "Ġ".encode(), b"<0x41>", b"<|im_end|>"]
ODD += [b"a" * 70, b"a" * 5000, "\U0010ffff".encode(), b"\xed\xa0\x80", b"a b c", b"e\xcc\x81"]

# what stands in a template, and what is worth trying there
PIECES = [
    "{% for m in messages %}",
    "{% for i in range(99999) %}",
    "{% for i in range(9) %}",
    "{% endfor %}",
    "{% if m %}",
    "{% elif x %}",
    "{% else %}",
    "{% endif %}",
    "{{ m.content }}",
    "{{ m['role'] }}",
    "{{ messages }}",
    "{{ 'a' * 99999999 }}",
    "{{ x * 3 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 1 / 0 }}",
    "{{ x.y.z }}",
    "{{ ''.__class__ }}",
    "{{ self }}",
    "{{ loop.index }}",
    "{{ bos_token }}",
    "{% set x = x + x %}",
    "{% set x = 'ab' %}",
    "{% set x = [1] %}",
    "{% set x = x + [x] %}",
    "{% set n = namespace(a='b') %}",
    "{% set n.a = n.a + n.a %}",
    "{% macro f(a) %}{{ f(a) }}{% endmacro %}",
    "{{ f(1) }}",
    "{{ raise_exception('no') }}",
    "{{ m | tojson }}",
    "{{ x | join(x) }}",
    "{{ x | upper | trim | length }}",
    "{{ x | replace('a', 'aa') }}",
    "{{ x | batch(3) | list }}",
    "{{ x | indent(9999999) }}",
    "{{ x.format(1) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '{:>99999999}'.format(1) }}",
    "{{ strftime_now('%Y') }}",
    "{{ x[:3] }}",
    "{{ x[::-1] }}",
    "{{ lipsum(9999) }}",
    "{{ cycler('a', 'b').next() }}",
    "{{ dict(a=1) | dictsort }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block b %}{% endblock %}",
    "{% generation %}",
    "{% break %}",
    "{% continue %}",
    "{% raw %}",
    "{# ",
    "{{",
    "}}",
    "{%-",
    "\0",
    "\ud7ff",
]

TOKEN = {"id": 9, "content": "a", "single_word": False, "lstrip": False, "rstrip": False}
TOKEN |= {"normalized": True, "special": True}
# steps of tokenizers, of any kind
STEPS: list[Any] = [
    None,
    {"type": "Lowercase"},
    {"type": "NFKC"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "(a|b)*c"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "(?<=a)\\p{L}{1,99}"}, "content": "x"},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Strip", "content": " ", "start": 3, "stop": 9},
    {"type": "Sequence", "normalizers": []},
    {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Split", "pattern": {"Regex": "\\s+|\\S"}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "FixedLength", "length": 0},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "a"},
    {"type": "UnicodeScripts"},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2**31, 2**32, 2**64, 1e308, "", "a", " ", "▁", []]
VALUES += [{}, [[]], ["a", "b"], "a" * 5000, "a+" * 200, "\\p{L}+", "[", {"String": "a"}, TOKEN]
STEP_PLACES = ("normalizer", "pre_tokenizer", "decoder", "post_processor")


def bad_text(text: bytes, rng: random.Random) -> bytes:
    """Another text in the place of one."""
    kind = rng.randrange(5)
    if kind == 0 or not text:
        return rng.choice(ODD)
    at = rng.randrange(len(text))
    if kind == 1:
        return text[:at] + rng.choice(ODD) + text[at:]
    if kind == 2:
        return text[:at]
    if kind == 3:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    return text + text


def bad_template(text: bytes, rng: random.Random) -> bytes:
    """A chat template with pieces of others in it, without some of its own, or doubled."""
    parts = text.decode(errors="replace").replace("{", "\1{").split("\1")
    for _ in range(rng.choice([1, 1, 2, 4, 9])):
        at = rng.randrange(len(parts) + 1)
        kind = rng.randrange(5)
        if kind < 3:
            parts[at:at] = [rng.choice(PIECES)] * rng.choice([1, 1, 1, 3, 40])
        elif kind == 3:
            del parts[at : at + rng.choice([1, 1, 3])]
        else:
            parts[at:at] = parts[rng.randrange(len(parts) + 1) :][:5]
    return "".join(parts).encode(errors="replace")


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, index) of what lies in a JSON value; of long lists the first and the last."""
    if isinstance(value, dict):
        places: list[Any] = list(value)
    else:
        places = list(range(len(value)))
    if len(places) > 40:
        places = places[:3] + places[-3:]
    for place in places:
        found.append((value, place))
        if isinstance(value[place], (dict, list)):
            _nodes(value[place], found)
    return found


def bad_json(text: bytes, rng: random.Random) -> bytes:
    """A tokenizer.json with other steps, values, tokens; or with bytes changed."""
    try:
        spec = json.loads(text)
    except ValueError:
        return bad_text(text, rng)
    if not isinstance(spec, dict) or rng.random() < 0.05:
        return bad_text(text, rng)
    for _ in range(rng.choice([1, 1, 2, 4])):
        kind = rng.randrange(6)
        if kind < 2:
            place = rng.choice(STEP_PLACES)
            steps = [copy.deepcopy(rng.choice(STEPS)) for _ in range(rng.choice([1, 1, 2, 5, 70]))]
            names = {"normalizer": "normalizers", "decoder": "decoders"}
            many = {"type": "Sequence", names.get(place, "pretokenizers"): steps}
            spec[place] = steps[0] if len(steps) == 1 else many
        elif kind == 2:
            tokens = spec.get("added_tokens")
            if isinstance(tokens, list):
                change = {rng.choice(list(TOKEN)): rng.choice(VALUES)}
                tokens.insert(rng.randrange(len(tokens) + 1), TOKEN | change)
        elif places := _nodes(spec, []):
            container, at = rng.choice(places)
            if kind == 3 and isinstance(container, list):
                container.insert(at, copy.deepcopy(container[at]))
            elif kind == 4:
                del container[at]
            else:
                container[at] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(spec).encode()
