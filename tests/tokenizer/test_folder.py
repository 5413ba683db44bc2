"""Files beside tokenizer.json: ids, special tokens and stops are those of transformers."""

import json

import pytest
from tokenizers import AddedToken, pre_tokenizers, processors
from tokenizers import Tokenizer as Native

from gwq_export import GwqError
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import byte_level, gemma, save, sentencepiece, unigram

VOCAB = 700
TEXTS = [
    "<|im_start|>user\nhi <|im_end|>\n<|extra|> x<|extra|><|eot_id|>",
    " The quick  brown fox's 1234567 dogs",
    "Grüße</s> a<s> b  <unk>c",
    "e\u0301 tool <tool>x",
]


def folder_of(tmp_path, native, model, **files):
    """A model's folder; model: its model_type."""
    return save(tmp_path, native, config={"model_type": model, "vocab_size": VOCAB}, **files)


def same_as_transformers(folder):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer(to_metadata(folder, VOCAB))
    plain, full = (theirs("x", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    ends = full[-1] != plain[-1]  # a prompt gets no end
    for text in TEXTS:
        ids = theirs(text)["input_ids"][: -1 if ends else None]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, special=True) == theirs.decode(ids), text
        shown = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == shown, text
    for name in ("bos", "eos"):
        id = getattr(theirs, f"{name}_token_id")
        assert id is None or id >= VOCAB or getattr(ours, name) == id
    return ours


def token(content, special=True, **flags):
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags
    return {"content": content, "special": special} | flags


NEW = ["<|im_start|>", "<|im_end|>", "<|extra|>"]
ADDED = {  # files that add tokens to tokenizer.json
    "added_tokens_decoder": {
        "tokenizer_config": {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                str(450 + i): token(name, special=i < 2, rstrip=i == 0)
                for i, name in enumerate(NEW)
            },
        }
    },
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": NEW}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": NEW}},
    "extra_special_tokens by name": {
        "tokenizer_config": {"extra_special_tokens": {"image_token": "<|extra|>"}}
    },
    "a special token": {"tokenizer_config": {"eos_token": "<|im_end|>", "sep_token": "<|extra|>"}},
    "added_tokens": {"added_tokens": {"<|im_start|>": 450, "<|eot_id|>": 451, "<|extra|>": 452}},
    "special_tokens_map": {
        "special_tokens_map": {
            "additional_special_tokens": NEW,
            "eos_token": token("<|im_end|>") | {"special": True},
            "bos_token": "<|im_start|>",
        }
    },
    "another flag": {
        "tokenizer_config": {"added_tokens_decoder": {"1": token("<|im_end|>", lstrip=True)}}
    },
    "nothing": {},
}
MODELS = ["llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "olmo2", "phi3", "gpt2",
          "gpt_neox"]  # fmt: skip


@pytest.mark.parametrize("what", sorted(ADDED))
@pytest.mark.parametrize("model", MODELS)
def test_added_tokens(tmp_path, model, what):
    ours = same_as_transformers(folder_of(tmp_path, byte_level(), model, **ADDED[what]))
    if what in ("added_tokens_decoder", "added_tokens", "additional_special_tokens"):
        end = "<|eot_id|>" if what == "added_tokens" else "<|im_end|>"
        assert ours.encode(end, bos=False)[0] in ours.stop_ids


def spaced():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def digits():
    return byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    )


def framed():
    native = byte_level()
    native.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 1)]
    )
    return native


