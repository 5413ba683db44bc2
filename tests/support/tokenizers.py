"""Small Hugging Face tokenizers of every family, and how ours is compared with them."""

import json
import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gwq_export import GwqError
from gwq_export.tokenizer.from_hf import PROBE as PROBE_FILE
from gwq_export.tokenizer.pretokenizer import PRE

PROBE = PROBE_FILE.read_bytes().decode()
CORPUS = [
    "the quick brown fox can't jump over the lazy dog's back; it's 1234 times they'll try",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n",
    "Grüße aus München, привет мир, 你好世界",
] * 30
NASTY = [
    "",
    " ",
    "   ",
    "\n",
    "\r\n\r\n  \t x",
    " a",
    "a ",
    "a  b   c    d",
    "▁a ▁ ▁▁b",
    "<s>",
    "</s> <unk>x<s>y",
    "<0x41><0xFF>",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>",
    "[PAD300][PAD3]",
    "\u0000\u0001\x7f\u200b\ufeff\ufffd",
    "e\u0301 é A\u030a Å ﬁ",
    "👩‍👩‍👧‍👦🏽🇩🇪𝔘𐍈",
    "你好，世界。こんにちは　안녕하세요 नमस्ते العربية ١٢٣",
    "1234567890 12,345.678e-9 ½²Ⅷ",
    "I'LL don't 'S ''re x'Ve",
    "aA" * 500,
    " " * 500 + "x",
]


def fragments(tok, ids, special=False):
    stream = tok.stream(special)
    return [stream.feed(i) for i in ids] + [stream.flush()]


def same(tok, native, texts):
    """ids, text and streamed text equal the original's."""
    for text in texts:
        ids = native.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, bos=False) == ids, text
        for special in (False, True):
            expected = native.decode(ids, skip_special_tokens=not special)
            assert tok.decode(ids, special) == expected, text
            if len(ids) < 2000:
                assert "".join(fragments(tok, ids, special)) == expected, text


def random_ids(tok, seed, n=80):
    """Ids of any kind, bytes and unused ones among them; runs of single bytes are frequent."""
    rng = random.Random(seed)
    return [
        rng.randrange(tok.vocab_size if rng.random() < 0.5 else min(tok.vocab_size, 262))
        for _ in range(n)
    ]


def byte_level(pre=None, normalizer=None, added=(), **model):
    """A byte-level BPE trained on CORPUS, with <|endoftext|> and <|im_end|> as special tokens."""
    native = tokenizers.Tokenizer(models.BPE(**model))
    native.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    if normalizer:
        native.normalizer = normalizer
    special = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    native.train_from_iterator(CORPUS, trainer)
    native.add_tokens(list(added))
    return native


def sentencepiece(prefix=True, pre=None, added=()):
    """A BPE with byte fallback over ▁-words, ids as Llama has them: <unk> <s> </s> bytes pieces."""
    base = tokenizers.Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(base.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *learned["vocab"]]
    native = tokenizers.Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(pieces)},
            [tuple(m) for m in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = normalizers.Replace(" ", "▁")
    if pre:
        native.pre_tokenizer = pre
    else:
        native.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), space] if prefix else [space]
        )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    native.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    native.add_special_tokens(["<unk>", "<s>", "</s>"])
    native.add_tokens(list(added))
    native.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return native


def charsmap():
    """SentencePiece's table that makes a space of every tab and line feed.

    It is a length, darts-clone's double array, and strings.
    """
    units = np.zeros(512, "<u4")
    units[0] = 0x100 << 10
    for byte in b"\t\n":
        units[0x100 ^ byte], units[0x140 ^ byte] = 0x40 << 10 | 1 << 8 | byte, 1 << 31
    return len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + b" \0"


def unigram(merge=True, prefix="always", bytes=False, added=()):
    """A SentencePiece unigram as T5's fast tokenizer has it:

    <pad> </s> <unk>, then pieces and scores; bytes: with byte fallback.
    """
    native = tokenizers.Tokenizer(models.Unigram())
    space = normalizers.Precompiled(charsmap())
    native.normalizer = normalizers.Sequence(
        [space, normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        if merge
        else [space]
    )
    native.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    special = ["<pad>", "</s>", "<unk>"]
    native.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    if bytes:
        spec = json.loads(native.to_str())
        spec["model"]["vocab"][3:3] = [[f"<0x{b:02X}>", 0.0] for b in range(256)]
        spec["model"]["byte_fallback"] = True
        native = tokenizers.Tokenizer.from_str(json.dumps(spec))
    strip = [decoders.Strip(" ", 1, 0)] if prefix == "always" else []
    native.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    native.add_tokens(list(added))
    native.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return native


def gemma():
    """Spaces become ▁ without a prefix, before a split at spaces, which therefore finds none."""
    native = sentencepiece(prefix=False)
    native.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return native


def save(folder, native, **files):
    """`native` as a Hugging Face folder; files: name of a .json file -> contents."""
    folder.mkdir(exist_ok=True)
    native.save(str(folder / "tokenizer.json"))
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


GPT2_CONFIG = {
    "bos_token": "<|endoftext|>",
    "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
    "pad_token": None,
}
LLAMA_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORD3 = PRE["llama-bpe"][1][0]


def split(*patterns):
    steps = [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def digits():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def unusable(call, *words):
    with pytest.raises(GwqError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
