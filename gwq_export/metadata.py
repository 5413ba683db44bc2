"""A Hugging Face config as the GGUF keys that stock tools expect, and the provenance keys of our own."""

import math

import numpy as np

from gwq_export import GwqError, __version__
from gwq_export.format import FORMAT_VERSION

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # general.file_type; anything else counts as guessed
_GUESSED = 1024


def _rope(source):
    """(base frequency, scaling type, its parameters) in the config layouts of transformers 4 and 5."""
    config = source.config
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise GwqError(f"{source.folder}: rope scaling {kind!r} is not supported by this version")
    if float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise GwqError(f"{source.folder}: partial_rotary_factor other than 1 is not supported for {source.arch.gguf}")
    return base, kind, rope


def head_dim(source):
    return source.config.get("head_dim") or source.require("hidden_size") // source.require("num_attention_heads")


def rope_factors(source):
    """Divisors of the rope frequencies, float32 (head_dim / 2), for the tensor `rope_freqs.weight`; None without llama3 scaling.

    Llama 3.1's rule: long wavelengths are slowed by `factor`, short ones kept, those between are blended.
    """
    base, kind, rope = _rope(source)
    if kind != "llama3":
        return None
    try:
        factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        original = float(rope["original_max_position_embeddings"])
    except (KeyError, TypeError, ValueError) as e:
        raise GwqError(f"{source.folder}/config.json: llama3 rope scaling lacks a usable {e}") from None
    dim = head_dim(source)
    wavelength = 2 * math.pi * base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: slowed, 1: kept
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def config_keys(source):
    """Hyperparameters under the stock keys of the architecture."""
    config, arch = source.config, source.arch.gguf
    heads, dim = source.require("num_attention_heads"), head_dim(source)
    base, kind, rope = _rope(source)
    keys = {
        "context_length": source.require("max_position_embeddings"),
        "embedding_length": source.require("hidden_size"),
        "block_count": source.layers,
        "feed_forward_length": source.require("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "rope.dimension_count": dim,
        "rope.freq_base": base,
        "vocab_size": source.require("vocab_size"),
    }
    if source.arch.window and config.get(source.arch.window):
        keys["attention.sliding_window"] = int(config[source.arch.window])
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return {f"{arch}.{key}": value for key, value in keys.items()}


def general_keys(source, name, type_name):
    return {
        "general.architecture": source.arch.gguf,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES.get(type_name, _GUESSED),
    }


def provenance_keys(**facts):
    """`gwq.*` keys: the format version and how the file was made. None values are left out."""
    keys = {"format_version": FORMAT_VERSION, "tool_version": __version__} | facts
    return {f"gwq.{key}": value for key, value in keys.items() if value is not None}