ON = dict.fromkeys(
    [
        "add_prefix_space",
        "add_bos_token",
        "add_eos_token",
        "legacy",
        "clean_up_tokenization_spaces",
    ],
    True,
)
SETTINGS = {
    "none": {},
    "on": ON,
    "off": dict.fromkeys(ON, False) | {"bos_token": None, "unk_token": None},
}
CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "GPT2Tokenizer",
    "Qwen2TokenizerFast",
    "LlamaTokenizerFast",
    "GPTNeoXTokenizerFast",
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "make, model, named",
    [
        (byte_level, "llama", {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
        (spaced, "gpt2", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        (digits, "llama", {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
        (framed, "qwen2", {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}),
        (sentencepiece, "llama", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
        (sentencepiece, "phi3", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
        (gemma, "gemma3_text", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
        (unigram, "llama", {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    ],
)
def test_settings(tmp_path, make, model, named, kind, settings):
    config = ({"tokenizer_class": kind} if kind else {}) | named | SETTINGS[settings]
    folder = folder_of(tmp_path, make(), model, tokenizer_config=config)
    try:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder)
    except Exception:  # the class does not take this kind of tokenizer
        with pytest.raises(GwqError, match="transformers cannot load the tokenizer"):
            to_metadata(folder, VOCAB)
        return
    same_as_transformers(folder)


def test_a_class_that_reads_the_file_otherwise_is_said(tmp_path, caplog):
    """transformers 5 gives every Qwen 2 tokenizer the same pattern, whatever the file says."""
    config = {"tokenizer_class": "Qwen2Tokenizer"}
    same_as_transformers(folder_of(tmp_path, byte_level(), "llama", tokenizer_config=config))
    assert "as a Qwen2Tokenizer, which cuts texts in another way" in caplog.text


def test_special_names_for_text_are_refused(tmp_path):
    config = {"split_special_tokens": True}
    with pytest.raises(GwqError, match="split_special_tokens"):
        to_metadata(folder_of(tmp_path, byte_level(), "llama", tokenizer_config=config), VOCAB)


def test_a_class_that_cannot_read_the_file(tmp_path):
    """Gemma's looks for an unknown token that byte-level ones do not have."""
    config = {"tokenizer_class": "GemmaTokenizer"}
    with pytest.raises(GwqError, match="transformers cannot load the tokenizer"):
        to_metadata(folder_of(tmp_path, byte_level(), "llama", tokenizer_config=config), VOCAB)


# --- stops ----------------------------------------------------------------------------------------

STOPS = {  # files -> the ids that end a generation
    "a number": {"generation_config": {"eos_token_id": 5}},
    "a list": {"generation_config": {"eos_token_id": [5, 6]}},
    "before the config": {"generation_config": {"eos_token_id": 5}, "config": {"eos_token_id": 6}},
    "none in it": {"generation_config": {}, "config": {"eos_token_id": 6}},
    "a number in the config": {"config": {"eos_token_id": 5}},
    "a list in the config": {"config": {"eos_token_id": [5, 6]}},
    "null": {"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 6}},
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("what", sorted(STOPS))
def test_stops(tmp_path, what, named):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=VOCAB, num_attention_heads=1, **sizes)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    saved = json.loads((tmp_path / "config.json").read_text())
    saved = {key: value for key, value in saved.items() if not key.endswith("token_id")}
    files = {"config": saved | STOPS[what].get("config", {})}
    files |= {k: v for k, v in STOPS[what].items() if k != "config"}
    files["tokenizer_config"] = {"eos_token": "<|endoftext|>"} if named else {}
    folder = save(tmp_path, byte_level(), **files)
    ends = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    keys = to_metadata(folder, VOCAB)
    usual = {0, 1}  # <|endoftext|> and <|im_end|> end a turn whatever the files say
    assert Tokenizer(keys).stop_ids - usual - ({6} if not named and not ends else set()) == ends
    assert not named or keys["tokenizer.ggml.eos_token_id"] == 0


# --- more ids than rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_tokens_without_a_row_are_left_out(tmp_path, make, caplog):
    native = make()
    before = Native.from_str(native.to_str())
    rows = native.get_vocab_size()
    native.add_special_tokens(["<image>", "[PAD]"])
    native.add_tokens([AddedToken("<more>", normalized=False)])
    config = {"pad_token": "[PAD]"}
    keys = to_metadata(folder_of(tmp_path, native, "llama", tokenizer_config=config), rows)
    ours = Tokenizer(keys)
    assert len(keys["tokenizer.ggml.tokens"]) == rows
    assert keys.get("tokenizer.ggml.padding_token_id", 0) < rows
    assert f"{rows} embeddings have no row for it: <image> ({rows}), [PAD]" in caplog.text
    expected = before.encode("the <image> fox[PAD] <more>", add_special_tokens=False).ids
    assert ours.encode("the <image> fox[PAD] <more>", bos=False) == expected


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_in_use_without_a_row(tmp_path, name):
    native = byte_level()
    rows = native.get_vocab_size()
    native.add_special_tokens(["<end>"])
    config = {f"{name}_token": "<end>"}
    folder = folder_of(tmp_path, native, "llama", tokenizer_config=config)
    with pytest.raises(GwqError, match=f"the {name}_token has the id {rows}, for which"):
        to_metadata(folder, rows)


def test_a_bos_without_a_row_before_every_text(tmp_path):
    native = byte_level()
    rows = native.get_vocab_size()
    native.add_special_tokens(["<s>"])
    native.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", rows)])
    with pytest.raises(GwqError, match=f"puts token {rows} around every text"):
        to_metadata(folder_of(tmp_path, native, "llama"), rows)


def test_pieces_without_a_row(tmp_path):
    with pytest.raises(GwqError, match="more ids than the model's 300 embeddings"):
        to_metadata(folder_of(tmp_path, byte_level(), "llama"), 300)


def test_another_token_than_bos_before_every_text(tmp_path):
    config = {"bos_token": "<|endoftext|>"}
    native = byte_level()
    native.post_processor = processors.TemplateProcessing(
        "<|im_end|> $A", special_tokens=[("<|im_end|>", 1)]
    )
    with pytest.raises(GwqError, match=r"puts <\|im_end\|> before every text"):
        to_metadata(folder_of(tmp_path, native, "llama", tokenizer_config=config), VOCAB)
