"""Tokenizers: the keys of a GGUF file give the ids and the text of the Hugging Face tokenizer they
came from.
"""

import json
import random
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gwq_export import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.tokenizer import build as tokenizer
from gwq_export.tokenizer import from_hf as vocabulary
from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.pretokenizer import PRE, ROWS
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.paths import SHARED

PROBE = vocabulary.PROBE.read_bytes().decode()
MODELS = [f"models/{m}" for m in ("stories260K", "babyllama-tok361-1.0M", "gwq-reference")]
MODELS += [f"tokenizers/{t}" for t in ("gpt2", "pythia-neox", "qwen2.5", "llama2")]
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


# --- real tokenizers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MODELS)
def real(request):
    folder = SHARED / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    native = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    keys = to_metadata(folder, max(native.get_vocab().values()) + 4)
    return folder.name, native, keys, Tokenizer(keys)


NEED_JSON = set()  # names of MODELS whose stock keys cannot say all: none

# code points, first to last: letters of the scripts that people write in, digits, marks, symbols,
# emoji, spaces, controls
SCRIPTS = """61-7a 41-5a c0-ff 100-17f 1a0-1b0 1ea0-1ef9 391-3c9 1f00-1fbc 410-44f 400-45f 531-586 10d0-10f0 5d0-5ea 5b0-5c2 621-64a 64b-652
660-669 6a9-6d2 905-939 93e-94d 966-96f 985-9b9 a05-a39 a85-ab9 b85-bb9 c05-c39 c85-cb9 d05-d39 d85-dc6 e01-e2e e30-e39 e81-eae f40-f67
1000-1021 1780-17a2 1200-1350 13a0-13f4 1820-1842 3041-3093 30a1-30f3 ff71-ff9d 3105-3129 4e00-9fa5 3400-4db5 20000-200ff ac00-d7a3
1100-1112 ff21-ff5a 2160-217f 2460-2473 bc-be 2080-2089 1d400-1d6a3 10300-1031f 13000-1307f 21-2f 3a-40 5b-60 7b-7e 2010-205e 2190-21ff
2200-22ff 2500-259f 2600-26ff 2701-27be 1f300-1f5ff 1f600-1f64f 1f680-1f6f3 1f90c-1f9ff 1f1e6-1f1ff 1f3fb-1f3ff 300-36f 200b-200f 2000-200a
e000-e00f 0-1f 7f-a0 fff9-ffff"""
CODE = [
    "for (int i = 0; i < {n}; ++i) {{\n\t{w}[i] += {w}({n});\n}}\n",
    "def {w}(self, {w}={n}):\n    return {w} ** {n}  # {w}\n\n",
    "<{w} id='{n}'>{w}</{w}>\r\n",
    "SELECT {w} FROM {w} WHERE {w} != '{n}';\n",
    '{{"{w}": [{n}, -{n}.5e-{n}], "{w}_{n}": null}}\n',
    "#include <{w}.h>\n\n\n",
    "\\{w}{{{n}}}^{{{w}}} $ {w} --{w}={n} | {w} > /{w}/{n}.txt 2>&1\n",
]
SPACES = [" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\r", "\x0b", "\u2028"]


def corpus_text(specials):
    """A text of 250 kB, the same at every run: prose, every script, code, whitespace, emoji with
    joiners, special tokens.
    """
    rng = random.Random(7)

    def word():
        script = [int(end, 16) for end in rng.choice(SCRIPTS.split()).split("-")]
        return "".join(chr(rng.randint(*script)) for _ in range(rng.choice([1, 2, 3, 5, 8])))

    makers = [
        word,
        lambda: rng.choice(CODE).format(
            n=rng.randrange(10 ** rng.randint(1, 9)),
            w="".join(c for c in word() if c.isalnum()) or "x",
        ),
        lambda: "".join(
            rng.choice(SPACES[: rng.choice([1, 3, 9])]) for _ in range(rng.choice([1, 2, 4, 9, 40]))
        ),
        lambda: rng.choice(
            [
                "\U0001f469\u200d\U0001f467",
                "\u2764\ufe0f",
                "1\ufe0f\u20e3",
                "\U0001f44d\U0001f3fd",
                "'LL",
                "don't",
                "'s",
            ]
        ),
        lambda: rng.choice(specials),
    ]
    files = ["corpus/valid.txt", "text/exl3_multilingual.utf8", "text/exl3_code.utf8"]
    pieces = [(SHARED / file).read_text(encoding="utf-8")[:30_000] for file in files]
    size = sum(len(p.encode()) for p in pieces)
    while size < 250_000:
        pieces.append(rng.choice(makers)() + rng.choice(["", " ", "  ", "\n"]))
        size += len(pieces[-1].encode())
    return "".join(pieces)


