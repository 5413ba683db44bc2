"""A Hugging Face config as the GGUF keys that llama.cpp's tools expect."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.arch.rope import yarn_amplitude
from gwq_export.errors import GwqError
from gwq_export.hf.model_config import SHARED_FFN
from gwq_export.hf.source import Source

LAYER_TYPES = {"sliding_attention", "full_attention"}
log = logging.getLogger("gwq_export")
ORIGINAL = "original_max_position_embeddings"  # config key of yarn, longrope and llama3
GROWTH = "llama_4_scaling_beta"  # config key of how queries grow with their positions

# --- rotary positions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rope:
    """What a config says of rotary positions."""

    base: float
    kind: str  # of scaling
    values: dict[str, Any]  # config keys of the scaling
    swa_base: float  # base frequency of blocks with a window, which scale nothing
    rotated: int  # how many of a head's values turn


def _rope(source: Source) -> _Rope:
    """The _Rope of the config layouts of transformers 4 and 5."""
    config = source.config
    arch = source.arch
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise GwqError(f"{source.folder}/config.json: rope scaling is {rope!r}, expected an object")
    local = rope.get("sliding_attention") or {}
    rope = rope.get("full_attention") or rope
    if (local.get("rope_type") or "default") != "default":
        raise GwqError(
            f"{source.folder}: rope scaling {local['rope_type']!r} of blocks with a window "
            "is not supported"
        )
    base = source.number(
        rope.get("rope_theta") or config.get("rope_theta") or 10000.0, "rope_theta"
    )
    swa_base = source.number(
        local.get("rope_theta") or config.get(arch.swa_base) or base, arch.swa_base or "rope_theta"
    )
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind == "dynamic" and rope.get("alpha"):
        # HunYuan's, which does not depend on the context: another base, and nothing else
        kind, head = "alpha", source.dims["head"]
        base *= source.number(rope["alpha"], "alpha") ** (head / (head - 2))
    if kind not in arch.rope_kinds:
        raise GwqError(
            f"{source.folder}: rope scaling {kind!r} is not supported for {arch.gguf} "
            "by this version"
        )
    return _Rope(base, kind, rope, swa_base, _rotated(source, rope))


def _rotated(source: Source, rope: dict[str, Any]) -> int:
    """How many of a head's values turn."""
    name = "partial_rotary_factor"
    part = source.number(rope.get(name) or source.config.get(name) or 1, name)
    head = source.dims["head"]
    rotated = int(head * part)  # rounded down, as transformers and llama.cpp have it
    if not (part == 1 or source.arch.partial) or part > 1 or rotated < 2:
        raise GwqError(f"{source.folder}: {name} {part:g} is not supported for {source.arch.gguf}")
    # of an odd number, transformers turns one more, by frequencies of the odd number; llama.cpp
    # stops
    if rotated % 2:
        raise GwqError(
            f"{source.folder}: {name} {part:g} turns {rotated} of a head's {head} values, and GGUF "
            "files can only have an even number turned: this model cannot be exported"
        )
    return rotated


def rope_factors(source: Source) -> dict[str, np.ndarray]:
    """{tensor name: divisors of the rope frequencies, float32 (rotated / 2,)} of the scaling.

    Only llama3 and longrope have them. Llama 3.1's rule: long wavelengths are slowed by `factor`,
    short ones kept, those between are blended. longrope has two lists, for contexts up to the
    original one and longer ones.
    """
    rope = _rope(source)
    if rope.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": _divisors(source, rope, f"{name}_factor")
            for name in ("long", "short")
        }
    if rope.kind != "llama3":
        return {}
    names = ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)
    factor, low, high, original = (source.number(rope.values.get(name), name) for name in names)
    if low >= high:
        raise GwqError(
            f"{source.folder}/config.json: low_freq_factor {low} "
            f"is not below high_freq_factor {high}"
        )
    exponents = np.arange(0, rope.rotated, 2, dtype=np.float64) / rope.rotated
    wavelength = 2 * math.pi * rope.base**exponents
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: slowed, 1: kept
    return {"rope_freqs.weight": (1 / ((1 - blend) / factor + blend)).astype(np.float32)}


