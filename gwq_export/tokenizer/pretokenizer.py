"""How byte-level BPE cuts a text into words: llama.cpp's names of `tokenizer.ggml.pre`.

A row of ROWS is (names, normalizer, patterns, whole, bos). Every pattern in turn cuts out its
matches and keeps what lies between them; merges never cross a cut. `whole`: a word that is in the
vocabulary is taken as it is, whatever the merges say. `bos`: a text starts with bos where the file
does not say. The patterns are those of the models' own tokenizer.json files. Names that llama.cpp
treats alike share a row; the first is the one written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gwq_export.errors import GwqError

if TYPE_CHECKING:
    import tokenizers.pre_tokenizers

# --- patterns, in the syntax of Oniguruma ---------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
DIGITS3 = r"\p{N}{1,3}"
THREE = "[0-9][0-9][0-9]"
PUNCTUATION = r"[\p{P}$+<=>^`|~]"
# name of what llama.cpp does with files that name nothing (they are older than the key)
DEFAULT = "default"
# parts of the patterns that follow GPT-4's: "'s" and the like, what may stand before a word, other
# characters (with marks or without), line breaks, white space
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LEAD = r"[^\r\n\p{L}\p{N}]?"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
MARKS = r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
BREAK = r"|\s*[\r\n]+"
SPACES = r"|\s+(?!\S)|\s+"
END = BREAK + SPACES
WORD = rf"{LEAD}\p{{L}}+|%s{REST}{END}"
# words cut where lower case meets upper case
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"{LEAD}{UPPER}*{LOWER}+%s|{LEAD}{UPPER}+{LOWER}*%s|%s"
SLASH = rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{END}"
GPT4O = CASED % (f"{SHORT}?", f"{SHORT}?", DIGITS3) + SLASH
NO_HAN = r"&&[^\p{Han}]]"
UP = UPPER[:-1] + NO_HAN
LOW = LOWER[:-1] + NO_HAN
KIMI = rf"[\p{{Han}}]+|{LEAD}{UP}*{LOW}+{SHORT}?|{LEAD}{UP}+{LOW}*{SHORT}?|{DIGITS3}{REST}{END}"
ASCII = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
SYMBOLS = rf"{ASCII}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
CJK_OLD = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[！…“”‘’—：；，\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+"
    f"|{CJK}"
)
BAILING = (
    rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|{DIGIT}"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]{SPACES}"
)
SEED = rf"{SHORT}|{LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{END}"
# spaces by the longest run of 512, 256, ... 4, then 2, 1
RUNS = "".join(rf"|\s{{{2**i}}}(?!\S)" for i in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"
# the letters with case that deepseek-llm lists, as code points
CASE_RANGES = """
    41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386
    388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba
    1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57
    1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb
    1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d
    212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3
    a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a
    ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df
    1e900-1e943
"""
CASE_LETTERS = "".join(
    "-".join(chr(int(c, 16)) for c in part.split("-")) for part in CASE_RANGES.split()
)
CASE_WORD = rf"\s?[{CASE_LETTERS}]+"
CASE_MARKS = "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"

# --- names ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A way to cut, and llama.cpp's names of it."""

    names: str  # separated by spaces
    normalizer: str | None  # None or "NFC"
    patterns: list[str]
    whole: bool
    bos: bool = False


class Pre(NamedTuple):
    """What a name stands for: the other fields of its Row."""

    normalizer: str | None
    patterns: tuple[str, ...]
    whole: bool
    bos: bool


