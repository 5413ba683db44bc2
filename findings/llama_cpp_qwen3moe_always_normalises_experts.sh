#!/usr/bin/env bash
# 2026-11-28
#
# Expected: llama.cpp computes a Qwen3-MoE model as transformers does. Qwen3MoeConfig has a switch,
# norm_topk_prob: whether the router's weights of the chosen experts are scaled so that they add up
# to one. It is False by default. GGUF has a key for it: ARCH.expert_weights_norm.
#
# Instead: llama.cpp scales them for every file of the architecture qwen3moe. A model with
# norm_topk_prob=False gets other probabilities, and expert_weights_norm = false in the file changes
# nothing. No warning says so.
#
# Why it matters: whoever trains a Qwen3-MoE model with the class's own defaults, converts it and
# measures the GGUF file blames the quantization for a loss that the router's arithmetic makes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.24.0 gguf==0.19.0 xllamacpp==2026.10.11549

cat > "$work/peer.py" <<'PYTHON'
"""peer.py FILE: llama.cpp's log-probabilities of the next token, as JSON {id: value}."""
import json
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 128
params.n_parallel = 1
params.cpuparams.n_threads = 1
request = {"prompt": list(range(40, 70)), "n_predict": 1, "temperature": 0, "n_probs": 256}
answer = xllamacpp.Server(params).handle_completions(request)
top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps({token["id"]: token["logprob"] for token in top}))
PYTHON

cat > "$work/main.py" <<'PYTHON'
import importlib.metadata
import json
import subprocess
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

ARCH, BLOCKS, WIDTH, HEADS, KV_HEADS, EXPERTS, USED = "qwen3moe", 2, 64, 4, 2, 8, 2
NAMES = {  # of a block: transformers -> GGUF
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(path, model, weights_norm):
    w = gguf.GGUFWriter(path, ARCH)
    w.add_context_length(128)
    w.add_embedding_length(WIDTH)
    w.add_block_count(BLOCKS)
    w.add_feed_forward_length(64)
    w.add_expert_feed_forward_length(64)
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(USED)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(16)
    w.add_value_length(16)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(10000.0)
    if weights_norm is not None:
        w.add_expert_weights_norm(weights_norm)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"t{i}" for i in range(256)])
    w.add_token_merges(["t 0"])
    for name, value in model.state_dict().items():
        array = value.numpy()
        name = name.removesuffix(".weight")
        if name in ENDS:
            w.add_tensor(f"{ENDS[name]}.weight", array)
            continue
        block, part = name.removeprefix("model.layers.").split(".", 1)
        if part == "mlp.experts.gate_up_proj":
            for matrix, half in zip(("gate", "up"), np.split(array, 2, axis=1)):
                half = np.ascontiguousarray(half)
                w.add_tensor(f"blk.{block}.ffn_{matrix}_exps.weight", half)
        elif part == "mlp.experts.down_proj":
            w.add_tensor(f"blk.{block}.ffn_down_exps.weight", array)
        else:
            w.add_tensor(f"blk.{block}.{NAMES[part]}.weight", array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_cpp(path):
    done = subprocess.run([sys.executable, "peer.py", path], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return np.array([found[str(i)] for i in range(256)])


def transformers_log_probabilities(model):
    with torch.no_grad():
        logits = model(torch.arange(40, 70)[None]).logits[0, -1]
    return torch.log_softmax(logits, -1).numpy()


torch.set_num_threads(1)
for package in ("torch", "transformers", "gguf", "xllamacpp"):
    print(package, importlib.metadata.version(package))
print("norm_topk_prob of Qwen3MoeConfig by default:", Qwen3MoeConfig().norm_topk_prob)
apart = {}
for norm in (True, False):
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=256, hidden_size=WIDTH, moe_intermediate_size=64, intermediate_size=64,
        num_hidden_layers=BLOCKS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        head_dim=16, num_experts=EXPERTS, num_experts_per_tok=USED, max_position_embeddings=128,
        initializer_range=0.2, rms_norm_eps=1e-6, norm_topk_prob=norm,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    reference = transformers_log_probabilities(model)
    for key in (None, norm):
        write("model.gguf", model, key)
        apart[norm, key] = np.abs(llama_cpp("model.gguf") - reference).max()
        print(f"norm_topk_prob={norm}, expert_weights_norm={'absent' if key is None else key}: "
              f"largest difference of 256 log-probabilities {apart[norm, key]:.4f}")
same = max(apart[True, None], apart[True, True])
other = min(apart[False, None], apart[False, False])
as_described = same < 0.05 and other > 1 and Qwen3MoeConfig().norm_topk_prob is False
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python main.py
