"""A Llama of random weights and any size, written shard by shard: for memory and speed, where
weights do not matter.

python tests/synthetic.py FOLDER [--layers 22]                TinyLlama's shape: 1.1 billion
parameters, 2.2 GB in bfloat16 python tests/synthetic.py FOLDER --shape 7b --layers 32       Llama
7B's: 6.7 billion, 13.5 GB
"""

import argparse
import json
import shutil
from pathlib import Path

from studies.paths import REFERENCE

TINYLLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}


def write_llama(folder, layers=22, shape=None, seed=0):
    """A Hugging Face folder with one bfloat16 shard per decoder block; returns the number of
    parameters.
    """
    import torch
    from safetensors.torch import save_file

    folder, s = Path(folder), shape or TINYLLAMA
    folder.mkdir(parents=True, exist_ok=True)
    generator, h, f = torch.Generator().manual_seed(seed), s["hidden_size"], s["intermediate_size"]
    kv = h // s["num_attention_heads"] * s["num_key_value_heads"]
    weight_map, params = {}, 0

    def save(file, shapes):
        nonlocal params
        tensors = {
            n: torch.ones(d) if len(d) == 1 else torch.randn(d, generator=generator) * 0.02
            for n, d in shapes.items()
        }
        tensors = {n: t.to(torch.bfloat16) for n, t in tensors.items()}
        params += sum(t.numel() for t in tensors.values())
        weight_map.update(dict.fromkeys(tensors, file))
        save_file(tensors, folder / file)

    save(
        "ends.safetensors",
        {
            "model.embed_tokens.weight": (s["vocab_size"], h),
            "lm_head.weight": (s["vocab_size"], h),
            "model.norm.weight": (h,),
        },
    )
    for i in range(layers):
        attention = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
        mlp = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
        names = {f"self_attn.{n}": d for n, d in attention.items()} | {
            f"mlp.{n}": d for n, d in mlp.items()
        }
        names |= {"input_layernorm": (h,), "post_attention_layernorm": (h,)}
        save(
            f"block-{i:02}.safetensors",
            {f"model.layers.{i}.{n}.weight": d for n, d in names.items()},
        )
    config = s | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "dtype": "bfloat16",
    }
    config |= {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(REFERENCE / name, folder / name)
    return params


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--shape", choices=("1b", "7b"), default="1b")
    args = parser.parse_args()
    count = write_llama(args.folder, args.layers, {"1b": TINYLLAMA, "7b": LLAMA_7B}[args.shape])
    print(f"{count / 1e9:.3f} billion parameters in {args.folder}")
