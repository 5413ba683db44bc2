"""A quantized model costs the memory of what is being decoded, whatever its number of blocks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.models import save_tokenizer
from tests.support.prequantized import change_config

DIM, FFN, VOCAB = 1024, 2048, 256
BLOCK = 4 * DIM**2 + 3 * DIM * FFN  # weights
SHAPES = {f"self_attn.{name}_proj": (DIM, DIM) for name in "qkvo"} | {
    "mlp.gate_proj": (FFN, DIM),
    "mlp.up_proj": (FFN, DIM),
    "mlp.down_proj": (DIM, FFN),
}
READ = """
import sys
from gwq_export.hf.source import Source
from gwq_export.machine import peak_rss
source = Source(sys.argv[1])
for i in range(source.layers):
    for name in source.block(i).values():
        source.tensor(name)
    print(peak_rss())
"""


def gptq_model(folder, blocks):
    """A Llama of random numbers, its matrices as GPTQ with 4 bits has them."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=True,
    )
    config.save_pretrained(folder)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    change_config(folder, quantization_config=settings)
    tensors = {
        "model.embed_tokens.weight": torch.zeros(VOCAB, DIM),
        "model.norm.weight": torch.ones(DIM),
    }
    for i in range(blocks):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = torch.ones(DIM)
        for name, (rows, cols) in SHAPES.items():
            module = f"model.layers.{i}.{name}"
            tensors[f"{module}.qweight"] = torch.randint(0, 1 << 30, (cols // 8, rows)).int()
            tensors[f"{module}.qzeros"] = torch.randint(0, 1 << 30, (cols // 128, rows // 8)).int()
            tensors[f"{module}.scales"] = torch.full((cols // 128, rows), 0.01).half()
            tensors[f"{module}.g_idx"] = torch.randint(0, cols // 128, (cols,)).int()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder, VOCAB)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_memory_does_not_grow_with_blocks(tmp_path):
    """After the first block, six others need less than half of one in float32."""
    folder = gptq_model(tmp_path, 7)
    done = subprocess.run(
        [sys.executable, "-c", READ, folder],
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"},
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == 7 and peaks[-1] - peaks[0] < 2 * BLOCK, peaks