def test_real_tokenizers(real):
    name, native, keys, tok = real
    print(f"{name}: tokenizer.json in the file: {JSON_KEY in keys}")
    assert (JSON_KEY in keys) == (name in NEED_JSON)
    text = corpus_text(
        [t.content for t in native.get_added_tokens_decoder().values()] + ["</s>", "<|endoftext|>"]
    )
    assert len(text.encode()) >= 250_000
    same(tok, native, NASTY)
    lines = text.splitlines(keepends=True)
    ids, expected = tok.encode(text, bos=False), native.encode(text, add_special_tokens=False).ids
    assert ids == expected and tok.decode(ids, True) == native.decode(
        ids, skip_special_tokens=False
    )
    same(tok, native, lines[-300:])


def test_real_streams(real):
    _, native, _, tok = real
    for seed in range(30):
        ids = random_ids(tok, seed)
        for special in (False, True):
            assert (
                "".join(fragments(tok, ids, special))
                == tok.decode(ids, special)
                == native.decode(ids, skip_special_tokens=not special)
            )


def test_known_ids(real):
    name, native, keys, tok = real
    known = {
        "gpt2": [15496, 995],
        "pythia-neox": [12092, 1533],
        "qwen2.5": [9707, 1879],
        "llama2": [15043, 3186],
    }
    if name in known:
        assert tok.encode("Hello world", bos=False) == known[name]
    expected = {
        "gpt2": ("gpt-2", 50256, 50256, False),
        "pythia-neox": ("olmo", None, None, False),
        "qwen2.5": ("qwen2", None, 151645, False),
        "gwq-reference": ("gpt-2", 0, 0, False),
    }.get(name, ("default", 1, 2, True))
    assert (keys["tokenizer.ggml.pre"], tok.bos, tok.eos, tok.add_bos) == expected
    assert (
        tok.vocab_size == len(keys["tokenizer.ggml.tokens"]) == max(native.get_vocab().values()) + 4
    )
    assert tok.stop_ids == {
        "pythia-neox": {0},
        "qwen2.5": {151643, 151645},
        "gwq-reference": {0, 2},
    }.get(name, {tok.eos})
    if tok.add_bos:
        for text in ("Hello world", " a", "", "x\n"):
            assert tok.encode(text) == native.encode(text).ids


def test_scores_order_the_merges_of_llama2(real):
    name, native, keys, _ = real
    if name != "llama2":
        pytest.skip("for llama2 only")
    merges = [tuple(m) for m in json.loads(native.to_str())["model"]["merges"]]
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert (
        tokenizer._merges(
            tokens, keys["tokenizer.ggml.scores"], types, {t: i for i, t in enumerate(tokens)}
        )
        == merges
    )


