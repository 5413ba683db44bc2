"""Tokenizers of real models, from ../shared: ids and text are the original's."""

import json
import random

import pytest
import tokenizers

from gwq_export.tokenizer import build as tokenizer
from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.paths import SHARED
from tests.support.tokenizers import NASTY, fragments, random_ids, same

MODELS = [f"models/{m}" for m in ("stories260K", "babyllama-tok361-1.0M", "gwq-reference")]
MODELS += [f"tokenizers/{t}" for t in ("gpt2", "pythia-neox", "qwen2.5", "llama2")]

NEED_JSON = set()  # names of MODELS whose standard keys cannot say all: none

# code points, first to last: letters of the scripts that people write in, digits, marks, symbols,
# emoji, spaces, controls
SCRIPTS = """
61-7a 41-5a c0-ff 100-17f 1a0-1b0 1ea0-1ef9 391-3c9 1f00-1fbc 410-44f 400-45f 531-586 10d0-10f0
5d0-5ea 5b0-5c2 621-64a 64b-652 660-669 6a9-6d2 905-939 93e-94d 966-96f 985-9b9 a05-a39 a85-ab9
b85-bb9 c05-c39 c85-cb9 d05-d39 d85-dc6 e01-e2e e30-e39 e81-eae f40-f67 1000-1021 1780-17a2
1200-1350 13a0-13f4 1820-1842 3041-3093 30a1-30f3 ff71-ff9d 3105-3129 4e00-9fa5 3400-4db5
20000-200ff ac00-d7a3 1100-1112 ff21-ff5a 2160-217f 2460-2473 bc-be 2080-2089 1d400-1d6a3
10300-1031f 13000-1307f 21-2f 3a-40 5b-60 7b-7e 2010-205e 2190-21ff 2200-22ff 2500-259f 2600-26ff
2701-27be 1f300-1f5ff 1f600-1f64f 1f680-1f6f3 1f90c-1f9ff 1f1e6-1f1ff 1f3fb-1f3ff 300-36f
200b-200f 2000-200a e000-e00f 0-1f 7f-a0 fff9-ffff
"""
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


@pytest.fixture(scope="module", params=MODELS)
def real(request):
    folder = SHARED / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is absent")
    native = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    keys = to_metadata(folder, max(native.get_vocab().values()) + 4)
    return folder.name, native, keys, Tokenizer(keys)


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
    ids = tok.encode(text, bos=False)
    expected = native.encode(text, add_special_tokens=False).ids
    assert ids == expected
    assert tok.decode(ids, True) == native.decode(ids, skip_special_tokens=False)
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
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tok.encode(text)[0] == 151644 and tok.encode(text, special=False)[0] != 151644
