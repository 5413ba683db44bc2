#!/usr/bin/env bash
# 2026-11-28
#
# Expected: torchao's quantize_(model, Int8WeightOnlyConfig()) makes a Mixtral about as small as it
# makes a Mistral of the same width; a checkpoint has an ordinary matrix for each expert's gate, up
# and down projection.
#
# Instead: transformers 5 computes with all experts of a layer as two parameters of three
# dimensions, in a module that is no torch.nn.Linear, and quantize_ looks for nn.Linear. The
# experts, nearly all of the model, stay as they were, and nothing says so. The names differ, too:
# the saved file has a matrix for each expert, state_dict() has none, so that load_state_dict of the
# saved file with strict=False leaves the experts as they were initialized.
#
# Why it matters: a "quantized" mixture of experts keeps its size, and its quality looks wonderful.
# The same holds for any tool that walks over nn.Linear: quantizers, pruning, hooks for statistics.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 torchao==0.18.0 transformers==5.24.0 safetensors==0.8.0

cat > "$work/main.py" <<'PYTHON'
import importlib.metadata
import sys

import torch
from safetensors.torch import load_file
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM, MistralConfig, MixtralConfig

SHAPE = {
    "vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def mixtral():
    config = MixtralConfig(num_local_experts=8, num_experts_per_tok=2, **SHAPE)
    return AutoModelForCausalLM.from_config(config)


def share_quantized(model):
    quantize_(model, Int8WeightOnlyConfig())
    parameters = dict(model.named_parameters())
    plain = {name: p for name, p in parameters.items() if type(p.data) is torch.Tensor}
    total = sum(p.numel() for p in parameters.values())
    share = 1 - sum(p.numel() for p in plain.values()) / total
    largest = max(plain, key=lambda name: plain[name].numel())
    print(f"{type(model).__name__}: {share:.1%} of the weights quantized; "
          f"the largest that is not: {largest} {tuple(plain[largest].shape)}")
    return share


for package in ("torch", "torchao", "transformers", "safetensors"):
    print(package, importlib.metadata.version(package))
saved, fresh = mixtral(), mixtral()
saved.save_pretrained("saved")
tensors = load_file("saved/model.safetensors")
names = sorted(name for name in tensors if name.startswith("model.layers.0.") and "expert" in name)
print(f"saved file: {len(names)} tensors of experts in the first layer, such as {names[0]}")
names = [n for n in saved.state_dict() if n.startswith("model.layers.0.") and "expert" in n]
print("state_dict:", *names)
fresh.load_state_dict(tensors, strict=False)
same = {}
for part in ("mlp.experts.down_proj", "self_attn.q_proj.weight"):
    name = f"model.layers.0.{part}"
    same[part] = torch.equal(saved.state_dict()[name], fresh.state_dict()[name])
    print(f"after load_state_dict(strict=False), {name} is the saved one: {same[part]}")
dense = share_quantized(AutoModelForCausalLM.from_config(MistralConfig(**SHAPE)))
sparse = share_quantized(saved)
as_described = dense > 0.9 and sparse < 0.1 and list(same.values()) == [False, True]
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python main.py