def test_chat_of_qwen(real):
    name, _, _, tok = real
    if name != "qwen2.5":
        pytest.skip("for qwen2.5 only")
    text = tok.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert (
        text
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tok.encode(text)[0] == 151644 and tok.encode(text, special=False)[0] != 151644


# --- small tokenizers, made here ------------------------------------------------------------------------------------


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
    strip = [decoders.Strip(" ", 1, 0)] * bool(prefix)
    native.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    native.add_special_tokens(["<unk>", "<s>", "</s>"])
    native.add_tokens(list(added))
    native.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return native


def charsmap():
    """SentencePiece's table that makes a space of every tab and line feed: a length, darts-clone's
    double array, strings.
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
    strip = [decoders.Strip(" ", 1, 0)] * (prefix == "always")
    native.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    native.add_tokens(list(added))
    native.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return native


def gemma():
    """Spaces become pieces' ▁ without a prefix, before a split at spaces that therefore finds none."""
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
    "eos_token": {"content": "<|endoftext|>"},
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


@pytest.mark.parametrize(
    "make, name",
    [
        (byte_level, "gpt-2"),
        (lambda: byte_level(normalizer=normalizers.NFC()), "olmo"),
        (lambda: byte_level(digits()), "smollm"),
        (lambda: byte_level(digits(), normalizers.NFC()), "command-r"),
        (lambda: byte_level(split(WORD3), ignore_merges=True), "llama-bpe"),
        (lambda: byte_level(split(WORD3)), "dbrx"),
        (
            lambda: byte_level(
                split(PRE["qwen2"][1][0]), normalizers.Sequence([normalizers.NFC()])
            ),
            "qwen2",
        ),
        (lambda: byte_level(split(PRE["tekken"][1][0]), ignore_merges=True), "tekken"),
        (lambda: byte_level(split(PRE["gpt-4o"][1][0])), "gpt-4o"),
        (lambda: byte_level(added=[AddedToken("    ", normalized=False), "<tool>"]), "gpt-2"),
        (sentencepiece, "default"),
        (lambda: sentencepiece(prefix=False), "default"),
        (lambda: sentencepiece(added=[AddedToken("<tool>", normalized=False)]), "default"),
        (gemma, "default"),
        (unigram, "default"),
        (lambda: unigram(merge=False, prefix="never"), "default"),
        (lambda: unigram(bytes=True, added=[AddedToken("<tool>", normalized=False)]), "default"),
    ],
)
def test_keys_rebuild_the_tokenizer(tmp_path, make, name):
    native = make()
    keys = to_metadata(save(tmp_path, native), 700)
    assert keys["tokenizer.ggml.pre"] == name and JSON_KEY not in keys
    tok = Tokenizer(keys)
    same(tok, native, NASTY + CORPUS[:3] + [PROBE])
    for seed in range(30):
        ids = random_ids(tok, seed)
        assert "".join(fragments(tok, ids)) == tok.decode(ids) == native.decode(ids)


@pytest.mark.parametrize(
    "make",
    [
        lambda: byte_level(added=[AddedToken("<mask>", lstrip=True)]),
        lambda: byte_level(added=[AddedToken("tok", single_word=True)]),
        lambda: byte_level(split(PRE["qwen35"][1][0])),  # qwen35 without its NFC
        lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
        lambda: sentencepiece(pre=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    ],
)
def test_what_the_keys_cannot_say_goes_as_json(tmp_path, make):
    native = make()
    folder = save(tmp_path / "hf", native)
    keys = to_metadata(folder, 700)
    assert keys[JSON_KEY] == (folder / "tokenizer.json").read_text()
    same(Tokenizer(keys), native, [*NASTY, "a <mask> b<mask>", "tok a tok, token", "</s> a</s>b"])
    del keys[JSON_KEY]  # the stock keys are there too
    assert Tokenizer(keys).encode("quick") == native.encode("quick").ids


def test_json_takes_precedence(tmp_path):
    keys = to_metadata(save(tmp_path, byte_level()), 700)
    other = sentencepiece()
    assert (
        Tokenizer(keys | {JSON_KEY: other.to_str()}).encode("the fox", bos=False)
        == other.encode("the fox", add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    "name, make, config",
    [
        ("gpt2", byte_level, GPT2_CONFIG),
        ("llama", sentencepiece, LLAMA_CONFIG),
        ("t5", unigram, {}),
    ],
)
def test_through_a_file(tmp_path, name, make, config):
    native = make()
    keys = to_metadata(save(tmp_path / "hf", native, tokenizer_config=config), 700)
    with Writer(tmp_path / "a.gguf", keys, []):
        pass
    metadata = Reader(tmp_path / "a.gguf").metadata
    assert (
        metadata["tokenizer.ggml.model"] == name
        and metadata["tokenizer.ggml.token_type"].dtype == np.int32
    )
    same(Tokenizer(metadata), native, NASTY)


def test_keys_of_sentencepiece(tmp_path):
    keys = to_metadata(
        save(
            tmp_path,
            sentencepiece(added=[AddedToken("<tool>", normalized=False)]),
            tokenizer_config=LLAMA_CONFIG,
        ),
        500,
    )
    tokens, types, scores = (
        keys[f"tokenizer.ggml.{k}"] for k in ("tokens", "token_type", "scores")
    )
    assert (
        len(tokens) == len(types) == len(scores) == 500
        and scores.dtype == np.float32
        and types.dtype == np.int32
    )
    kind = dict(zip(tokens, types.tolist(), strict=True))
    assert [kind[t] for t in ("▁t", "<unk>", "<s>", "<tool>", "[PAD499]", "<0x0A>")] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    special = {
        k.removeprefix("tokenizer.ggml."): v
        for k, v in keys.items()
        if k.endswith("_id") or ".add_" in k
    }
    assert special == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": True,
    }


def test_keys_of_byte_level(tmp_path):
    native = byte_level(added=["<tool>"])
    generation = {"eos_token_id": [0, 1], "bos_token_id": 0}
    keys = to_metadata(
        save(
            tmp_path,
            native,
            generation_config=generation,
            special_tokens_map={"pad_token": "<|im_end|>"},
        ),
        450,
    )
    assert keys["tokenizer.ggml.model"] == "gpt2" and "tokenizer.ggml.scores" not in keys
    assert keys["tokenizer.ggml.merges"][0].count(" ") == 1
    assert [keys[f"tokenizer.ggml.{k}_token_id"] for k in ("bos", "eos", "eot", "padding")] == [
        0,
        0,
        1,
        1,
    ]
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.token_type"][
        [0, 1, 2, native.token_to_id("<tool>"), 449]
    ].tolist() == [3, 3, 1, 4, 5]
    assert Tokenizer(keys).stop_ids == {0, 1}


@pytest.mark.parametrize(
    "stops, keys, others",
    [
        (0, {"eos": 0}, set()),
        ([0], {"eos": 0}, set()),
        ([1, 0], {"eos": 0, "eot": 1}, set()),
        ([1], {"eos": 0, "eot": 1}, set()),
        ([0, 5, 6], {"eos": 0, "eot": 5, "eom": 6}, {5, 6}),
        ([0, 5, 6, 7], {"eos": 0, "eot": 5, "eom": 6}, {5, 6}),
        ([0, 9999], {"eos": 0}, set()),
    ],
)
def test_stop_tokens(tmp_path, caplog, stops, keys, others):
    found = to_metadata(
        save(
            tmp_path,
            byte_level(),
            tokenizer_config=GPT2_CONFIG,
            generation_config={"eos_token_id": stops},
        ),
        450,
    )
    names = {name: found.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    assert {name: id for name, id in names.items() if id is not None} == keys
    assert Tokenizer(found).stop_ids == {0, 1} | others  # <|endoftext|> and <|im_end|> always are
    assert ("left out: [7]" in caplog.text) == (stops == [0, 5, 6, 7])


@pytest.mark.parametrize("whole", [False, True])
def test_a_word_without_merges(tmp_path, whole):
    folder = save(tmp_path, byte_level(split(WORD3), ignore_merges=whole))
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"].remove(["t", "he"])  # "the" stays in the vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tok = Tokenizer(to_metadata(folder, 700))
    assert len(tok.encode("the")) == (1 if whole else 2)
    same(tok, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), ["the", "the fox"])


def test_old_merges_are_strings(tmp_path):
    native = byte_level()
    folder = save(tmp_path, native)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    same(Tokenizer(to_metadata(folder, 700)), native, NASTY)


@pytest.mark.parametrize(
    "flag, template, expected",
    [(None, True, True), (False, True, False), (True, False, True), (None, False, False)],
)
def test_add_bos(tmp_path, flag, template, expected):
    native = sentencepiece()
    if not template:
        native.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    config = LLAMA_CONFIG if flag is None else LLAMA_CONFIG | {"add_bos_token": flag}
    tok = Tokenizer(to_metadata(save(tmp_path, native, tokenizer_config=config), 500))
    plain = tok.encode("the fox", bos=False)
    assert tok.add_bos is expected and tok.encode("the fox") == [1] * expected + plain
    assert tok.encode("the fox", bos=True) == [1, *plain]
    assert tok.encode("<s>the fox") == [1, *plain] and tok.encode("<s>the fox", bos=True) == [
        1,
        1,
        *plain,
    ]


def test_bos_of_the_post_processor_when_nothing_names_it(tmp_path):
    tok = Tokenizer(to_metadata(save(tmp_path, sentencepiece()), 500))
    assert (tok.bos, tok.eos, tok.add_bos) == (1, None, True)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, lambda: unigram(bytes=True)])
