#!/usr/bin/env bash
# 2026-11-28
#
# Expected: an option that save_pretrained has no longer, or never had, is an error, as it is in
# from_pretrained, which raises TypeError for an unknown keyword.
#
# Instead: save_pretrained takes any keyword and says nothing. safe_serialization=False, which wrote
# pytorch_model.bin up to transformers 4, writes model.safetensors in 5.24; a misspelled
# max_shard_size writes one file of any size.
#
# Why it matters: scripts for readers of .bin files or for limits on the size of a file go through
# without a warning, and the failure comes later, in another program.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0

cat > "$work/main.py" <<'PYTHON'
import contextlib
import importlib.metadata
import io
import sys
import warnings
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

for package in ("torch", "transformers"):
    print(package, importlib.metadata.version(package))
logging.disable_progress_bar()
warnings.simplefilter("always")
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config)
found = []
for options in (
    {"max_shard_size": "20KB"},
    {"max_shard_sise": "20KB"},
    {"safe_serialization": False},
):
    folder = Path("saved") / next(iter(options))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
        model.save_pretrained(folder, **options)
    files = sorted(path.name for path in folder.iterdir() if "model" in path.name)
    found.append(files)
    words = said.getvalue() + " ".join(str(w.message) for w in warned)
    mentioned = next(iter(options)) in words
    print(f"save_pretrained({options}): {files}; the option is mentioned: {mentioned}")
    found.append(mentioned)
try:
    AutoModelForCausalLM.from_pretrained(folder, max_shard_sise="20KB")
    refused = False
except TypeError as e:
    print("from_pretrained:", repr(e))
    refused = True
one = ["model.safetensors"]
as_described = len(found[0]) > 2 and found[2:] == [one, False, one, False] and refused
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python main.py
