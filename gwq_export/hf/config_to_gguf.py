"""A Hugging Face config as the GGUF keys that llama.cpp's tools expect."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.hf.model_config import SHARED_FFN
from gwq_export.hf.rope_to_gguf import rope_keys
from gwq_export.hf.source import Source

LAYER_TYPES = {"sliding_attention", "full_attention"}
log = logging.getLogger("gwq_export")


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
    layer_types = config.get("layer_types") or expected
    if arch.kinds and "sliding_attention" not in layer_types:  # other kinds were looked at
        windowed, layer_types = False, expected
    listed = layer_types != expected
    known = {*arch.kinds} or LAYER_TYPES
    if listed and not (windowed and arch.windows_listed and set(layer_types) <= known):
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
    rope = rope_keys(source) if arch.rope else {}
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
