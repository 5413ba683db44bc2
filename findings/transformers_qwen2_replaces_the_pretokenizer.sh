#!/usr/bin/env bash
# 2026-11-28
#
# Expected: AutoTokenizer gives the tokens of the folder's tokenizer.json, as tokenizers itself does
# and as transformers does for other model types, above all where tokenizer_config.json asks for
# PreTrainedTokenizerFast: the class that adds nothing of its own.
#
# Instead: with "model_type": "qwen2" in config.json, transformers 5.24 takes Qwen2Tokenizer
# whatever class is asked for, and that one keeps the vocabulary and the merges of tokenizer.json
# but puts Qwen2's own pre-tokenizer in the place of the file's. Digits are split, for example, so
# that tokens such as " 2024" never occur. Nothing is logged, and save_pretrained writes the changed
# pre-tokenizer into the new tokenizer.json.
#
# Why it matters: a model of Qwen2's architecture that was trained with a tokenizer of its own gets
# ids that it never saw in training, silently, while servers that read tokenizer.json get the right
# ones. The model's quality drops in one program and not in the other.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.24.0 tokenizers==0.23.3

cat > "$work/main.py" <<'PYTHON'
import importlib.metadata
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXT = "The fox of 2024 jumps over 67 dogs, or 12345 of them"


def tokenizer():
    """Byte-level BPE as GPT-2 has it: runs of digits stay together."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT] * 50, trainer)
    return made


def loaded(model_type):
    """The tokens by AutoTokenizer of a folder for that type of model, and those after a copy."""
    folder = Path(f"model-{model_type}")
    folder.mkdir()
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    found = AutoTokenizer.from_pretrained(folder)
    found.save_pretrained(folder / "copy")
    copied = Tokenizer.from_file(str(folder / "copy" / "tokenizer.json"))
    print(f"model_type {model_type}: {type(found).__name__}, {found.tokenize(TEXT)}")
    return found.tokenize(TEXT), copied.encode(TEXT).tokens


for package in ("transformers", "tokenizers"):
    print(package, importlib.metadata.version(package))
plain = tokenizer().encode(TEXT).tokens
print("tokenizers:", plain)
others = [loaded(name) for name in ("llama", "mistral", "qwen3")]
qwen2, copied = loaded("qwen2")
as_described = all(
    [
        all(tokens == (plain, plain) for tokens in others),
        qwen2 != plain,
        copied == qwen2,
        "\u0120" "2024" in plain,
        "\u0120" "2024" not in qwen2,
    ]
)
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python main.py
