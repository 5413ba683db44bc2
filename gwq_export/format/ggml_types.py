"""The bytes of ggml's F32, F16, BF16, Q8_0, Q4_0 and IQ4_NL: plain rounding, and decoding."""

import numpy as np

from gwq_export.errors import GwqError

# --- ggml types ----------------------------------------------------------------------------------------------------


def pack_codes(type, scales, codes):
    """Bytes (uint8) of a ggml type with levels: scales float16 (rows, units), codes uint8 (rows,
    cols) in 0 .. 15.
    """
    code = codes.reshape(-1, 2, type.unit // 2)  # byte i: columns i and 16 + i
    out = np.empty(len(code), [("scale", np.float16), ("code", np.uint8, type.unit // 2)])
    out["scale"], out["code"] = scales.reshape(-1), code[:, 0] | code[:, 1] << 4
    return out.view(np.uint8)


def _round_codes(type, blocks):
    """Scales and codes (blocks, 32) without a search, as ggml has them: the weight of largest
    magnitude becomes the first level.
    """
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    d = extreme / np.float32(type.levels[0])
    x = blocks * np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    if type.name == "q4_0":
        codes = np.minimum(x + np.float32(8.5), 15).astype(np.uint8)
    else:
        levels = np.float32(type.levels)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="right").astype(np.uint8)
    with np.errstate(over="ignore"):
        return d.astype(np.float16), codes


def encode_ggml(type, weight):
    """float32 weight (rows, cols) or (n,) as bytes (uint8) of the ggml type f32, f16, bf16, q8_0,
    q4_0 or iq4_nl, rounded plainly.
    """
    w = np.ascontiguousarray(weight, np.float32)
    if type.name == "f32":
        out = w
    elif type.name == "f16":
        with np.errstate(over="ignore"):
            out = w.astype(np.float16)
        if not np.isfinite(out).all() and np.isfinite(w).all():
            raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
    elif type.name == "bf16":
        bits = w.view(np.uint32)
        out = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # round to nearest even
    elif type.name == "q8_0":
        type.nbytes(1, w.shape[-1])  # refuses a width that is no multiple of 32
        blocks = w.reshape(-1, type.unit)
        with np.errstate(over="ignore"):
            d = (np.abs(blocks).max(1) / 127).astype(np.float16)
        if not np.isfinite(d).all():
            raise GwqError("a weight is too large for Q8_0: export with --type bf16 or f32")
        inverse = np.divide(1, d, out=np.zeros(len(d), np.float32), where=d > 0, dtype=np.float32)
        out = np.empty(len(d), [("scale", np.float16), ("code", np.int8, type.unit)])
        out["scale"] = d
        out["code"] = np.clip(np.rint(blocks * inverse[:, None]), -127, 127)
    elif type.levels:
        type.nbytes(1, w.shape[-1])
        d, codes = _round_codes(type, w.reshape(-1, type.unit))
        if not np.isfinite(d).all():
            raise GwqError("a weight is too large for FP16: export with --type bf16 or f32")
        out = pack_codes(type, d, codes)
    else:
        raise GwqError(f"type {type.name} is not a ggml type")
    return np.ascontiguousarray(out).reshape(-1).view(np.uint8)


def decode_ggml(type, data, rows, cols):
    """Bytes of a ggml type as float32 (rows, cols)."""
    data = np.ascontiguousarray(data, np.uint8)
    if type.name == "f32":
        out = data.view(np.float32)
    elif type.name == "f16":
        out = data.view(np.float16).astype(np.float32)
    elif type.name == "bf16":
        out = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif type.name == "q8_0":
        b = data.view([("scale", np.float16), ("code", np.int8, type.unit)])
        out = b["scale"].astype(np.float32)[:, None] * b["code"]
    elif type.levels:
        b = data.view([("scale", np.float16), ("code", np.uint8, type.unit // 2)])
        codes = np.concatenate([b["code"] & 15, b["code"] >> 4], axis=1)
        out = b["scale"].astype(np.float32)[:, None] * np.float32(type.levels)[codes]
    elif type.name == "i8":
        out = data.view(np.int8).astype(np.float32)
    else:
        out = data.view(np.int32).astype(np.float32)
    return out.reshape(rows, cols).astype(np.float32, copy=False)
