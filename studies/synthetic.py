"""Write a Llama of random weights and any size, for memory and speed, where weights do not matter.

studies/synthetic FOLDER [--layers 22]             TinyLlama's shape: 1.1 billion weights, 2.2 GB
studies/synthetic FOLDER --shape 7b --layers 32    Llama 7B's: 6.7 billion, 13.5 GB (bfloat16)
studies/synthetic FOLDER --shape 7b --layers 32 --hollow    zeros without room on the disk
"""

import argparse
import json
import math
import shutil
import struct
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
SHAPES = {"1b": TINYLLAMA, "7b": LLAMA_7B}


def block_shapes(shape):
    """{name within a decoder block: shape of the tensor}."""
    hidden = shape["hidden_size"]
    ffn = shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }


def write_hollow(path, shapes):
    """A safetensors file of bfloat16 zeros, {name: shape}, with a hole in place of its data."""
    header, end = {}, 0
    for name, dims in shapes.items():
        begin, end = end, end + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_llama(folder, layers=22, shape=None, seed=0, hollow=False):
    """Write a Hugging Face folder with one bfloat16 shard per decoder block.

    shape: as TINYLLAMA. hollow: of zeros, which take no room. Returns the number of parameters.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or TINYLLAMA
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    params = 0

    def random(dims):
        values = (
            torch.ones(dims) if len(dims) == 1 else torch.randn(dims, generator=generator) * 0.02
        )
        return values.to(torch.bfloat16)

    def save(file, shapes):
        nonlocal params
        params += sum(map(math.prod, shapes.values()))
        weight_map.update(dict.fromkeys(shapes, file))
        if hollow:
            write_hollow(folder / file, shapes)
        else:
            save_file({name: random(dims) for name, dims in shapes.items()}, folder / file)

    hidden, vocab = shape["hidden_size"], shape["vocab_size"]
    ends = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    save("ends.safetensors", ends)
    for i in range(layers):
        names = {f"model.layers.{i}.{n}.weight": dims for n, dims in block_shapes(shape).items()}
        save(f"block-{i:02}.safetensors", names)

    config = shape | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "dtype": "bfloat16",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
    }
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(REFERENCE / name, folder / name)
    return params


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder")
    p.add_argument("--layers", type=int, default=22)
    p.add_argument("--shape", choices=SHAPES, default="1b")
    p.add_argument("--hollow", action="store_true", help="zeros that take no room on the disk")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    count = write_llama(args.folder, args.layers, SHAPES[args.shape], hollow=args.hollow)
    print(f"{count / 1e9:.3f} billion parameters in {args.folder}")


if __name__ == "__main__":
    main()
