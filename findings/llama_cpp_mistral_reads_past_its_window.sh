#!/usr/bin/env bash
# 2026-11-28
#
# Expected: a Mistral model (v0.1: sliding_window 4096 in config.json) sees, in every block, the
# last `sliding_window` tokens only. GGUF has the key ARCH.attention.sliding_window; a Mistral file
# is of the architecture "llama", so that its key is llama.attention.sliding_window.
#
# Instead: llama.cpp reads no such key for "llama" and attends to the whole context. In a model of
# one block with a window of 16, the answer after 100 tokens depends on the first token.
#
# Why it matters: beyond the window, llama.cpp computes another function than the one that was
# trained and that transformers computes; comparing a quantized file with the original on longer
# texts then shows a difference that no quantization made. The key in the file does not help.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549

cat > "$work/main.py" <<'PYTHON'
"""Random models of one block and a window of 16; the same weights as "llama" and as "gemma2"."""

import importlib.metadata
import json
import subprocess
import sys

import gguf
import numpy as np

WIDTH, HEADS, WINDOW, TOKENS = 64, 4, 16, 256
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = {
    "llama": ("attn_norm", "ffn_norm"),
    "gemma2": ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
}
PROMPT = [(7 * i) % TOKENS for i in range(100)]

PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = "model.gguf"
params.n_ctx = 128
params.n_parallel = 1
params.cpuparams.n_threads = 1
prompts = json.loads(sys.argv[1])
server = xllamacpp.Server(params)
for prompt in prompts:
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 256}
    answer = server.handle_completions({**request, "cache_prompt": False})
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    print(json.dumps({token["id"]: token["logprob"] for token in top}))
"""


def write(arch, window):
    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter("model.gguf", arch)
    w.add_context_length(128)
    w.add_embedding_length(WIDTH)
    w.add_block_count(1)
    w.add_feed_forward_length(WIDTH)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_key_length(WIDTH // HEADS)
    w.add_value_length(WIDTH // HEADS)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_layer_norm_rms_eps(1e-6)
    if window:
        w.add_sliding_window(window)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(50.0)
        w.add_final_logit_softcapping(30.0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"t{i}" for i in range(TOKENS)])
    w.add_token_merges(["t 0"])
    embedding = rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    w.add_tensor("token_embd.weight", embedding / np.float32(4))
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for name in MATRICES:
        matrix = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        w.add_tensor(f"blk.0.{name}.weight", matrix / np.float32(4))
    for name in NORMS[arch]:
        w.add_tensor(f"blk.0.{name}.weight", np.ones(WIDTH, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def change_by_the_first_token(arch, window):
    write(arch, window)
    prompts = json.dumps([PROMPT, [200, *PROMPT[1:]]])
    done = subprocess.run([sys.executable, "-c", PEER, prompts], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    one, other = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    apart = max(abs(one[token] - other[token]) for token in one)
    print(f"{arch}, sliding_window {window}: with another first token of {len(PROMPT)}, the "
          f"log-probabilities of the next change by up to {apart:.6f}")
    return apart


for package in ("gguf", "xllamacpp"):
    print(package, importlib.metadata.version(package))
as_described = all(
    [
        change_by_the_first_token("gemma2", 128) > 1e-4,
        change_by_the_first_token("gemma2", WINDOW) < 1e-6,  # there the key does what it says
        change_by_the_first_token("llama", None) > 1e-2,
        change_by_the_first_token("llama", WINDOW) > 1e-2,
    ]
)
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
venv/bin/python main.py
