"""Models in the formats of compressed-tensors."""

import pytest
import torch

from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.prequantized import (
    MATRIX,
    change_config,
    change_tensors,
    decoded_by_compressed_tensors,
    in_groups,
    logits_agree,
    packed,
    quantized,
    replaced,
    stands_for,
)


def config(kind, **weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def pack(bits, size=8, symmetric=True, ordered=False, zero_bytes=False):
    """Packed integers: codes and zero points have half of their range added before."""

    def encode(weight):
        order = torch.randperm(weight.shape[1]) if ordered else None
        codes, zero, scale, group = in_groups(weight, bits, size, order, symmetric)
        pieces = {
            "weight_packed": packed(codes.long(), bits),
            "weight_scale": scale.half(),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric and zero_bytes:
            pieces["weight_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8)
        elif not symmetric:
            pieces["weight_zero_point"] = packed(zero.long().T, bits).T
        if ordered:
            pieces["weight_g_idx"] = group.int()
        return pieces, (codes - zero[:, group]) * scale[:, group]

    return encode


def in_bytes(size=-1, symmetric=True):
    def encode(weight):
        codes, zero, scale, group = in_groups(weight, 8, size, None, symmetric)
        scale = scale.bfloat16().float()
        pieces = {"weight": (codes - 128).to(torch.int8), "weight_scale": scale.bfloat16()}
        if not symmetric:
            pieces["weight_zero_point"] = (zero - 128).to(torch.int8)
        pieces["input_scale"] = torch.ones(1)
        return pieces, (codes - zero[:, group]) * scale[:, group]

    return encode


def in_fp8(height, width):
    """FP8 with a scale for every block, cut off at the edges."""

    def encode(weight):
        rows, cols = weight.shape
        high, wide = height or rows, width or cols
        grid = -(-rows // high), -(-cols // wide)
        padded = torch.zeros(grid[0] * high, grid[1] * wide)
        padded[:rows, :cols] = weight
        scale = padded.view(grid[0], high, grid[1], wide).abs().amax((1, 3)) / 448
        full = scale.repeat_interleave(high, 0).repeat_interleave(wide, 1)[:rows, :cols]
        codes = (weight / full).to(torch.float8_e4m3fn)
        if not height:  # of the whole matrix
            scale = scale.reshape(1)
        return {"weight": codes, "weight_scale": scale}, codes.float() * full

    return encode


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
BLOCKS = FLOAT | {"strategy": "block", "block_structure": [32, 48]}
PACKED, NAIVE, FP8 = "pack-quantized", "naive-quantized", "float-quantized"
SKEW = {"symmetric": False}
KINDS = {
    "4 bits": (pack(4), config(PACKED, **INT4)),
    "4 bits, zero points": (pack(4, symmetric=False), config(PACKED, **INT4 | SKEW)),
    "4 bits, zero points in bytes": (
        pack(4, symmetric=False, zero_bytes=True),
        config(PACKED, **INT4 | SKEW),
    ),
    "4 bits, columns in any order": (
        pack(4, ordered=True),
        config(PACKED, **INT4 | {"actorder": "group"}),
    ),
    "8 bits, packed rows": (pack(8, -1), config(PACKED, **INT8)),
    "8 bits, rows with zero points": (pack(8, -1, False), config(PACKED, **INT8 | SKEW)),
    "3 bits": (pack(3), config(PACKED, **INT4 | {"num_bits": 3})),
    "8 bits": (in_bytes(), config(NAIVE, **INT8)),
    "8 bits, zero points": (in_bytes(symmetric=False), config("int-quantized", **INT8 | SKEW)),
    "8 bits, groups": (
        in_bytes(8, False),
        config("int-quantized", **INT4 | SKEW | {"num_bits": 8}),
    ),
    "FP8, rows": (in_fp8(1, None), config(FP8, **FLOAT | {"strategy": "channel"})),
    "FP8, matrices": (in_fp8(None, None), config(FP8, **FLOAT | {"strategy": "tensor"})),
    "FP8, blocks": (in_fp8(32, 48), config(FP8, **BLOCKS)),
    "FP8, older blocks": (in_fp8(32, 48), config(FP8, **BLOCKS | {"block_structure": "32x48"})),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path, tiny, kind):
    encode, settings = KINDS[kind]
    folder, meant = quantized(tiny("llama"), tmp_path / "m", encode, settings)
    source = stands_for(folder, meant)
    assert source.provenance["source_quantized"].startswith("compressed-tensors")


def test_formats_by_the_module(tmp_path, tiny):
    """Matrices of 96 rows with 8 bits, the others with 4."""

    def encode(weight):
        return (in_bytes() if len(weight) == 96 else pack(4))(weight)

    settings = config(PACKED, **INT4)
    settings["config_groups"]["group_1"] = {"targets": ["re:.*o_proj"], "weights": INT8}
    folder, meant = quantized(tiny("llama"), tmp_path / "m", encode, settings)
    source = stands_for(folder, meant)
    assert source.provenance["source_quantized"].count("compressed-tensors") == 2


# those that compressed-tensors 0.20 knows
BY_THE_LIBRARY = [k for k in KINDS if not {"bytes", "order", "older"} & set(k.split())]


@pytest.mark.parametrize("kind", BY_THE_LIBRARY)
def test_logits_are_those_of_transformers(tmp_path, round_model, kind):
    """compressed-tensors decodes into the type of the scales, float16 here but for FP8."""
    reason = "transformers loads these models with compressed-tensors"
    pytest.importorskip("compressed_tensors", reason=reason)
    encode, settings = KINDS[kind]
    folder, _ = quantized(round_model, tmp_path / "m", encode, settings)
    expected = decoded_by_compressed_tensors(folder, settings, tmp_path / "plain")
    logits_agree(folder, expected, 5e-3)


DAMAGE = {  # what is wrong -> (kind, change of the tensors, words of the sentence)
    "no scale": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight_scale"), "weight_scale .* is missing"),
    "no shape": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight_shape"), "weight_shape .* is missing"),
    "no codes": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight_packed"), "belongs to no matrix"),
    "a shape of three": (
        "4 bits",
        replaced("weight_shape", lambda t: torch.tensor([1, 200, 96])),
        r"weight_shape \(3, I64\) holds no numbers of rows and columns",
    ),
    "another shape": (
        "4 bits",
        replaced("weight_shape", lambda t: torch.tensor([200, 97])),
        r"weight_packed \(200x12, I32\) holds no matrix of 200x97 with 4 bits",
    ),
    "a shape below none": (
        "4 bits",
        replaced("weight_shape", lambda t: -t),
        "holds no matrix of -200x-96",
    ),
    "fewer groups": ("4 bits", replaced("weight_scale", lambda t: t[:, :5]), "holds no scales for"),
    "fewer zero points": (
        "4 bits, zero points",
        replaced("weight_zero_point", lambda t: t[:, :5]),
        r"weight_zero_point \(25x5, I32\) holds no zero points for the scales of",
    ),
    "fewer bytes of zero points": (
        "8 bits, zero points",
        replaced("weight_zero_point", lambda t: t[:7]),
        r"weight_zero_point \(7x1, I8\) holds no zero points",
    ),
    "a group that is not there": (
        "4 bits, columns in any order",
        replaced("weight_g_idx", lambda t: t + 1),
        "names groups from 1 to 12, of 12",
    ),
    "an index of another matrix": (
        "4 bits, columns in any order",
        replaced("weight_g_idx", lambda t: t[1:]),
        "does not fit .* which has 96 columns",
    ),
    "bytes in three dimensions": ("8 bits", replaced("weight", lambda t: t[None]), "is no matrix"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_at_once(tmp_path, tiny, what):
    kind, change, words = DAMAGE[what]
    encode, settings = KINDS[kind]
    folder, _ = quantized(tiny("llama"), tmp_path / "m", encode, settings)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=words):
        Source(folder)


GOOD = config(PACKED, **INT4)


@pytest.mark.parametrize(
    "settings, words",
    [
        (GOOD | {"format": "marlin-24"}, "format 'marlin-24' is not read"),
        (GOOD | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights are not"),
        (GOOD | {"transform_config": {"config_groups": {"u": {}}}}, "with transforms"),
        (GOOD | {"config_groups": [1]}, "config_groups is .1., expected groups"),
        (GOOD | {"config_groups": {}}, "holds no matrix of .* with no bits"),
        (config(PACKED, **INT4 | {"num_bits": "4"}), "holds no matrix of .* with no bits"),
        (config(PACKED, **INT4 | {"group_size": "8"}), "holds no scales for a matrix of"),
    ],
)
def test_configs_that_are_not_read(tmp_path, tiny, settings, words):
    folder, _ = quantized(tiny("llama"), tmp_path / "m", pack(4), GOOD)
    change_config(folder, quantization_config=settings)
    with pytest.raises(GwqError, match=words):
        Source(folder)
