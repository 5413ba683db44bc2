#!/usr/bin/env bash
# 2026-11-30
#
# Expected: a model that compressed-tensors has packed (pack-quantized, 4 bits, groups of 32) and
# saved loads again with transformers, with zero points as without them.
#
# Instead: with zero points (symmetric=False) from_pretrained raises RuntimeError about mismatched
# sizes. The file has weight_zero_point packed, (rows x bits / 32, groups), but the model that is
# made for it on the meta device has it unpacked, (rows, groups): compress() packs zero points, its
# branch for meta tensors does not. With CompressedTensorsConfig(dequantize=True) the model loads.
#
# Why it matters: asymmetric 4-bit checkpoints (AWQ by llm-compressor, for instance) look damaged
# though they are not; whoever compares with transformers has to ask for dequantize=True.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 \
  transformers==5.24.0 compressed-tensors==0.20.1 accelerate==1.15.0

cat > "$work/main.py" <<'PYTHON'
import importlib.metadata
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging
from transformers.utils.quantization_config import CompressedTensorsConfig

for package in ("torch", "transformers", "compressed-tensors"):
    print(package, importlib.metadata.version(package))
logging.disable_progress_bar()
logging.set_verbosity_error()


def save(folder, symmetric):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=4,
        )
    )  # fmt: skip
    weights = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="compressed",
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.detach().unflatten(1, (-1, 32))
            low, high = groups.amin(2), groups.amax(2)
            scale = groups.abs().amax(2) / 7 if symmetric else (high - low) / 15
            module.weight_scale.data = scale
            if not symmetric:
                module.weight_zero_point.data = (-8 - low / scale).round().to(torch.int8)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


found = []
for symmetric in (True, False):
    folder = Path("saved") / ("symmetric" if symmetric else "asymmetric")
    save(folder, symmetric)
    for options in ({}, {"quantization_config": CompressedTensorsConfig(dequantize=True)}):
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
            model(torch.tensor([[1, 2, 3]]))
            result = "loads"
        except RuntimeError as e:
            result = f"RuntimeError({str(e)[:60]!r}...)"
        print(f"{folder.name}, dequantize={bool(options)}: {result}")
        found.append(result == "loads")
as_described = found == [True, True, False, True]
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python main.py