def test_special_tokens_as_plain_text(tmp_path, make):
    native = make()
    keys = to_metadata(save(tmp_path, native), 700)
    for tok in (Tokenizer(keys), Tokenizer(keys | {JSON_KEY: native.to_str()})):
        name = native.id_to_token(2 if make is sentencepiece else 1)  # "</s>" or "<|im_end|>"
        id = native.token_to_id(name)
        assert id in tok.encode(f"a{name}b", bos=False) and id not in tok.encode(
            f"a{name}b", special=False, bos=False
        )
        assert name in tok.decode(tok.encode(f"a{name}b", special=False, bos=False))
        assert tok.decode([id]) == "" and tok.decode([id], special=True) == name


def test_stream_gives_whole_characters_at_once(tmp_path):
    text = "aé你👍b the"
    for make in (byte_level, sentencepiece):
        tok = Tokenizer(to_metadata(save(tmp_path, make()), 700))
        parts = fragments(tok, tok.encode(text, bos=False))
        assert "".join(parts) == text and all(
            text.startswith("".join(parts[:i])) for i in range(len(parts))
        )
        assert [p for p in parts if p][:4] == (
            ["a", "é", "你", "👍"] if make is byte_level else ["a", "é你", "👍b", " the"]
        )
        stream = tok.stream()
        for _ in range(2):  # flush starts anew
            assert (
                "".join(
                    [stream.feed(i) for i in tok.encode(" the fox", bos=False)] + [stream.flush()]
                )
                == " the fox"
            )


