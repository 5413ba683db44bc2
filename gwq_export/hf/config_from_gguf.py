"""config.json of a Hugging Face folder, made from the keys of a GGUF file.

The inverse of `config_to_gguf`. What the keys do not determine is asked for, never guessed.
"""

import math

import numpy as np

from gwq_export.arch.registry import ARCHS
from gwq_export.errors import GwqError
from gwq_export.tokenizer.to_hf import special_ids


def _ask(reader, what):
    raise GwqError(
        f"{reader.path}: config.json cannot be made again from {what}: give the source model's folder with --config-from"
    )


def _class_of(arch, window):
    """The Hugging Face class of an Arch, by the row of ARCHS that says the same of windows where
    there are several.
    """
    rows = [
        (name, row)
        for name, row in ARCHS.items()
        if (row.gguf, row.experts) == (arch.gguf, arch.experts)
    ]
    return min(rows, key=lambda found: bool(found[1].window) != window)


def _config(reader, c, dtype):
    """config.json in the layout that transformers 4 and 5 read."""
    name, arch = _class_of(c.arch, any(c.windows))
    config = {
        "architectures": [name],
        "model_type": arch.model_type or arch.gguf,
        "hidden_act": arch.only["hidden_act"][0],
        "hidden_size": c.dim,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.ctx,
        arch.eps: _short(c.eps),
        "vocab_size": c.vocab,
        "tie_word_embeddings": "output.weight" not in reader.tensors,
        "attention_bias": "blk.0.attn_output.bias" in reader.tensors,
        "torch_dtype": dtype,
    }
    if arch.window:
        config[arch.window] = max(c.windows) or None
    if arch.full_every:
        config["layer_types"] = [
            "sliding_attention" if window else "full_attention" for window in c.windows
        ]
    if arch.unturned_every:
        config["no_rope_layer_interval"] = arch.unturned_every
    if arch.experts:
        config |= {
            "num_local_experts": c.experts,
            "num_experts_per_tok": c.experts_used,
            "moe_intermediate_size": c.expert_ffn,
        }
        config |= (
            {"norm_topk_prob": c.experts_normed}
            if len(arch.only.get("norm_topk_prob", ())) != 1
            else {}
        )
    if arch.parallel:
        config["use_parallel_residual"] = c.parallel
    if arch.query_scalar:
        config[arch.query_scalar] = scalar = round(c.attention_scale**-2)
        if not math.isclose(scalar**-0.5, c.attention_scale, rel_tol=1e-6):  # the key is a float32
            _ask(reader, f"the key {arch.gguf}.attention.scale = {c.attention_scale}")
    for key, own in arch.numbers.items():
        if f"{arch.gguf}.{key}" not in reader.metadata:
            _ask(reader, f"a file without the key {arch.gguf}.{key}")
        config[own] = _short(reader.metadata[f"{arch.gguf}.{key}"])
    config |= _rope(reader, c) if c.rope else {}
    ids = {
        f"{name}_token_id": id
        for name, id in special_ids(reader.metadata, "bos", "eos", "pad").items()
    }
    return {arch.names.get(key, key): value for key, value in config.items()} | ids


def _rope(reader, c):
    """Keys of rotary positions."""
    arch, rope, scaling, meta = c.arch, c.rope, {}, reader.metadata
    kind, original = (
        meta.get(f"{arch.gguf}.rope.scaling.type", "none"),
        "original_max_position_embeddings",
    )
    config = {"rope_theta": _short(rope.base)}
    if arch.swa_base:
        config[arch.swa_base] = _short(c.rope_swa.base)
    if arch.partial:
        part = rope.rotated / c.head_dim
        config["partial_rotary_factor"] = (
            part if int(part * c.head_dim) == rope.rotated else math.nextafter(part, 1)
        )
    if "rope_freqs.weight" in reader.tensors:  # llama3: three numbers became a vector
        _ask(reader, "its rope factors")
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": _short(rope.factor)}
    if kind == "yarn":
        scaling |= {
            original: rope.original,
            "beta_fast": _short(rope.beta_fast),
            "beta_slow": _short(rope.beta_slow),
        }
    if "rope_factors_long.weight" in reader.tensors:
        factors = {
            f"{name}_factor": reader.tensors[f"rope_factors_{name}.weight"].dequantize()
            for name in ("short", "long")
        }
        scaling = {"rope_type": "longrope"} | {
            name: [_short(v) for v in values] for name, values in factors.items()
        }
        scaling |= {"attention_factor": _short(rope.amplitude), original: rope.original}
        config[original] = rope.original
    return config | ({"rope_scaling": scaling} if scaling else {})


def _short(value):
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))
