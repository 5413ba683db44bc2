"""A Hugging Face config as the GGUF keys that stock tools expect, and the provenance keys of our own."""

import math

import numpy as np

from gwq_export import GwqError, __version__
from gwq_export.format import FORMAT_VERSION

_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "iq4_nl": 25, "bf16": 32}  # general.file_type; anything else counts as guessed
_GUESSED = 1024


def _rope(source):
    """(base frequency, scaling type, its parameters) in the config layouts of transformers 4 and 5."""
    config = source.config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise GwqError(f"{source.folder}/config.json: rope scaling is {rope!r}, expected an object")
    base = source.number(rope.get("rope_theta") or config.get("rope_theta") or 10000.0, "rope_theta")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise GwqError(f"{source.folder}: rope scaling {kind!r} is not supported by this version")
    if (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise GwqError(f"{source.folder}: partial_rotary_factor other than 1 is not supported for {source.arch.gguf}")
    return base, kind, rope


def rope_factors(source):
    """Divisors of the rope frequencies, float32 (head_dim / 2), for the tensor `rope_freqs.weight`; None without llama3 scaling.

    Llama 3.1's rule: long wavelengths are slowed by `factor`, short ones kept, those between are blended.
    """
    base, kind, rope = _rope(source)
    if kind != "llama3":
        return None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (source.number(rope.get(name), name) for name in names)
    if low >= high:
        raise GwqError(f"{source.folder}/config.json: low_freq_factor {low} is not below high_freq_factor {high}")
    dim = source.dims["head"]
    wavelength = 2 * math.pi * base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    blend = np.clip((original / wavelength - low) / (high - low), 0, 1)  # 0: slowed, 1: kept
    return (1 / ((1 - blend) / factor + blend)).astype(np.float32)


def config_keys(source):
    """Hyperparameters under the stock keys of the architecture."""
    config, arch, dims = source.config, source.arch.gguf, source.dims
    base, kind, rope = _rope(source)
    keys = {
        "context_length": source.integer("max_position_embeddings"),
        "embedding_length": dims["dim"],
        "block_count": source.layers,
        "feed_forward_length": dims["ffn"],
        "attention.head_count": source.heads["heads"],
        "attention.head_count_kv": source.heads["kv_heads"],
        "attention.key_length": dims["head"],
        "attention.value_length": dims["head"],
        "attention.layer_norm_rms_epsilon": source.number(config.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
        "rope.dimension_count": dims["head"],
        "rope.freq_base": base,
        "vocab_size": source.vocab,
    }
    if source.arch.window and config.get(source.arch.window):
        keys["attention.sliding_window"] = source.integer(source.arch.window)
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": source.number(rope.get("factor"), "factor")}
    return {f"{arch}.{key}": value for key, value in keys.items()}


def general_keys(source, name, type_name):
    return {
        "general.architecture": source.arch.gguf,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES.get(type_name, _GUESSED),
    }


def provenance_keys(recipe, calibration, **facts):
    """`gwq.*` keys: the format version and how the file was made. None values are left out."""
    tile = recipe.type.bits > 0
    facts |= {
        "format_version": FORMAT_VERSION if tile else None,
        "tool_version": __version__,
        "type": recipe.type.name,
        "outlier_fraction": float(recipe.outliers),
        "saliency": recipe.saliency if tile else None,
        "table": recipe.table if tile else None,
        "error_feedback": recipe.feedback,
    }
    if calibration:
        samples, ctx = calibration.tokens.shape
        facts |= {"calibration_sha256": calibration.hash, "calibration_samples": samples, "calibration_ctx": ctx}
    return {f"gwq.{key}": value for key, value in facts.items() if value is not None}