def _divisors(source: Source, rope: _Rope, key: str) -> np.ndarray:
    values = rope.values.get(key)
    if not isinstance(values, list) or len(values) != rope.rotated // 2:
        raise GwqError(
            f"{source.folder}/config.json: {key} of the rope scaling "
            f"is not a list of {rope.rotated // 2} numbers"
        )
    return np.array([source.number(v, key) for v in values], np.float32)


def _rope_keys(source: Source) -> dict[str, Any]:
    """Keys of rotary positions."""
    rope = _rope(source)
    values = rope.values
    keys: dict[str, Any] = {
        "rope.dimension_count": rope.rotated,
        "rope.freq_base": rope.base,
    }
    if source.arch.swa_rope and rope.swa_base != rope.base:
        keys["rope.freq_base_swa"] = rope.swa_base
    if rope.kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = rope.kind
        keys["rope.scaling.factor"] = source.number(values.get("factor"), "factor")
    if rope.kind in ("yarn", "longrope"):
        extended = source.dims["ctx"]
        original = source.number(
            values.get(ORIGINAL) or source.config.get(ORIGINAL) or extended, ORIGINAL
        )
        keys["rope.scaling.original_context_length"] = int(original)
    if rope.kind == "yarn":
        keys |= _yarn_amplitude(source, values, keys["rope.scaling.factor"])
        for key in ("beta_fast", "beta_slow"):
            if values.get(key) is not None:
                keys[f"rope.scaling.yarn_{key}"] = source.number(values[key], key)
    if source.arch.queries_grow:
        if rope.kind != "yarn":  # the class takes the lengths of its steps from there
            raise GwqError(
                f"{source.folder}: rope scaling {rope.kind!r} is not supported for "
                f"{source.arch.gguf} by this version"
            )
        keys["attention.temperature_scale"] = source.number(values.get(GROWTH), GROWTH)
    if rope.kind == "longrope":
        factor = source.number(values.get("factor") or extended / original, "factor")
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        keys["rope.scaling.attn_factor"] = source.number(
            values.get("attention_factor") or usual, "attention_factor"
        )
    return keys


def _yarn_amplitude(source: Source, values: dict[str, Any], factor: float) -> dict[str, Any]:
    """The key of what cos and sin are scaled by, if that is not 0.1 ln(factor) + 1.

    Refuses what llama.cpp's files cannot express: they may divide that by the same with the
    logarithm times a number, and their ramp begins and ends at whole pairs.
    """
    mscale, divided = values.get("mscale"), values.get("mscale_all_dim")
    both = bool(mscale and divided)
    fine = {
        "attention_factor": values.get("attention_factor") in (None, yarn_amplitude(factor)),
        "mscale": not mscale or (both and source.arch.yarn_divided and mscale in (1, divided)),
        "mscale_all_dim": not divided or both,
        "truncate": values.get("truncate") in (None, True),
    }
    for key, is_fine in fine.items():
        if not is_fine:
            raise GwqError(
                f"{source.folder}: {key} = {values[key]!r} of rope scaling 'yarn' is not supported"
            )
    if not both:
        return {}
    multiplier = 1.0 if mscale == divided else source.number(divided, "mscale_all_dim")
    return {"rope.scaling.yarn_log_multiplier": multiplier}


# --- attention, experts and the rest --------------------------------------------------------------


def _full_every(source: Source) -> int:
    """Arch.full_every of this config, where the architecture mixes windows and full attention."""
    layer_types = source.config.get("layer_types") or ()
    if "full_attention" in layer_types:
        return layer_types.index("full_attention") + 1
    return max(source.arch.full_every, source.layers + 1)