ROWS = [
    Row(
        "gpt-2 phi-2 gigachat mellum a.x-4.0 modern-bert jina-es jina-de jina-v2-es jina-v2-de "
        "jina-v1-en jina-v2-code roberta-bpe exaone4 jais trillion granite-docling",
        None,
        [GPT2],
        False,
    ),
    Row("olmo mpt", "NFC", [GPT2], False),  # GPT-NeoX, Pythia, OLMo
    Row("smollm starcoder refact codeshell exaone minerva-7b mellum2", None, [DIGIT, GPT2], False),
    Row("command-r", "NFC", [DIGIT, GPT2], False),
    Row(
        "qwen2 stablelm2 megrez kormo f2llmv2 hunyuan solar-open",
        "NFC",
        [f"{SHORT}|{WORD}" % DIGIT],
        False,
    ),
    Row("deepseek-r1-qwen grok-2", None, [f"{SHORT}|{WORD}" % DIGIT], False),
    Row("qwen35", "NFC", [rf"{SHORT}|{LEAD}[\p{{L}}\p{{M}}]+|{DIGIT}{MARKS}{END}"], False),
    Row(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        None,
        [f"{SHORT}|{WORD}" % DIGITS3],
        True,
        bos=True,
    ),
    Row("dbrx smaug-bpe glm4 chatglm-bpe", None, [f"{SHORT}|{WORD}" % DIGITS3], False),
    Row("minicpm5", None, [DIGITS3, f"{SHORT}|{WORD}" % DIGITS], True),
    Row("jais-2", None, [rf"{SHORT}|{LEAD}\p{{L}}+|{DIGITS3}{REST}{BREAK}{RUNS}"], False),
    Row("tekken", None, [CASED % ("", "", DIGIT) + SLASH], True, bos=True),
    Row("gpt-4o llama4 kanana2 minimax-m2", None, [GPT4O], False),
    Row("tiny_aya cohere2moe", None, [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O], False),
    Row("kimi-k2", None, [KIMI], False),
    Row("deepseek-llm", None, [r"[\r\n]", CASE_WORD, CASE_MARKS, r"\s+$", CJK_OLD, DIGITS], False),
    Row("deepseek-coder", None, [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_OLD, DIGIT], False),
    Row(
        "deepseek-v3 hunyuan-dense joyai-llm",
        None,
        [DIGITS3, CJK, rf"{SYMBOLS}[\r\n]*{END}"],
        False,
    ),
    Row("youtu", None, [YOUTU, CASED % (f"{SHORT}?", f"{SHORT}?", DIGIT) + SLASH], True),
    Row("falcon", None, [f"{PUNCTUATION}+", GPT2, DIGITS, THREE], False),
    Row(DEFAULT, None, [r"[\p{P}$+<=>^|~]+", GPT2, DIGITS, THREE], False),
    Row("bloom gpt3-finnish poro-chat", None, [BLOOM], False),
    Row("viking", None, [BLOOM, DIGIT], False),
    Row("seed-coder", None, [SEED], False),
    Row("bailingmoe bailingmoe2 llada-moe", None, [BAILING], False),
]
PRE: dict[str, Pre] = {
    name: Pre(row.normalizer, tuple(row.patterns), row.whole, row.bos)
    for row in ROWS
    for name in row.names.split()
}


def pre_tokenizer(name: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The `tokenizers` pre-tokenizer of llama.cpp's name, ending in GPT-2's alphabet of bytes.

    Raises GwqError.
    """
    from tokenizers import Regex, pre_tokenizers

    if name not in PRE:
        raise GwqError(
            f"the file's pre-tokenizer {name!r} is unknown: export the model's folder with "
            "gwq-export, which stores more, or the file with --tokenizer-pre NAME"
        )
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE[name].patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def parts(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a (possibly nested) Sequence of tokenizer.json; [] for null.

    key: under which a Sequence holds its members.
    """
    if not node:
        return []
    if node["type"] == "Sequence":
        return [part for member in node[key] for part in parts(member, key)]
    return [node]


def _patterns(step: dict[str, Any]) -> list[str] | None:
    """The patterns of one pre-tokenizer of tokenizer.json, None where no pattern says it all."""
    kind = step["type"]
    regex = step.get("pattern", {}).get("Regex")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [DIGIT if step.get("individual_digits") else DIGITS]
    if kind == "Punctuation":
        behavior = step.get("behavior", "Isolated")
        return {"Isolated": [PUNCTUATION], "Contiguous": [f"{PUNCTUATION}+"]}.get(behavior)
    if kind == "Split" and regex and step.get("behavior") == "Isolated" and not step.get("invert"):
        return [regex.replace("\r", r"\r").replace("\n", r"\n")]
    return None


def name_of(spec: dict[str, Any]) -> str | None:
    """llama.cpp's name of the structure of a byte-level tokenizer.json, or None.

    llama.cpp neither normalizes nor knows `whole` but by name, so a row with the same patterns will
    do where none is equal.
    """
    normalizer = "+".join(n["type"] for n in parts(spec.get("normalizer"), "normalizers")) or None
    patterns: list[str] = []
    for step in parts(spec["pre_tokenizer"], "pretokenizers"):
        of_step = _patterns(step)
        if of_step is None:
            return None
        patterns += of_step
    if normalizer not in (None, "NFC"):
        return None
    whole = bool(spec["model"].get("ignore_merges"))
    names = [name for name, pre in PRE.items() if pre.patterns == tuple(patterns)]
    return min(
        names,
        key=lambda name: (PRE[name].whole != whole, PRE[name].normalizer != normalizer),
        default=None,
    )
