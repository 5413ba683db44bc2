"""The bytes of ggml's F32, F16, BF16, Q8_0, Q4_0 and IQ4_NL: round-to-nearest, and decoding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.types import TensorType

# --- encoding: float32 weights -> an array whose bytes are those of the type ----------------------


def _encode_f32(type: TensorType, weight: np.ndarray) -> np.ndarray:
    return weight


def _encode_f16(type: TensorType, weight: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = weight.astype(np.float16)
    if not np.isfinite(out).all() and np.isfinite(weight).all():
        raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
    return out


def _encode_bf16(type: TensorType, weight: np.ndarray) -> np.ndarray:
    """The upper half of each float32, rounded to nearest even."""
    bits = weight.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _encode_q8_0(type: TensorType, weight: np.ndarray) -> np.ndarray:
    """Per 32 weights: scale = max |w| / 127, code = round(w / scale)."""
    type.nbytes(1, weight.shape[-1])  # refuses a width that is no multiple of 32
    blocks = weight.reshape(-1, type.unit)
    with np.errstate(over="ignore"):
        scale = (np.abs(blocks).max(1) / 127).astype(np.float16)
    if not np.isfinite(scale).all():
        raise GwqError("a weight is too large for Q8_0: export with --type bf16 or f32")
    zeros = np.zeros(len(scale), np.float32)
    inverse = np.divide(1, scale, out=zeros, where=scale > 0, dtype=np.float32)
    out = np.empty(len(scale), [("scale", np.float16), ("code", np.int8, type.unit)])
    out["scale"] = scale
    out["code"] = np.clip(np.rint(blocks * inverse[:, None]), -127, 127)
    return out


def _encode_levels(type: TensorType, weight: np.ndarray) -> np.ndarray:
    type.nbytes(1, weight.shape[-1])
    scales, codes = _round_codes(type, weight.reshape(-1, type.unit))
    if not np.isfinite(scales).all():
        raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
    return pack_codes(type, scales, codes)


def _round_codes(type: TensorType, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales float16 (blocks, 1) and codes uint8 (blocks, 32) without a search, as ggml has them.

    The weight of largest magnitude in a block becomes the first level.
    """
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = extreme / np.float32(type.levels[0])
    x = blocks * np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    if type.name == "q4_0":
        codes = np.minimum(x + np.float32(8.5), 15).astype(np.uint8)
    else:
        levels = np.array(type.levels, np.float32)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="right").astype(np.uint8)
    with np.errstate(over="ignore"):
        return scale.astype(np.float16), codes


def pack_codes(type: TensorType, scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Bytes, uint8 (n,), of a ggml type with levels.

    scales float16 (rows, units per row); codes uint8 (rows, cols) in 0 .. 15.
    """
    half = codes.reshape(-1, 2, type.unit // 2)  # byte i of a unit: columns i and 16 + i
    out = np.empty(len(half), [("scale", np.float16), ("code", np.uint8, type.unit // 2)])
    out["scale"] = scales.reshape(-1)
    out["code"] = half[:, 0] | half[:, 1] << 4
    return out.view(np.uint8)


# --- decoding: bytes -> numbers, in the order of the weights --------------------------------------


def _decode_f32(type: TensorType, data: np.ndarray) -> np.ndarray:
    return data.view(np.float32)


def _decode_f16(type: TensorType, data: np.ndarray) -> np.ndarray:
    return data.view(np.float16).astype(np.float32)


def _decode_bf16(type: TensorType, data: np.ndarray) -> np.ndarray:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _decode_q8_0(type: TensorType, data: np.ndarray) -> np.ndarray:
    units = data.view([("scale", np.float16), ("code", np.int8, type.unit)])
    return units["scale"].astype(np.float32)[:, None] * units["code"]


def _decode_levels(type: TensorType, data: np.ndarray) -> np.ndarray:
    units = data.view([("scale", np.float16), ("code", np.uint8, type.unit // 2)])
    codes = np.concatenate([units["code"] & 15, units["code"] >> 4], axis=1)
    levels = np.array(type.levels, np.float32)
    return units["scale"].astype(np.float32)[:, None] * levels[codes]


def _decode_i8(type: TensorType, data: np.ndarray) -> np.ndarray:
    return data.view(np.int8).astype(np.float32)


def _decode_i32(type: TensorType, data: np.ndarray) -> np.ndarray:
    return data.view(np.int32).astype(np.float32)


# --- both, by the name of the type ----------------------------------------------------------------

_Coder = Callable[[TensorType, np.ndarray], np.ndarray]
_ENCODERS: dict[str, _Coder] = {
    "f32": _encode_f32,
    "f16": _encode_f16,
    "bf16": _encode_bf16,
    "q8_0": _encode_q8_0,
    "q4_0": _encode_levels,
    "iq4_nl": _encode_levels,
}
_DECODERS: dict[str, _Coder] = {
    "f32": _decode_f32,
    "f16": _decode_f16,
    "bf16": _decode_bf16,
    "q8_0": _decode_q8_0,
    "q4_0": _decode_levels,
    "iq4_nl": _decode_levels,
    "i8": _decode_i8,
    "i32": _decode_i32,
}


def encode_ggml(type: TensorType, weight: np.ndarray) -> np.ndarray:
    """Bytes, uint8 (n,), of float32 weights (rows, cols) or (cols,), each rounded to nearest.

    type: f32, f16, bf16, q8_0, q4_0 or iq4_nl. Raises GwqError for another one, for a width that is
    no multiple of its unit and for a weight that is too large for it.
    """
    encoder = _ENCODERS.get(type.name)
    if encoder is None:
        raise GwqError(f"type {type.name} is not a ggml type")
    out = encoder(type, np.ascontiguousarray(weight, np.float32))
    return np.ascontiguousarray(out).reshape(-1).view(np.uint8)


def decode_ggml(type: TensorType, data: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """float32 (rows, cols) from the bytes (uint8) of a ggml type."""
    out = _DECODERS[type.name](type, np.ascontiguousarray(data, np.uint8))
    return out.reshape(rows, cols).astype(np.float32, copy=False)