def test_placeholders_are_no_text(tmp_path):
    tok = Tokenizer(to_metadata(save(tmp_path, byte_level()), 500))
    assert tok.vocab_size == 500 and tok.decode([499]) == "" and fragments(tok, [499]) == ["", ""]
    assert 499 not in tok.encode("[PAD499]")


# --- chat -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(tmp_path):
    keys = to_metadata(save(tmp_path, byte_level(), tokenizer_config=GPT2_CONFIG), 500)
    return lambda template, messages=None, **options: Tokenizer(
        keys | {"tokenizer.chat_template": template}
    ).chat(messages or [{"role": "user", "content": "a<b"}], **options)


def test_chat_template(chat):
    template = "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}{% endif %}\n<{{ m.role }}>{{ m['content'] }}"
    template += (
        "{{ eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat(template) == "<|endoftext|><user>a<b<|endoftext|>\n<assistant>"
    assert chat(template, add_generation_prompt=False) == "<|endoftext|><user>a<b<|endoftext|>\n"


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "a<b"}'),
        ("{{ {'a': 'é'} | tojson(indent=1) }}", '{\n "a": "é"\n}'),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}x{% endgeneration %}{% if tools is not none %}y{% endif %}", "x"),
        ("{{ 'ab'.startswith('a') }}", "True"),
    ],
)
def test_template_functions(chat, template, text):
    assert chat(template) == text


@pytest.mark.parametrize(
    "template, word",
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "chat template"),
        ("{{ 1 // 0 }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ x.y.z }}", "chat template"),
        ("{% for i in range(10000000) %}{% endfor %}", "chat template"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "chat template"),
        ("{% include 'etc' %}", "chat template"),
    ],
)
def test_bad_templates(chat, template, word):
    with pytest.raises(GwqError, match=word) as caught:
        chat(template)
    assert "chat template" in str(caught.value)


