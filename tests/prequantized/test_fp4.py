"""Models in FP4, two codes to a byte: NVFP4 and MXFP4."""

import pytest
import torch

from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.prequantized import (
    MATRIX,
    change_tensors,
    decoded_by_compressed_tensors,
    logits_agree,
    quantized,
    replaced,
    stands_for,
)

LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def codes_of(value):
    """Bytes of e2m1 codes, the first in the lower half, and what the codes stand for."""
    magnitude = (value.abs()[..., None] - LEVELS).abs().argmin(-1)
    code = magnitude + 8 * (value < 0)
    pairs = code.unflatten(1, (-1, 2))
    packed = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    return packed, LEVELS[magnitude] * torch.where(value < 0, -1, 1)


def nvfp4(codes, overall, divides):
    def encode(weight):
        groups = weight.unflatten(1, (-1, 16))
        most = groups.abs().amax(2) / 6
        number = (448 / most.max() if divides else most.max() / 448).reshape(1)
        factor = 1 / number if divides else number
        scale = (most / factor).to(torch.float8_e4m3fn)
        full = (scale.float() * factor)[:, :, None]
        packed, level = codes_of((groups / full).flatten(1))
        pieces = {codes: packed, "weight_scale": scale, overall: number}
        pieces["input_scale"] = torch.ones(())
        return pieces, (level.unflatten(1, (-1, 16)) * full).flatten(1)

    return encode


def mxfp4(weight):
    groups = weight.unflatten(1, (-1, 32))
    power = (groups.abs().amax(2) / 6).log2().ceil()
    full = power.exp2()[:, :, None]
    packed, level = codes_of((groups / full).flatten(1))
    scale = (power + 127).to(torch.uint8)
    meant = (level.unflatten(1, (-1, 32)) * full).flatten(1)
    return {"weight_packed": packed, "weight_scale": scale}, meant


def compressed(kind, size, strategy):
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": size}}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


KINDS = {
    "NVFP4": (
        nvfp4("weight_packed", "weight_global_scale", True),
        compressed("nvfp4-pack-quantized", 16, "tensor_group"),
    ),
    "MXFP4": (mxfp4, compressed("mxfp4-pack-quantized", 32, "group")),
    "ModelOpt": (
        nvfp4("weight", "weight_scale_2", False),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path, round_model, kind):
    encode, config = KINDS[kind]
    folder, meant = quantized(round_model, tmp_path / "m", encode, config)
    source = stands_for(folder, meant)
    assert "FP4" in source.provenance["source_quantized"]


@pytest.mark.parametrize("kind", ["NVFP4", "MXFP4"])
def test_logits_are_those_of_transformers(tmp_path, round_model, kind):
    """compressed-tensors decodes FP4 to bfloat16, with scales that it rounds to that."""
    reason = "transformers loads these models with compressed-tensors"
    pytest.importorskip("compressed_tensors", reason=reason)
    encode, config = KINDS[kind]
    folder, _ = quantized(round_model, tmp_path / "m", encode, config)
    expected = decoded_by_compressed_tensors(folder, config, tmp_path / "plain")
    logits_agree(folder, expected, 2e-2)


DAMAGE = {  # what is wrong -> (kind, change of the tensors, words of the sentence)
    "no scale": ("MXFP4", lambda t: t.pop(f"{MATRIX}.weight_scale"), "weight_scale .* is missing"),
    "no codes": ("MXFP4", lambda t: t.pop(f"{MATRIX}.weight_packed"), "belongs to no matrix"),
    "fewer groups": (
        "NVFP4",
        replaced("weight_scale", lambda t: t[:, :4]),
        r"weight_scale \(192x4, F8_E4M3\) holds no scales for FP4 codes of 192x128",
    ),
    "scales of floats": ("MXFP4", replaced("weight_scale", torch.Tensor.float), "holds no scales"),
    "no number for the matrix": (
        "NVFP4",
        lambda t: t.pop(f"{MATRIX}.weight_global_scale"),
        "is to have a number for the whole matrix beside it",
    ),
    "two numbers for the matrix": (
        "NVFP4",
        replaced("weight_global_scale", lambda t: torch.ones(2)),
        "weight_global_scale .2, F32. is no single number",
    ),
    "codes in three dimensions": (
        "MXFP4",
        replaced("weight_packed", lambda t: t[None]),
        "is no matrix",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_at_once(tmp_path, round_model, what):
    kind, change, words = DAMAGE[what]
    encode, config = KINDS[kind]
    folder, _ = quantized(round_model, tmp_path / "m", encode, config)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=words):
        Source(folder)


def test_a_number_for_the_matrix_that_is_zero(tmp_path, round_model):
    encode, config = KINDS["NVFP4"]
    folder, _ = quantized(round_model, tmp_path / "m", encode, config)
    change_tensors(folder, lambda t: t[f"{MATRIX}.weight_global_scale"].zero_())
    with pytest.raises(GwqError, match=f"{MATRIX}.weight holds NaN or infinity"):
        Source(folder).tensor(f"{MATRIX}.weight")
