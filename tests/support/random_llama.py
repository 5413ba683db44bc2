"""Llamas of random tiles, written at once: for speed, and for checks that need no sense."""

import numpy as np

from gwq_export.bench.cases import random_bytes
from gwq_export.format.types import HEAD, TYPES
from gwq_export.format.writer import Writer

TINY = {"dim": 256, "ffn": 768, "heads": 4, "kv_heads": 2, "vocab": 1024}
LLAMA_1B = {"dim": 2048, "ffn": 5632, "heads": 32, "kv_heads": 4, "vocab": 32000}
LLAMA_7B = {"dim": 4096, "ffn": 11008, "heads": 32, "kv_heads": 32, "vocab": 32000}
SIZE = 0.02  # of weights, about


def matrices(shape, layers):
    """{name in the file: (rows, columns)}"""
    dim, ffn, vocab = shape["dim"], shape["ffn"], shape["vocab"]
    kv = dim // shape["heads"] * shape["kv_heads"]
    block = {
        "attn_q": (dim, dim),
        "attn_k": (kv, dim),
        "attn_v": (kv, dim),
        "attn_output": (dim, dim),
        "ffn_gate": (ffn, dim),
        "ffn_up": (ffn, dim),
        "ffn_down": (dim, ffn),
    }
    found = {"token_embd.weight": (vocab, dim), "output.weight": (vocab, dim)}
    if experts := shape.get("experts"):
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            block[f"{name}_exps"] = (experts, *block.pop(name))
    for i in range(layers):
        found |= {f"blk.{i}.{name}.weight": dims for name, dims in block.items()}
    return found


def random_weights(type, dims, outliers, rng):
    """(bytes, side-table or None) of a matrix whose weights are about SIZE."""
    if type.name == "f16":
        return (rng.standard_normal(dims) * SIZE).astype(np.float16).view(np.uint8).ravel(), None
    if len(dims) > 2:  # a matrix of each expert
        parts = [random_weights(type, dims[1:], 0, rng)[0] for _ in range(dims[0])]
        return np.concatenate(parts), None
    data, table = random_bytes(type, dims, outliers, rng)
    if type.bits:  # entries times scales are about 300
        scales = data[HEAD : HEAD + 2 * -(-dims[0] // 16) * 16].view(np.float16)
        scales[: dims[0]] = SIZE / 300 * rng.choice([-1, 1], dims[0])
        scales[dims[0] :] = 0
        data[HEAD + 2 * len(scales) : type.head_bytes(dims[0])] = 0
    if table is not None:
        count = (len(table[0]) - 16 * (len(table[1]) - 1) * -(-dims[1] // 256)) // 3
        assert count > 0
    return data, table


def write_llama(path, shape, layers, type, outliers, keys=()):
    """A GGUF file; matrices of one shape have the same bytes, a copy each.

    shape: as TINY; "experts" makes the feed-forward layers mixtures of so many, two for a token.
    keys: {name: value} of more keys, such as a tokenizer's.
    """
    rng = np.random.default_rng(0)
    kind = TYPES[type]
    found = matrices(shape, layers)
    made = {dims: random_weights(kind, dims, outliers, rng) for dims in set(found.values())}
    dim = shape["dim"]
    norms = ["output_norm.weight"]
    norms += [f"blk.{i}.{n}_norm.weight" for i in range(layers) for n in ("attn", "ffn")]
    tensors = [(name, TYPES["f32"], (dim,)) for name in norms]
    data = dict.fromkeys(norms, np.ones(dim, np.float32))
    experts = shape.get("experts", 0)
    for name in [f"blk.{i}.ffn_gate_inp.weight" for i in range(layers if experts else 0)]:
        tensors.append((name, TYPES["f32"], (experts, dim)))
        data[name] = rng.standard_normal((experts, dim)).astype(np.float32)
    for name, dims in found.items():
        weights, table = made[dims]
        tensors.append((name, kind, dims))
        data[name] = weights
        if table is not None:
            for suffix, stored, array in (
                (".outliers", "i8", table[0]),
                (".outlier_offsets", "i32", table[1]),
            ):
                tensors.append((name + suffix, TYPES[stored], array.shape))
                data[name + suffix] = array
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": np.uint32(2048),
        "llama.embedding_length": np.uint32(dim),
        "llama.block_count": np.uint32(layers),
        "llama.feed_forward_length": np.uint32(shape["ffn"]),
        "llama.attention.head_count": np.uint32(shape["heads"]),
        "llama.attention.head_count_kv": np.uint32(shape["kv_heads"]),
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.rope.freq_base": np.float32(1e4),
        "llama.rope.dimension_count": np.uint32(dim // shape["heads"]),
        "llama.vocab_size": np.uint32(shape["vocab"]),
    }
    if experts:
        metadata |= {
            "llama.expert_count": np.uint32(experts),
            "llama.expert_used_count": np.uint32(2),
        }
    with Writer(path, metadata | dict(keys), tensors) as writer:
        for name, _, _ in tensors:
            writer.write(name, data[name])
