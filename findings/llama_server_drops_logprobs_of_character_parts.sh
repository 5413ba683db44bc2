#!/usr/bin/env bash
# 2026-11-28
#
# Expected: llama.cpp's OpenAI-style completion with log-probabilities has one entry for every token
# that it counts in usage.completion_tokens, as its entries have a token id and a log-probability.
#
# Instead: a token that ends inside a UTF-8 character has no entry. Where the next token completes
# the character, the entry has that token's id and log-probability but the bytes of both, so that
# the first token's log-probability is missing from any sum. Where the answer ends there
# (n_predict 1, say), "logprobs" is null, and the likeliest tokens that were asked for are nowhere.
#
# Why it matters: evaluation harnesses ask for one token and its neighbours, or add up the
# log-probabilities of an answer. Accents, Cyrillic, Chinese and emoji are often split over tokens:
# sums come out too high there, and positions are lost just where a model speaks such a language.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549

cat > "$work/main.py" <<'PYTHON'
"""A model that answers each token with a fixed one: A -> C3 -> A9 -> A. C3 A9 is "é" in UTF-8."""

import importlib.metadata
import json
import subprocess
import sys

import gguf
import numpy as np

WIDTH = 32
PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PLAIN]
# GPT-2's names of the 256 bytes: printable ones stand for themselves, the others for U+0100 ...
TOKENS = [chr(b) if b in PLAIN else chr(0x100 + OTHERS.index(b)) for b in range(256)]

PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = "model.gguf"
params.n_ctx = 64
params.n_parallel = 1
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
for count in (1, 2, 3):
    request = {"prompt": [ord("A")], "n_predict": count, "temperature": 0, "n_probs": 3}
    print(json.dumps(server.handle_completions(request)))
"""


def write(path):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(WIDTH)
    w.add_block_count(1)
    w.add_feed_forward_length(WIDTH)
    w.add_head_count(2)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(WIDTH // 2)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(TOKENS)
    w.add_token_merges(["a b"])
    embedding = np.zeros((256, WIDTH), np.float32)
    head = np.zeros((256, WIDTH), np.float32)
    for channel, (before, after) in enumerate([(0x41, 0xC3), (0xC3, 0xA9), (0xA9, 0x41)]):
        embedding[before, channel] = 1
        head[after, channel] = 0.9  # the norm makes the 1 sqrt(32): a logit of 5.1
    w.add_tensor("token_embd.weight", embedding)
    w.add_tensor("output.weight", head)
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        w.add_tensor(f"{norm}.weight", np.ones(WIDTH, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        w.add_tensor(f"blk.0.{part}.weight", np.zeros((WIDTH, WIDTH), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


for package in ("gguf", "xllamacpp"):
    print(package, importlib.metadata.version(package))
write("model.gguf")
done = subprocess.run([sys.executable, "-c", PEER], capture_output=True, text=True)
if done.returncode:
    raise SystemExit(done.stderr)
found = []
for line in done.stdout.splitlines()[-3:]:
    answer = json.loads(line)
    choice = answer["choices"][0]
    entries = (choice["logprobs"] or {"content": []})["content"]
    found.append((choice["logprobs"] is None, [(entry["id"], entry["bytes"]) for entry in entries]))
    print(f"\n{answer['usage']['completion_tokens']} tokens, text {ascii(choice['text'])}, "
          f"logprobs {'null' if choice['logprobs'] is None else f'with {len(entries)} entries'}")
    for entry in entries:
        print(f"  id {entry['id']}, bytes {entry['bytes']}, logprob {entry['logprob']:.3f}")
both = (0xA9, [0xC3, 0xA9])
as_described = found == [(True, []), (False, [both]), (False, [both, (0x41, [0x41])])]
print("\nas described" if as_described else "\nNO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
venv/bin/python main.py