def _attention_keys(source: Source) -> dict[str, Any]:
    """Which blocks see a window, and how scores are scaled.

    Raises GwqError for blocks in another order.
    """
    config = source.config
    arch = source.arch
    windowed = bool(arch.window and config.get(arch.window))
    full_every = _full_every(source) if windowed and arch.full_every else arch.full_every
    expected = [
        "sliding_attention" if windowed and arch.sliding(i, full_every) else "full_attention"
        for i in range(source.layers)
    ]
    layer_types = expected if arch.kinds else config.get("layer_types") or expected
    listed = layer_types != expected
    if listed and not (windowed and arch.windows_listed and set(layer_types) <= LAYER_TYPES):
        raise GwqError(
            f"{source.folder}: layer_types = {layer_types} is not supported for {arch.gguf}"
        )
    if arch.unturned_every:
        _check_turned(source)
    keys: dict[str, Any] = {}
    if windowed:
        keys["attention.sliding_window"] = source.integer(arch.window)
    if listed:
        sliding = [kind == "sliding_attention" for kind in layer_types]
        keys["attention.sliding_window_pattern"] = np.array(sliding)
    elif full_every != arch.full_every:
        keys["attention.sliding_window_pattern"] = full_every
    if arch.query_scalar:
        scalar = source.number(config[arch.query_scalar], arch.query_scalar)
        if scalar != source.dims["head"]:
            keys["attention.scale"] = scalar**-0.5
    return keys


def _check_turned(source: Source) -> None:
    """Raise GwqError unless the blocks that turn Q and K are those of the architecture."""
    arch = source.arch
    step = source.integer("no_rope_layer_interval", arch.unturned_every)
    turned = source.config.get("no_rope_layers") or [
        int((i + 1) % step != 0) for i in range(source.layers)
    ]
    if turned != [int(arch.turned(i)) for i in range(source.layers)]:
        raise GwqError(
            f"{source.folder}: no_rope_layers = {turned} is not supported for {arch.gguf}"
        )


def _expert_keys(source: Source) -> dict[str, Any]:
    """Keys of a mixture of experts."""
    experts = source.dims["experts"]
    used = source.integer("num_experts_per_tok")
    normed = bool(source.config["norm_topk_prob"])
    if used > experts:
        raise GwqError(
            f"{source.folder}/config.json: num_experts_per_tok is {used}, "
            f"but there are {experts} experts"
        )
    stock = source.arch.experts_normed
    if normed != stock:
        log.warning(
            "norm_topk_prob is %s: gwq-run computes that, but llama.cpp %s the weights of a token's"
            " experts add up to 1",
            str(normed).lower(),
            "makes" if stock else "does not make",
        )
    keys = {
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": source.dims["expert_ffn"],
        "expert_weights_norm": normed,
    }
    if SHARED_FFN in source.config:
        keys["expert_shared_feed_forward_length"] = source.dims["shared_ffn"]
    return keys


def config_keys(source: Source) -> dict[str, Any]:
    """Hyperparameters {key: value} under llama.cpp's keys for the architecture.

    Raises GwqError for what its files cannot express.
    """
    config = source.config
    arch = source.arch
    dims = source.dims
    norm_kind = "" if arch.layer_norm else "rms_"
    eps = source.number(config.get(arch.eps), arch.eps)
    keys: dict[str, Any] = {
        "context_length": dims["ctx"],
        "embedding_length": dims["dim"],
        "block_count": source.layers,
        "feed_forward_length": dims["ffn"],
        "attention.head_count": source.heads["heads"],
        "attention.head_count_kv": source.heads["kv_heads"],
        "attention.key_length": dims["head"],
        "attention.value_length": dims["head"],
        f"attention.layer_norm_{norm_kind}epsilon": eps,
    }
    if arch.kinds:
        attention = np.array([kind == "attention" for kind in source.kinds])
        keys["attention.head_count_kv"] = (attention * source.heads["kv_heads"]).astype(np.int32)
        keys["shortconv.l_cache"] = dims["taps"]
    if arch.experts:
        keys |= _expert_keys(source)
    rope = _rope_keys(source) if arch.rope else {}
    for key in ("rope.dimension_count", "rope.freq_base"):
        if key in rope:
            keys[key] = rope.pop(key)
    keys["vocab_size"] = source.vocab
    keys |= _attention_keys(source) | rope
    for key, config_key in arch.numbers.items():
        keys[key] = source.number(config.get(config_key), config_key)
    if arch.parallel and "use_parallel_residual" in config:
        keys["use_parallel_residual"] = bool(config["use_parallel_residual"])
    return {f"{arch.gguf}.{key}": value for key, value in keys.items()}
