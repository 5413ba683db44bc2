#!/usr/bin/env bash
# 2026-11-28
#
# Expected: llama.cpp scales the attention scores of a Gemma 2 file as its model does: by
# query_pre_attn_scalar of the Hugging Face config, for which GGUF has the key
# ARCH.attention.scale. And a block whose output matrices are zero changes nothing.
#
# Instead: the key is not read. llama.cpp takes the number of blocks to tell it which of Google's
# models this is: with 46 (as Gemma 2 27B) scores are divided by sqrt(width / heads), with any other
# number by sqrt(head dimension). One idle block more makes another model of a file of 45.
#
# Why it matters: Gemma 2 models trained with another scalar, and 27B models with a block pruned or
# doubled, load without a word and compute something else.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549

cat > "$work/main.py" <<'PYTHON'
"""A random Gemma 2 of width 64, 4 heads of 32: sqrt(width / heads) is 4, sqrt(head) is 5.66."""

import importlib.metadata
import json
import subprocess
import sys

import gguf
import numpy as np

WIDTH, HEADS, HEAD, TOKENS = 64, 4, 32, 256
MATRICES = {
    "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (HEADS * HEAD, WIDTH),
    "attn_v": (HEADS * HEAD, WIDTH), "attn_output": (WIDTH, HEADS * HEAD),
    "ffn_gate": (WIDTH, WIDTH), "ffn_up": (WIDTH, WIDTH), "ffn_down": (WIDTH, WIDTH),
}  # fmt: skip
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")

PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = "model.gguf"
params.n_ctx = 64
params.n_parallel = 1
params.cpuparams.n_threads = 1
request = {"prompt": list(range(100, 120)), "n_predict": 1, "temperature": 0, "n_probs": 256}
answer = xllamacpp.Server(params).handle_completions(request)
top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps({token["id"]: token["logprob"] for token in top}))
"""


def log_probabilities(blocks, scale=None, query_factor=1.0):
    """Of a model of two blocks, and idle ones up to `blocks`; queries times query_factor."""
    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter("model.gguf", "gemma2")
    w.add_context_length(64)
    w.add_embedding_length(WIDTH)
    w.add_block_count(blocks)
    w.add_feed_forward_length(WIDTH)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_attn_logit_softcapping(50.0)
    w.add_final_logit_softcapping(30.0)
    w.add_sliding_window(64)
    if scale is not None:
        w.add_attention_scale(scale)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"t{i}" for i in range(TOKENS)])
    w.add_token_merges(["t 0"])
    embedding = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    w.add_tensor("token_embd.weight", embedding / np.float32(4))
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for block in range(blocks):
        for name, shape in MATRICES.items():
            matrix = rng.standard_normal(shape) / 3 if block < 2 else np.zeros(shape)
            factor = query_factor if name == "attn_q" else 1
            w.add_tensor(f"blk.{block}.{name}.weight", (factor * matrix).astype(np.float32))
        for name in NORMS:
            w.add_tensor(f"blk.{block}.{name}.weight", np.ones(WIDTH, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    done = subprocess.run([sys.executable, "-c", PEER], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return np.array([found[str(i)] for i in range(TOKENS)])


def compare(text, one, other):
    apart = np.abs(one - other).max()
    print(f"{text}: largest difference of {TOKENS} log-probabilities {apart:.4f}")
    return apart


for package in ("gguf", "xllamacpp"):
    print(package, importlib.metadata.version(package))
plain = log_probabilities(45)
as_described = all(
    [
        compare("44 blocks and 45, one more idle", log_probabilities(44), plain) < 0.02,
        compare("45 blocks and 47, two more idle", log_probabilities(47), plain) < 0.02,
        compare("45 blocks and 46, one more idle", log_probabilities(46), plain) > 0.2,
        compare(
            "45 blocks with queries times sqrt(32 / 16), and 46 blocks",
            log_probabilities(45, query_factor=2**0.5),
            log_probabilities(46),
        ) < 0.02,
        compare(
            "45 blocks, attention.scale 1/4 and 1/16",
            log_probabilities(45, scale=1 / 4),
            log_probabilities(45, scale=1 / 16),
        ) < 1e-6,
    ]
)  # fmt: skip
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
venv/bin/python main.py
