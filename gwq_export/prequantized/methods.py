"""The table of quantization methods: `quant_method` of a config -> how its matrices are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gwq_export.errors import GwqError
from gwq_export.prequantized import awq, bitsandbytes, compressed, fp4, fp8, gptq
from gwq_export.prequantized.scheme import ORIGINAL, Scheme, Settings, settings_of

BLOCK = (128, 128)  # transformers' own where a config of FP8 has no weight_block_size


def _fp8(config: Settings) -> list[Scheme]:
    return [fp8.scheme("FP8", fp8.block_sizes(config, BLOCK))]


def _mxfp8(config: Settings) -> list[Scheme]:
    return [fp8.scheme("MXFP8", fp8.block_sizes(config, (1, 32)))]


def _fbgemm_fp8(config: Settings) -> list[Scheme]:
    return [fp8.scheme("FP8 (fbgemm)")]


def _modelopt(config: Settings) -> list[Scheme]:
    kinds = {
        "FP8": fp8.scheme("FP8 (ModelOpt)"),
        "NVFP4": fp4.scheme("NVFP4 (ModelOpt)", "weight", "weight_scale_2", divides=False),
    }
    kind = config.get("quant_algo")
    if kind not in tuple(kinds):
        raise GwqError(f"ModelOpt's {kind!r} is not read (read are: FP8, NVFP4): {ORIGINAL}")
    return [kinds[kind]]


METHODS: dict[str, Callable[[Settings], list[Scheme]]] = {
    "fp8": _fp8,
    "mxfp8": _mxfp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "modelopt": _modelopt,
    "gptq": gptq.schemes,
    "awq": awq.schemes,
    "compressed-tensors": compressed.schemes,
    "bitsandbytes": bitsandbytes.schemes,
}


def method_of(config: Any) -> Any:
    """What a quantization_config says of the method."""
    return config.get("quant_method") if isinstance(config, dict) else config


def schemes(config: Any) -> list[Scheme]:
    """How the matrices of a checkpoint with this quantization_config may be stored.

    Raises GwqError for a method, or settings of one, that are not read.
    """
    settings = settings_of(config)
    method = method_of(settings)
    if not isinstance(method, str) or method not in METHODS:
        raise GwqError(
            f"quant_method {method!r} is not read (read are: {', '.join(METHODS)}): {ORIGINAL}"
        )
    return METHODS[method](settings)