def test_chat_template_files(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = save(tmp_path, byte_level(), tokenizer_config={"chat_template": named})
    keys = to_metadata(folder, 500)
    assert (
        keys["tokenizer.chat_template"] == "D" and keys["tokenizer.chat_template.tool_use"] == "T"
    )
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "chat_template.jinja").write_text("J")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    keys = to_metadata(folder, 500)
    assert Tokenizer(keys).chat([]) == "J" and keys["tokenizer.chat_templates"] == [
        "rag",
        "tool_use",
    ]
    assert [keys[f"tokenizer.chat_template.{name}"] for name in ("rag", "tool_use")] == [
        "rag",
        "tool_use",
    ]
    shutil.rmtree(folder / "additional_chat_templates")
    save(tmp_path, byte_level(), tokenizer_config={})
    (folder / "chat_template.jinja").unlink()
    tok = Tokenizer(to_metadata(folder, 500))
    assert tok.chat_template is None
    with pytest.raises(GwqError, match="no chat template"):
        tok.chat([])


# --- what cannot be used --------------------------------------------------------------------------------------------


def unusable(call, *words):
    with pytest.raises(GwqError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_folders_without_a_usable_tokenizer(tmp_path):
    unusable(lambda: to_metadata(tmp_path, 500), str(tmp_path), "tokenizer.json")
    native = byte_level()
    unusable(lambda: to_metadata(save(tmp_path, native), native.get_vocab_size() - 1), "embeddings")
    unusable(
        lambda: to_metadata(
            save(tmp_path, tokenizers.Tokenizer(models.WordLevel({"a": 0}, "a"))), 500
        ),
        "WordLevel",
    )
    unusable(
        lambda: to_metadata(save(tmp_path, tokenizers.Tokenizer(models.BPE({"a": 0}, []))), 500),
        "BPE",
    )
    unusable(
        lambda: to_metadata(
            save(tmp_path, tokenizers.Tokenizer(models.BPE(byte_fallback=True))), 500
        ),
        "tokenizer.json",
    )
    for text in ("{", "[]", "{}", '{"model": 3}', '"x"', "\x00"):
        save(tmp_path, native)
        (tmp_path / "tokenizer.json").write_text(text)
        unusable(lambda: to_metadata(tmp_path, 500), "tokenizer.json")
    for name in ("tokenizer_config", "generation_config", "special_tokens_map"):
        save(tmp_path, native)
        for text in ("{", "[]", "3", '{"bos_token": [1]}', '{"chat_template": [{}]}'):
            (tmp_path / f"{name}.json").write_text(text)
            try:
                Tokenizer(to_metadata(tmp_path, 500))
            except GwqError as e:
                assert "\n" not in str(e)
        (tmp_path / f"{name}.json").unlink()


def test_unknown_pre_tokenizer(tmp_path, caplog):
    native = byte_level(split(r"\w+|\W+"))
    folder = save(tmp_path, native)
    keys = to_metadata(folder, 500)
    assert (
        "--tokenizer-pre" in caplog.text
        and r"\\w+|\\W+" in caplog.text
        and len(caplog.records) == 1
    )
    assert keys["tokenizer.ggml.pre"] == "unknown"  # a name that llama.cpp refuses
    same(Tokenizer(keys), native, NASTY)
    keys = to_metadata(folder, 500, pre="superbpe")  # a name that only llama.cpp knows
    assert keys["tokenizer.ggml.pre"] == "superbpe"
    same(Tokenizer(keys), native, NASTY)
    del keys[JSON_KEY]
    unusable(lambda: Tokenizer(keys), "superbpe")
    for normalizer, pre in (
        (normalizers.Lowercase(), None),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ):
        native = byte_level(pre, normalizer)
        same(Tokenizer(to_metadata(save(tmp_path, native), 500)), native, NASTY)
        keys = to_metadata(tmp_path, 500, pre="gpt-2")  # asserted, and wrong
        assert keys["tokenizer.ggml.pre"] == "gpt-2" and JSON_KEY in keys


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split()[0])
def test_every_stock_name_is_found_again(tmp_path, row):
    names, normalizer, patterns, whole = row
    native = byte_level(split(*patterns), normalizer and normalizers.NFC(), ignore_merges=whole)
    keys = to_metadata(save(tmp_path, native), 500)
    assert keys["tokenizer.ggml.pre"] == names.split()[0] and JSON_KEY not in keys
    for name in names.split():
        assert (
            Tokenizer(keys | {"tokenizer.ggml.pre": name}).encode(PROBE) == native.encode(PROBE).ids
        )


