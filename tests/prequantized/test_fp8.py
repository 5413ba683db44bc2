"""Models in FP8: what they stand for, and that a broken one is said."""

import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.folders import expected_logits
from tests.support.models import TINY, TINY_MODELS, save_tokenizer
from tests.support.prequantized import (
    MATRIX,
    change_config,
    change_tensors,
    logits_agree,
    quantized,
    stands_for,
)

FP8 = torch.float8_e4m3fn


def in_blocks(rows, cols, scale_name="weight_scale_inv", scale_dtype=torch.float32):
    """An encoder with one scale for every rows x cols, cut off at the edges."""

    def encode(weight):
        height, width = weight.shape
        grid = -(-height // rows), -(-width // cols)
        scale = torch.zeros(grid, dtype=torch.float32)
        for i in range(grid[0]):
            for j in range(grid[1]):
                block = weight[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
                scale[i, j] = block.abs().max() / 448
        if scale_dtype == torch.uint8:  # a power of two
            scale = scale.log2().ceil().exp2()
            stored = (scale.log2() + 127).to(torch.uint8)
        else:
            stored = scale.to(scale_dtype)
            scale = stored.float()
        by_row = torch.arange(height)[:, None] // rows
        full = scale[by_row, torch.arange(width)[None] // cols]
        codes = (weight / full).to(FP8)
        return {"weight": codes, scale_name: stored}, codes.float() * full

    return encode


def by_row(weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(FP8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def whole(weight):
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(FP8)
    extra = {"activation_scale": torch.tensor(1.0)}
    return {"weight": codes, "weight_scale_inv": scale} | extra, codes.float() * scale


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 48]}
KINDS = {
    "blocks": (in_blocks(32, 48), BLOCKS),
    "BF16 scales": (in_blocks(32, 48, scale_dtype=torch.bfloat16), BLOCKS),
    "powers of two": (
        in_blocks(32, 48, scale_dtype=torch.float8_e8m0fnu),
        BLOCKS | {"scale_fmt": "ue8m0"},
    ),
    "the usual blocks": (in_blocks(128, 128), {"quant_method": "fp8"}),
    "MXFP8": (in_blocks(1, 32, scale_dtype=torch.uint8), {"quant_method": "mxfp8"}),
    "a matrix": (whole, BLOCKS | {"weight_block_size": None, "activation_scheme": "static"}),
    "rows": (by_row, {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}),
    "ModelOpt": (by_row, {"quant_method": "modelopt", "quant_algo": "FP8"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "phi"])
def test_kinds_of_scales(tmp_path, tiny, name, kind):
    encode, config = KINDS[kind]
    folder, meant = quantized(tiny(name), tmp_path / "m", encode, config)
    source = stands_for(folder, meant)
    assert "FP8" in source.provenance["source_quantized"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3moe", "granite4", "ministral3"])
def test_logits_are_those_of_transformers(tmp_path, tiny, name):
    """transformers decodes FP8 where there is no GPU; only blocks that divide the matrix."""
    pytest.importorskip("accelerate", reason="transformers loads FP8 models with accelerate")
    skipped = ["lm_head", "model.layers.0.self_attn.o_proj"]
    config = BLOCKS | {"weight_block_size": [8, 8], "modules_to_not_convert": skipped}
    folder, meant = quantized(tiny(name), tmp_path / "m", in_blocks(8, 8), config)
    expected = expected_logits(folder)
    stands_for(folder, meant)
    logits_agree(folder, expected, 2e-4)


def test_some_matrices_stay_plain(tmp_path, tiny):
    def encode(weight):
        return by_row(weight) if weight.shape[0] == 200 else None

    config = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["self_attn"]}
    folder, meant = quantized(tiny("llama"), tmp_path / "m", encode, config)
    stands_for(folder, meant)


def test_the_text_model_of_a_larger_one(tmp_path, tiny):
    """As Ministral 3 comes: a scale for every matrix of the text model, a plain vision part."""
    import transformers

    name, settings = TINY_MODELS["ministral3"]
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    text = getattr(transformers, name)(**TINY | settings).to_dict()
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config=vision | {"num_attention_heads": 2},
        tie_word_embeddings=False,
    )
    plain = tmp_path / "plain"
    transformers.AutoModelForMultimodalLM.from_config(config).save_pretrained(plain)
    save_tokenizer(plain, TINY["vocab_size"])
    settings = BLOCKS | {"weight_block_size": None, "activation_scheme": "static"}
    folder, meant = quantized(plain, tmp_path / "m", whole, settings)
    source = Source(folder)
    assert source.provenance == {"source_quantized": "FP8"}
    for i in range(source.layers):
        for own in source.block(i).values():
            (name,) = (n for n in meant if n.endswith(own.removeprefix("model.")) and "lang" in n)
            torch.testing.assert_close(source.tensor(own), meant[name])


def test_it_is_calibrated_and_quantized_again(tmp_path, tiny, calib):
    folder, meant = quantized(tiny("llama"), tmp_path / "m", in_blocks(32, 48), BLOCKS)
    out = tmp_path / "out.gguf"
    gwq_export.export(folder, out, type="gwq4", samples=2, ctx=64, calib=calib, verify=True)
    file = gwq_export.open_gguf(out)
    assert file.metadata["gwq.source_quantized"] == "FP8"
    up = file.tensors["blk.1.ffn_up.weight"].dequantize()
    plain = meant[f"{MATRIX}.weight"].numpy()
    assert ((up - plain) ** 2).mean() < 0.02 * (plain**2).mean()


def test_a_folder_that_is_made_of_it_is_plain(tmp_path, tiny):
    """Its config is the quantized model's, but for how that is quantized."""
    from gwq_export.hf.restore import restore

    folder, _ = quantized(tiny("llama"), tmp_path / "m", in_blocks(32, 48), BLOCKS)
    gwq_export.export(folder, tmp_path / "m.gguf", type="f32")
    restore(gwq_export.open_gguf(tmp_path / "m.gguf"), tmp_path / "hf", config_from=folder)
    logits_agree(folder, expected_logits(tmp_path / "hf"), 2e-4)


SCALE = f"{MATRIX}.weight_scale_inv"
DAMAGE = {  # what is wrong -> (change of the tensors, words of the sentence)
    "no scale": (lambda t: t.pop(SCALE), f"{SCALE} or .* is missing; download"),
    "no codes": (lambda t: t.pop(f"{MATRIX}.weight"), f"{SCALE} .* belongs to no matrix"),
    "fewer blocks": (
        lambda t: t.update({SCALE: t[SCALE][:-1]}),
        rf"{SCALE} \(6x2, F32\) holds no scales for a matrix of 200x96.*32x48",
    ),
    "scales of integers": (lambda t: t.update({SCALE: t[SCALE].long()}), "I64. holds no scales"),
    "codes in three dimensions": (
        lambda t: t.update({f"{MATRIX}.weight": t[f"{MATRIX}.weight"][None]}),
        "is no matrix",
    ),
    "another matrix": (
        lambda t: t.update(
            {f"{MATRIX}.weight": t[f"{MATRIX}.weight"][:, :90], SCALE: t[SCALE][:, :2]}
        ),
        r"has shape \(200, 90\), but \(200, 96\) would fit",
    ),
    "codes that are no FP8": (
        lambda t: t.update({f"{MATRIX}.weight": t[f"{MATRIX}.weight"].view(torch.uint8)}),
        "belongs to no matrix",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_at_once(tmp_path, tiny, what):
    change, words = DAMAGE[what]
    folder, _ = quantized(tiny("llama"), tmp_path / "m", in_blocks(32, 48), BLOCKS)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=words):
        Source(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[SCALE].fill_(float("nan")),
        lambda t: t[SCALE].fill_(float("inf")),
        lambda t: t[f"{MATRIX}.weight"].view(torch.uint8)[3, 5].fill_(0x7F),  # e4m3's NaN
    ],
)
def test_numbers_that_are_none(tmp_path, tiny, change):
    folder, _ = quantized(tiny("llama"), tmp_path / "m", in_blocks(32, 48), BLOCKS)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=f"{MATRIX}.weight holds NaN or infinity"):
        Source(folder).tensor(f"{MATRIX}.weight")


@pytest.mark.parametrize(
    "config, words",
    [
        ({"quant_method": "vptq"}, "quant_method 'vptq' is not read .*export the original"),
        ({"weight_block_size": [32, 48]}, "quant_method None is not read"),
        ({"quant_method": ["fp8"]}, r"quant_method \['fp8'\] is not read"),
        (BLOCKS | {"weight_block_size": [32]}, "expected two positive numbers"),
        (BLOCKS | {"weight_block_size": [0, 48]}, "expected two positive numbers"),
        (BLOCKS | {"weight_block_size": "x"}, "expected two positive numbers"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "ModelOpt's 'W4A8_AWQ' is not"),
        ({"quant_method": "modelopt", "quant_algo": ["FP8"]}, "ModelOpt's .'FP8'. is not read"),
        ("fp8", "it is 'fp8', expected an object"),
    ],
)
def test_configs_that_are_not_read(tmp_path, tiny, config, words):
    folder, _ = quantized(tiny("llama"), tmp_path / "m", in_blocks(32, 48), BLOCKS)
    change_config(folder, quantization_config=config)
    with pytest.raises(GwqError, match=words):
        Source(folder)
