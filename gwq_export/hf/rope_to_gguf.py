"""What a Hugging Face config says of rotary positions, as GGUF keys and divisors of frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.arch.rope import yarn_amplitude
from gwq_export.errors import GwqError
from gwq_export.hf.source import Source

ORIGINAL = "original_max_position_embeddings"  # config key of yarn, longrope and llama3
PARTIAL = "partial_rotary_factor"
STILL = 1e30  # divisor of a frequency, of pairs that do not turn
GROWTH = "llama_4_scaling_beta"  # config key of how queries grow with their positions


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
    rotated = source.dims["head"] if kind == "proportional" else _rotated(source, rope)
    return _Rope(base, kind, rope, swa_base, rotated)


def _rotated(source: Source, rope: dict[str, Any]) -> int:
    """How many of a head's values turn."""
    name = PARTIAL
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
    if rope.kind == "proportional":
        return {"rope_freqs.weight": _proportional(source, rope)}
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


def _proportional(source: Source, rope: _Rope) -> np.ndarray:
    """Divisors by which the first pairs of a head turn as those of a whole one, the others not."""
    factor = rope.values.get("factor") or 1.0
    part = source.number(rope.values.get(PARTIAL) or 1.0, PARTIAL)
    turned = int(part * rope.rotated // 2)
    if factor != 1 or not 0 < turned <= rope.rotated // 2:
        raise GwqError(
            f"{source.folder}: rope scaling 'proportional' with {PARTIAL} {part:g} and factor"
            f" {factor:g} is not supported"
        )
    divisors = np.ones(rope.rotated // 2, np.float32)
    divisors[turned:] = STILL
    return divisors


def _divisors(source: Source, rope: _Rope, key: str) -> np.ndarray:
    values = rope.values.get(key)
    if not isinstance(values, list) or len(values) != rope.rotated // 2:
        raise GwqError(
            f"{source.folder}/config.json: {key} of the rope scaling "
            f"is not a list of {rope.rotated // 2} numbers"
        )
    return np.array([source.number(v, key) for v in values], np.float32)


def rope_keys(source: Source) -> dict[str, Any]:
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
