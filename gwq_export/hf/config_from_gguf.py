"""config.json of a Hugging Face folder, made from the keys of a GGUF file.

The inverse of `config_to_gguf`. What the keys do not determine is asked for, never guessed.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from gwq_export.arch.config import Config
from gwq_export.arch.registry import ARCHS
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.hf.model_config import ADJUSTED_FFN, SHARED_FFN
from gwq_export.hf.rope_to_gguf import GROWTH, ORIGINAL, PARTIAL, STILL
from gwq_export.tokenizer.to_hf import special_ids


def config_json(
    reader: Reader,
    c: Config,
    dtype: str,
    remedy: str = "give the source model's folder with --config-from",
    any_factors: bool = False,
) -> dict[str, Any]:
    """config.json in the layout that transformers 4 and 5 read.

    reader: the open file; c: its Config; dtype: torch's name of the weights' type. Raises GwqError,
    which ends in `remedy`, for what the keys do not determine. any_factors: write the divisors of
    llama3's scaling as longrope's, with which transformers computes the same, instead of refusing
    them: for a config that stays in memory.
    """
    name, arch = _class_of(c.arch, any(c.windows))
    config: dict[str, Any] = {
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
        "attention_bias": any(
            n.endswith((".attn_q.bias", ".attn_qkv.bias")) for n in reader.tensors
        ),
        "torch_dtype": dtype,
    }
    if arch.window:
        config[arch.window] = max(c.windows) or None
    if arch.full_every or arch.windows_listed:
        config["layer_types"] = [
            "sliding_attention" if window else "full_attention" for window in c.windows
        ]
    if arch.kinds:
        attention = {False: "full_attention", True: "sliding_attention"}
        config["layer_types"] = [
            attention[window > 0] if kind == "attention" else kind
            for kind, window in zip(c.kinds, c.windows, strict=True)
        ]
        config |= {"conv_L_cache": c.taps, ADJUSTED_FFN: False}
    for key, tensor in arch.present.items():
        config[key] = any(name.endswith(f".{tensor}") for name in reader.tensors)
    if arch.unturned_every:
        config["no_rope_layer_interval"] = arch.unturned_every
    if arch.experts:
        config["num_local_experts"] = c.experts
        config["num_experts_per_tok"] = c.experts_used
        config["moe_intermediate_size"] = c.expert_ffn
        if any("shared_ffn" in row.shape for row in arch.block):
            config[SHARED_FFN] = c.shared_ffn
        if len(arch.only.get("norm_topk_prob", ())) != 1:  # else the architecture fixes it
            config["norm_topk_prob"] = c.experts_normed
    if f"{arch.gguf}.use_parallel_residual" in reader.metadata:
        config["use_parallel_residual"] = c.parallel
    if arch.query_scalar:
        scalar = round(c.attention_scale**-2)
        config[arch.query_scalar] = scalar
        if not math.isclose(scalar**-0.5, c.attention_scale, rel_tol=1e-6):  # the key is a float32
            what = f"the key {arch.gguf}.attention.scale = {c.attention_scale}"
            _ask(reader, what, remedy)
    for key, config_key in arch.numbers.items():
        if f"{arch.gguf}.{key}" not in reader.metadata:
            _ask(reader, f"a file without the key {arch.gguf}.{key}", remedy)
        config[config_key] = _short(reader.metadata[f"{arch.gguf}.{key}"])
    if c.rope is not None:
        proportional = "proportional" in arch.rope_kinds
        if "rope_freqs.weight" in reader.tensors and not (any_factors or proportional):
            # three numbers of a config became a vector
            _ask(reader, "its rope factors", remedy)
        config |= _rope(reader, c)
    config = {arch.names.get(key, key): value for key, value in config.items()}
    ids = special_ids(reader.metadata, "bos", "eos", "pad")
    return config | {f"{name}_token_id": id for name, id in ids.items()}


def _ask(reader: Reader, what: str, remedy: str) -> NoReturn:
    raise GwqError(f"{reader.path}: config.json cannot be made again from {what}: {remedy}")


def _class_of(arch: Arch, windowed: bool) -> tuple[str, Arch]:
    """The Hugging Face class of an Arch, and its row of ARCHS.

    Where there are several, the first that says the same of windows, or the first.
    """
    rows = [
        (name, row)
        for name, row in ARCHS.items()
        if (row.gguf, row.experts, row.export_only) == (arch.gguf, arch.experts, False)
    ]
    return min(rows, key=lambda named: bool(named[1].window) != windowed)


def _rope(reader: Reader, c: Config) -> dict[str, Any]:
    """Keys of rotary positions."""
    assert c.rope is not None and c.rope_swa is not None
    arch = c.arch
    rope = c.rope
    kind = reader.metadata.get(f"{arch.gguf}.rope.scaling.type", "none")
    config: dict[str, Any] = {"rope_theta": _short(rope.base)}
    if arch.swa_base:
        config[arch.swa_base] = _short(c.rope_swa.base)
    if arch.partial:
        part = rope.rotated / c.head_dim
        if int(part * c.head_dim) != rope.rotated:
            part = math.nextafter(part, 1)
        config["partial_rotary_factor"] = part
    scaling: dict[str, Any] = {}
    if kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": _short(rope.factor)}
    if kind == "yarn":
        scaling[ORIGINAL] = rope.original
        scaling["beta_fast"] = _short(rope.beta_fast)
        scaling["beta_slow"] = _short(rope.beta_slow)
        divided = reader.metadata.get(f"{arch.gguf}.rope.scaling.yarn_log_multiplier")
        if divided:
            scaling |= {"mscale": 1.0, "mscale_all_dim": _short(divided)}
    divisors = {
        name: reader.tensors[tensor].dequantize()
        for name in ("short", "long")
        for tensor in (f"rope_factors_{name}.weight", "rope_freqs.weight")
        if tensor in reader.tensors
    }
    if divisors and "proportional" in arch.rope_kinds:
        turned = int((divisors["short"] < STILL).sum())
        scaling = {"rope_type": "proportional", PARTIAL: 2 * turned / rope.rotated}
    elif divisors:
        scaling = {f"{name}_factor": [_short(v) for v in divisors[name]] for name in divisors}
        scaling |= {"rope_type": "longrope", "attention_factor": _short(rope.amplitude)}
        scaling[ORIGINAL] = rope.original
        config[ORIGINAL] = rope.original
    if arch.queries_grow:
        scaling[GROWTH] = _short(rope.growth)
    if arch.swa_rope and not arch.swa_base:
        full = {"rope_type": "default"} | scaling | config
        sliding = {"rope_type": "default", "rope_theta": _short(c.rope_swa.base)}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _short(value: float | np.floating) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))
