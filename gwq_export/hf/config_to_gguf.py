"""A Hugging Face config as the GGUF keys that llama.cpp's tools expect."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from gwq_export.errors import GwqError

log = logging.getLogger("gwq_export")


@dataclass(frozen=True)
class _Rope:
    """What a config says of rotary positions.

    swa_base: base frequency of blocks with a window of their own, which scale nothing.
    """

    base: float
    kind: str
    values: dict
    swa_base: float
    rotated: int  # how many of a head's values turn


def _rope(source):
    """The _Rope of the config layouts of transformers 4 and 5."""
    config, arch = source.config, source.arch
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise GwqError(f"{source.folder}/config.json: rope scaling is {rope!r}, expected an object")
    local = rope.get("sliding_attention") or {}
    rope = rope.get("full_attention") or rope
    if (local.get("rope_type") or "default") != "default":
        raise GwqError(
            f"{source.folder}: rope scaling {local['rope_type']!r} of blocks with a window is not supported"
        )
    base = source.number(
        rope.get("rope_theta") or config.get("rope_theta") or 10000.0, "rope_theta"
    )
    swa_base = source.number(
        local.get("rope_theta") or config.get(arch.swa_base) or base, arch.swa_base or "rope_theta"
    )
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in arch.rope_kinds:
        raise GwqError(
            f"{source.folder}: rope scaling {kind!r} is not supported for {arch.gguf} by this version"
        )
    part = source.number(
        rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1,
        "partial_rotary_factor",
    )
    rotated = int(source.dims["head"] * part)  # rounded down, as transformers and llama.cpp have it
    if not (part == 1 or arch.partial) or part > 1 or rotated < 2:
        raise GwqError(
            f"{source.folder}: partial_rotary_factor {part:g} is not supported for {arch.gguf}"
        )
    if (
        rotated % 2
    ):  # transformers then turns one more, by frequencies of the odd number; llama.cpp stops
        raise GwqError(
            f"{source.folder}: partial_rotary_factor {part:g} turns {rotated} of a head's {source.dims['head']} values, and GGUF"
            " files can only have an even number turned: this model cannot be exported"
        )
    return _Rope(base, kind, rope, swa_base, rotated)


def rope_factors(source):
    """{tensor name: divisors of the rope frequencies, float32 (rotated / 2)} of llama3 and longrope
    scaling.

    Llama 3.1's rule: long wavelengths are slowed by `factor`, short ones kept, those between are
    blended. longrope has two lists, for contexts up to the original one and longer ones.
    """
    rope = _rope(source)
    if rope.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": _divisors(source, rope, f"{name}_factor")
            for name in ("long", "short")
        }
    if rope.kind != "llama3":
        return {}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (source.number(rope.values.get(name), name) for name in names)
    if low >= high:
        raise GwqError(
            f"{source.folder}/config.json: low_freq_factor {low} is not below high_freq_factor {high}"
        )
    wavelength = (
        2 * math.pi * rope.base ** (np.arange(0, rope.rotated, 2, dtype=np.float64) / rope.rotated)
    )
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: slowed, 1: kept
    return {"rope_freqs.weight": (1 / ((1 - blend) / factor + blend)).astype(np.float32)}


def _divisors(source, rope, key):
    values = rope.values.get(key)
    if not isinstance(values, list) or len(values) != rope.rotated // 2:
        raise GwqError(
            f"{source.folder}/config.json: {key} of the rope scaling is not a list of {rope.rotated // 2} numbers"
        )
    return np.array([source.number(v, key) for v in values], np.float32)


def _rope_keys(source):
    """Keys of rotary positions."""
    rope, original = _rope(source), "original_max_position_embeddings"
    keys = {"rope.dimension_count": rope.rotated, "rope.freq_base": rope.base}
    if rope.swa_base != rope.base:
        keys["rope.freq_base_swa"] = rope.swa_base
    if rope.kind in ("linear", "yarn"):
        keys |= {
            "rope.scaling.type": rope.kind,
            "rope.scaling.factor": source.number(rope.values.get("factor"), "factor"),
        }
    if rope.kind in ("yarn", "longrope"):
        longest = source.dims["ctx"]
        before = source.number(
            rope.values.get(original) or source.config.get(original) or longest, original
        )
        keys["rope.scaling.original_context_length"] = int(before)
    if rope.kind == "yarn":
        _check_yarn(source, rope.values, keys["rope.scaling.factor"])
        for key in ("beta_fast", "beta_slow"):
            if rope.values.get(key) is not None:
                keys[f"rope.scaling.yarn_{key}"] = source.number(rope.values[key], key)
    if rope.kind == "longrope":
        factor = source.number(rope.values.get("factor") or longest / before, "factor")
        usual = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
        keys["rope.scaling.attn_factor"] = source.number(
            rope.values.get("attention_factor") or usual, "attention_factor"
        )
    return keys


def _check_yarn(source, values, factor):
    """Only what stock files can say: cos and sin scaled by 0.1 ln(factor) + 1, and whole dimensions
    as the ramp's ends.
    """
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    for key, fine in [
        ("attention_factor", lambda v: v is None or v == usual),
        ("mscale", lambda v: not v),
        ("mscale_all_dim", lambda v: not v),
        ("truncate", lambda v: v in (None, True)),
    ]:
        if not fine(values.get(key)):
            raise GwqError(
                f"{source.folder}: {key} = {values[key]!r} of rope scaling 'yarn' is not supported"
            )


def _full_every(source):
    """Arch.full_every of this config, where the architecture mixes windows and full attention."""
    found = source.config.get("layer_types") or ()
    if "full_attention" in found:
        return found.index("full_attention") + 1
    return source.integer("sliding_window_pattern", source.arch.full_every)


def _attention_keys(source):
    """Which blocks see a window, and how scores are scaled.

    Raises GwqError for blocks in another order.
    """
    config, arch, keys = source.config, source.arch, {}
    windowed = bool(arch.window and config.get(arch.window))
    every = _full_every(source) if windowed and arch.full_every else arch.full_every
    kinds = [windowed and arch.sliding(i, every) for i in range(source.layers)]
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in kinds]
    if (config.get("layer_types") or kinds) != kinds:
        raise GwqError(
            f"{source.folder}: layer_types = {config['layer_types']} is not supported for {arch.gguf}"
        )
    if step := arch.unturned_every and source.integer(
        "no_rope_layer_interval", arch.unturned_every
    ):
        turned = config.get("no_rope_layers") or [
            int((i + 1) % step != 0) for i in range(source.layers)
        ]
        if turned != [int(arch.turned(i)) for i in range(source.layers)]:
            raise GwqError(
                f"{source.folder}: no_rope_layers = {turned} is not supported for {arch.gguf}"
            )
    if windowed:
        keys["attention.sliding_window"] = source.integer(arch.window)
    if every != arch.full_every:
        keys["attention.sliding_window_pattern"] = every
    if arch.query_scalar:
        scalar = source.number(config[arch.query_scalar], arch.query_scalar)
        if scalar != source.dims["head"]:
            keys["attention.scale"] = scalar**-0.5
    return keys


def config_keys(source):
    """Hyperparameters under the stock keys of the architecture."""
    config, arch, dims = source.config, source.arch, source.dims
    keys = {
        "context_length": dims["ctx"],
        "embedding_length": dims["dim"],
        "block_count": source.layers,
        "feed_forward_length": dims["ffn"],
        "attention.head_count": source.heads["heads"],
        "attention.head_count_kv": source.heads["kv_heads"],
        "attention.key_length": dims["head"],
        "attention.value_length": dims["head"],
        f"attention.layer_norm_{'' if arch.layer_norm else 'rms_'}epsilon": source.number(
            config.get(arch.eps, 1e-6), arch.eps
        ),
    }
    keys |= _expert_keys(source) if arch.experts else {}
    rope = _rope_keys(source) if arch.rope else {}
    keys |= {
        key: rope.pop(key) for key in ("rope.dimension_count", "rope.freq_base") if key in rope
    }
    keys["vocab_size"] = source.vocab
    keys |= _attention_keys(source) | rope
    for key, own in arch.numbers.items():
        if own in arch.defaults or config.get(own) is not None:
            keys[key] = source.number(config.get(own), own)
    if arch.parallel:
        keys["use_parallel_residual"] = bool(config.get("use_parallel_residual", True))
    return {f"{arch.gguf}.{key}": value for key, value in keys.items()}


def _expert_keys(source):
    """Keys of a mixture of experts."""
    experts, used, normed = (
        source.dims["experts"],
        source.integer("num_experts_per_tok"),
        bool(source.config["norm_topk_prob"]),
    )
    if used > experts:
        raise GwqError(
            f"{source.folder}/config.json: num_experts_per_tok is {used}, but there are {experts} experts"
        )
    if not normed:
        log.warning(
            "norm_topk_prob is false: gwq-run computes that, but llama.cpp makes the weights of a token's experts add up to 1"
        )
    return {
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": source.dims["expert_ffn"],
        "expert_weights_norm": normed,
    }