BAD_MAPS = [b"", charsmap()[:-1], charsmap()[:9], charsmap()[:4] + b"\xff" * 2048 + b" \0"]
BAD_MAPS += [
    charsmap().replace(b"\0\0\0\x80", value)
    for value in (b"\1\0\0\x80", b"\0\0\0\x7f", b"\xff\xff\xff\x7f")
]
BROKEN = [
    ("tokenizer.ggml.model", None),
    ("tokenizer.ggml.model", "bert"),
    ("tokenizer.ggml.model", 3),
    ("tokenizer.ggml.tokens", None),
    ("tokenizer.ggml.tokens", np.arange(500)),
    ("tokenizer.ggml.tokens", ["a"]),
    ("tokenizer.ggml.tokens", []),
    ("tokenizer.ggml.token_type", np.ones(3, np.int32)),
    ("tokenizer.ggml.token_type", "x"),
    ("tokenizer.ggml.bos_token_id", 500),
    ("tokenizer.ggml.eos_token_id", -1),
    ("tokenizer.ggml.eos_token_id", "</s>"),
    ("tokenizer.ggml.add_bos_token", "yes"),
    ("tokenizer.chat_template", 1.5),
    (JSON_KEY, "{}"),
    (JSON_KEY, 5),
    ("gpt2 tokenizer.ggml.pre", None),
    ("gpt2 tokenizer.ggml.pre", "default"),
    ("gpt2 tokenizer.ggml.merges", None),
    ("gpt2 tokenizer.ggml.merges", ["a"]),
    ("gpt2 tokenizer.ggml.merges", ["zzz yyy"]),
    ("llama tokenizer.ggml.scores", np.zeros(3, np.float32)),
    ("llama tokenizer.ggml.scores", np.full(500, np.nan, np.float32)),
    ("llama tokenizer.ggml.add_space_prefix", 2),
    ("t5 tokenizer.ggml.token_type", np.ones(500, np.int32)),  # no unknown token
    *(("t5 tokenizer.ggml.precompiled_charsmap", np.frombuffer(m, np.uint8)) for m in BAD_MAPS),
]


@pytest.mark.parametrize("key, value", BROKEN)
@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_broken_keys(tmp_path, make, key, value):
    keys = to_metadata(save(tmp_path, make()), 500)
    family, _, key = key.rpartition(" ")
    if family not in ("", keys["tokenizer.ggml.model"]):
        pytest.skip("a key of the other family")
    if value is None:
        del keys[key]
    else:
        keys[key] = value
    unusable(lambda: Tokenizer(keys))


def test_file_without_a_tokenizer():
    unusable(lambda: Tokenizer({"general.architecture": "llama"}), "tokenizer.ggml.model")


def test_text_that_is_not_unicode(tmp_path):
    unusable(
        lambda: Tokenizer(to_metadata(save(tmp_path, byte_level()), 500)).encode("a\udc80"),
        "Unicode",
    )


def test_missing_optional_keys(tmp_path):
    native = sentencepiece()
    keys = to_metadata(save(tmp_path, native), 500)
    for key in ("add_bos_token", "add_space_prefix", "pre"):
        del keys[f"tokenizer.ggml.{key}"]
    tok = Tokenizer(keys)
    assert (
        tok.add_bos and tok.encode("the fox") == native.encode("the fox").ids
    )  # what stock readers assume
