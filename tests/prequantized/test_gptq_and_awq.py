"""Models that come as integers with scales and zero points of groups: GPTQ and AWQ."""

import warnings

import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.hf.source import Source
from gwq_export.prequantized.bits import unpack
from tests.support.folders import expected_logits
from tests.support.prequantized import (
    MATRIX,
    change_config,
    change_tensors,
    in_groups,
    logits_agree,
    packed,
    quantized,
    replaced,
    stands_for,
)


def gptq(bits, size=32, ordered=False, symmetric=False, first_format=True, index=True):
    def encode(weight):
        order = torch.randperm(weight.shape[1]) if ordered else None
        codes, zero, scale, group = in_groups(weight, bits, size, order, symmetric)
        pieces = {
            "qweight": packed(codes.long(), bits).T,
            "qzeros": packed((zero.long() - int(first_format)).T, bits),
            "scales": scale.T.half(),
        }
        if index:
            pieces["g_idx"] = group.int()
        return pieces, (codes - zero[:, group]) * scale[:, group]

    return encode


def awq(size=32):
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # the rows in a word, lowest bits first

    def words(numbers):  # (n, rows)
        return packed(numbers.long().unflatten(1, (-1, 8))[:, :, order].flatten(1), 4)

    def encode(weight):
        codes, zero, scale, group = in_groups(weight, 4, size)
        pieces = {
            "qweight": words(codes.T),
            "qzeros": words(zero.T),
            "scales": scale.T.half(),
        }
        return pieces, (codes - zero[:, group]) * scale[:, group]

    return encode


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
SECOND = {"checkpoint_format": "gptq_v2"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
WHOLE = {"group_size": -1}
KINDS = {
    "4 bits": (gptq(4), GPTQ),
    "4 bits, the second format": (gptq(4, first_format=False), GPTQ | SECOND),
    "8 bits": (gptq(8), GPTQ | {"bits": 8}),
    "3 bits": (gptq(3), GPTQ | {"bits": 3}),
    "3 bits, the second format": (gptq(3, first_format=False), GPTQ | {"bits": 3} | SECOND),
    "2 bits": (gptq(2, symmetric=True), GPTQ | {"bits": 2, "sym": True}),
    "columns in any order": (gptq(4, ordered=True), GPTQ | {"desc_act": True}),
    "3 bits in any order": (gptq(3, ordered=True), GPTQ | {"bits": 3, "desc_act": True}),
    "no index": (gptq(8, 96, index=False), GPTQ | {"bits": 8, "group_size": 96}),
    "rows": (gptq(4, -1, symmetric=True), GPTQ | WHOLE),
    "rows without an index": (gptq(4, -1, index=False), GPTQ | WHOLE),
    "AWQ": (awq(), AWQ),
    "AWQ, rows": (awq(-1), {"quant_method": "awq", "w_bit": 4, "q_group_size": -1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path, tiny, kind):
    encode, config = KINDS[kind]
    folder, meant = quantized(tiny("llama"), tmp_path / "m", encode, config)
    source = stands_for(folder, meant)
    assert source.provenance["source_quantized"].startswith(config["quant_method"].upper())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 50, 96])
def test_numbers_in_words(bits, count):
    numbers = torch.randint(0, 1 << bits, (3, count), generator=torch.manual_seed(bits))
    assert torch.equal(unpack(packed(numbers, bits), bits, count).long(), numbers)


# gptqmodel computes on a CPU with groups of some sizes only, and compiles for every kind
@pytest.mark.parametrize("kind", ["4 bits", "3 bits in any order", "8 bits", "AWQ"])
def test_logits_are_those_of_transformers(tmp_path, round_model, kind):
    """gptqmodel computes with float16 weights."""
    encode, config = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gptqmodel", reason="transformers loads GPTQ and AWQ with gptqmodel")
        pytest.importorskip("optimum.gptq", reason="transformers loads GPTQ with optimum")
        folder, _ = quantized(round_model, tmp_path / "m", encode, config)
        expected = expected_logits(folder)
    logits_agree(folder, expected, 5e-3)


def test_zero_points_that_fell_below_zero(tmp_path, tiny):
    """The first format takes 1 from a whole word, so a 0 borrows from the number above it."""

    def encode(weight):
        codes, _, scale, group = in_groups(weight, 4, 32)
        zero = torch.arange(scale.numel()).reshape(scale.shape) % 16.0
        words = packed(zero.long().T, 4).long() - 0x11111111
        pieces = {
            "qweight": packed(codes.long(), 4).T,
            "qzeros": (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32),
            "scales": scale.T.half(),
            "g_idx": group.int(),
        }
        return pieces, (codes - zero[:, group]) * scale[:, group]

    folder, meant = quantized(tiny("llama"), tmp_path / "m", encode, GPTQ)
    stands_for(folder, meant)


def test_biases_that_the_class_does_not_have(tmp_path, tiny):
    """GPTQ checkpoints of some tools have a bias for every matrix, all zeros."""
    folder, meant = quantized(tiny("llama"), tmp_path / "m", gptq(4), GPTQ)
    change_tensors(folder, lambda t: t.update({f"{MATRIX}.bias": torch.zeros(200).half()}))
    stands_for(folder, meant)
    change_tensors(folder, lambda t: t[f"{MATRIX}.bias"].fill_(0.5))
    with pytest.raises(GwqError, match=rf"{MATRIX}\.bias does not fit the config"):
        Source(folder)


def test_it_is_calibrated_and_quantized_again(tmp_path, tiny, calib):
    folder, meant = quantized(tiny("llama"), tmp_path / "m", gptq(4), GPTQ)
    out = tmp_path / "out.gguf"
    gwq_export.export(folder, out, type="gwq6", samples=2, ctx=64, calib=calib)
    file = gwq_export.open_gguf(out)
    assert file.metadata["gwq.source_quantized"] == "GPTQ with 4 bits"
    up = file.tensors["blk.1.ffn_up.weight"].dequantize()
    plain = meant[f"{MATRIX}.weight"].numpy()
    assert ((up - plain) ** 2).mean() < 0.002 * (plain**2).mean()


DAMAGE = {  # what is wrong -> (kind, change of the tensors, words of the sentence)
    "no scales": ("4 bits", lambda t: t.pop(f"{MATRIX}.scales"), "scales .*is missing; download"),
    "no zero points": ("AWQ", lambda t: t.pop(f"{MATRIX}.qzeros"), "qzeros .*is missing; download"),
    "no codes": ("AWQ", lambda t: t.pop(f"{MATRIX}.qweight"), "belongs to no matrix"),
    "a group too few": (
        "4 bits",
        replaced("scales", lambda t: t[:-1]),
        r"scales \(2x200, F16\) holds no scales for 3 groups of 200 rows",
    ),
    "no group": ("AWQ", replaced("scales", lambda t: t[:0]), r"scales \(0x200, F16\) holds no"),
    "zero points of other bits": (
        "4 bits",
        replaced("qzeros", lambda t: t[:, :-1]),
        r"qzeros \(3x24, I32\) holds no zero points",
    ),
    "AWQ's zero points of fewer rows": (
        "AWQ",
        replaced("qzeros", lambda t: t[:, :-1]),
        r"qzeros \(3x24, I32\) holds no zero points",
    ),
    "a group that is not there": (
        "4 bits",
        replaced("g_idx", lambda t: t + 1),
        r"g_idx \(96, I32\) names groups from 1 to 3, of 3",
    ),
    "a group below none": (
        "4 bits",
        replaced("g_idx", lambda t: t - 1),
        "names groups from -1 to 1, of 3",
    ),
    "an index of floats": ("4 bits", replaced("g_idx", torch.Tensor.float), "no numbers of groups"),
    "an index of another matrix": (
        "4 bits",
        replaced("g_idx", lambda t: t[:40]),
        "does not fit .*qweight, which has 96 columns of 4 bits",
    ),
    "codes in three dimensions": ("AWQ", replaced("qweight", lambda t: t[None]), "is no matrix"),
    "fewer rows": (
        "AWQ",
        lambda t: [replaced(e, lambda x: x[:, : x.shape[1] // 25])(t) for e in AWQ_PIECES],
        r"has shape \(8, 96\), but \(200, 96\) would fit",
    ),
}
AWQ_PIECES = ("qweight", "qzeros", "scales")


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_at_once(tmp_path, tiny, what):
    kind, change, words = DAMAGE[what]
    encode, config = KINDS[kind]
    folder, _ = quantized(tiny("llama"), tmp_path / "m", encode, config)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=words):
        Source(folder)


def test_scales_that_are_none(tmp_path, tiny):
    folder, _ = quantized(tiny("llama"), tmp_path / "m", gptq(4), GPTQ)
    change_tensors(folder, lambda t: t[f"{MATRIX}.scales"][1].fill_(float("nan")))
    with pytest.raises(GwqError, match=f"{MATRIX}.weight holds NaN or infinity"):
        Source(folder).tensor(f"{MATRIX}.weight")


def test_modules_that_gptqmodel_left_out(tmp_path, tiny):
    config = GPTQ | {"dynamic": {"-:.*o_proj": {}}}
    folder, meant = quantized(tiny("llama"), tmp_path / "m", gptq(4), config)
    stands_for(folder, meant)


@pytest.mark.parametrize(
    "config, words",
    [
        (GPTQ | {"bits": 5}, "GPTQ with 5 bits is not read"),
        (GPTQ | {"bits": None}, "GPTQ with None bits is not read"),
        (GPTQ | {"checkpoint_format": "marlin"}, "layout 'marlin' is not read"),
        (GPTQ | {"group_size": 0}, "group_size is 0, expected a positive number or -1"),
        (GPTQ | {"group_size": "32"}, "group_size is '32', expected"),
        (GPTQ | {"group_size": 16}, "holds no scales for 13 groups"),
        (GPTQ | {"dynamic": {"+:.*up": {"bits": 8}}}, "of their own .*`dynamic`.* are not read"),
        (AWQ | {"version": "gemv"}, "AWQ's layout 'gemv' is not read"),
        (AWQ | {"bits": 8}, "AWQ with 8 bits is not read"),
    ],
)
def test_configs_that_are_not_read(tmp_path, tiny, config, words):
    encode = awq() if config["quant_method"] == "awq" else gptq(4)
    folder, _ = quantized(tiny("llama"), tmp_path / "m", encode, GPTQ)
    change_config(folder, quantization_config=config)
    with pytest.raises(GwqError, match=words):
        Source(folder)
