"""Models that bitsandbytes has quantized."""

import json
import shutil

import pytest
import torch

from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.folders import IDS
from tests.support.prequantized import (
    MATRIX,
    change_tensors,
    logits_agree,
    quantized,
    replaced,
    stands_for,
)

LEVELS = torch.linspace(-1, 1, 16) ** 3
BYTES = torch.linspace(-1, 1, 256)


def in_levels(run=64, nested_run=0, state_of=None):
    """A table of 16 levels, a scale for each run of weights; nested_run: scales in bytes."""

    def encode(weight):
        flat = weight.reshape(-1)
        padded = torch.cat((flat, torch.zeros(-len(flat) % run))).view(-1, run)
        scale = padded.abs().amax(1)
        said = {"shape": list(weight.shape), "blocksize": run, "dtype": "float32"}
        pieces = {"weight.quant_map": LEVELS.clone()}
        if nested_run:
            offset = float(scale.mean())
            rest = torch.cat((scale - offset, torch.zeros(-len(scale) % nested_run)))
            outer = rest.view(-1, nested_run).abs().amax(1)
            full = outer.repeat_interleave(nested_run)[: len(scale)]
            part = ((scale - offset)[:, None] / full[:, None] - BYTES).abs().argmin(1)
            scale = BYTES[part] * full + offset
            said |= {"nested_blocksize": nested_run, "nested_offset": offset}
            pieces["weight.absmax"] = part.to(torch.uint8)
            pieces |= {"weight.nested_absmax": outer, "weight.nested_quant_map": BYTES.clone()}
        else:
            pieces["weight.absmax"] = scale
        code = (padded[:, :, None] / scale[:, None, None] - LEVELS).abs().argmin(2)
        meant = (LEVELS[code] * scale[:, None]).view(-1)[: len(flat)].view(weight.shape)
        code = code.view(-1)[: len(flat) + len(flat) % 2].to(torch.uint8).view(-1, 2)
        pieces["weight"] = (code[:, 0] << 4 | code[:, 1])[:, None]
        text = json.dumps(said | (state_of or {})).encode()
        pieces["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        return pieces, meant

    return encode


def in_bytes(weight):
    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round()
    pieces = {"weight": codes.to(torch.int8), "SCB": scale}
    pieces["weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return pieces, codes * scale[:, None] / 127


CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {
    "4 bits": in_levels(),
    "4 bits, runs across rows": in_levels(128),
    "4 bits, nested scales": in_levels(64, 256),
    "4 bits, a run that is cut off": in_levels(512, 16),
    "8 bits": in_bytes,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_kinds(tmp_path, tiny, name, kind):
    folder, meant = quantized(tiny(name), tmp_path / "m", KINDS[kind], CONFIG)
    source = stands_for(folder, meant)
    assert source.provenance["source_quantized"] == f"bitsandbytes ({kind[:6]})"


BY_THE_LIBRARY = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4, nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("kind", BY_THE_LIBRARY)
def test_logits_are_those_of_the_library(tmp_path, round_model, kind):
    """Of the weights that it makes of a model that it has quantized."""
    for package in ("bitsandbytes", "accelerate"):
        pytest.importorskip(package, reason="transformers needs it for these models")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**BY_THE_LIBRARY[kind])
    AutoModelForCausalLM.from_pretrained(
        round_model, quantization_config=config, dtype=torch.float32
    ).save_pretrained(tmp_path / "m")
    for path in round_model.glob("*token*"):
        shutil.copy(path, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        expected = model.dequantize(torch.float32).eval()(torch.tensor([IDS])).logits[0].numpy()
    logits_agree(tmp_path / "m", expected, 2e-4)


STATE = "weight.quant_state.bitsandbytes__nf4"
NESTED = "4 bits, nested scales"
DAMAGE = {  # what is wrong -> (kind, change of the tensors, words of the sentence)
    "no scales": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight.absmax"), "absmax .*is missing"),
    "no settings": ("4 bits", lambda t: t.pop(f"{MATRIX}.{STATE}"), "quant_state.*is missing"),
    "settings of floats": ("4 bits", replaced(STATE, torch.Tensor.float), "holds no settings"),
    "settings that are no JSON": ("4 bits", replaced(STATE, lambda t: t[1:]), "cannot be read"),
    "no levels": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight.quant_map"), "quant_map.*is missing"),
    "no codes": ("4 bits", lambda t: t.pop(f"{MATRIX}.weight"), "belongs to no matrix"),
    "fewer levels": (
        "4 bits",
        replaced("weight.quant_map", lambda t: t[:8]),
        "is no table of 16 levels",
    ),
    "fewer codes": (
        "4 bits",
        replaced("weight", lambda t: t[1:]),
        r"weight \(9599x1, U8\) holds no matrix of 200x96 with 4 bits",
    ),
    "fewer scales": (
        "4 bits",
        replaced("weight.absmax", lambda t: t[1:]),
        r"absmax \(299, F32\) holds no scales for 300 runs of 64 weights",
    ),
    "scales of scales that lack": (
        NESTED,
        lambda t: t.pop(f"{MATRIX}.weight.nested_absmax"),
        "the nested scale of .*absmax is missing",
    ),
    "fewer scales of scales": (
        NESTED,
        replaced("weight.nested_absmax", lambda t: t[:1]),
        "does not fit .*absmax: 2 numbers would",
    ),
    "bytes without scales": ("8 bits", lambda t: t.pop(f"{MATRIX}.SCB"), "SCB .*is missing"),
    "bytes with fewer scales": (
        "8 bits",
        replaced("SCB", lambda t: t[1:]),
        r"SCB \(199, F32\) holds no scales for 200 rows",
    ),
    "bytes in another order": (
        "8 bits",
        replaced("weight_format", lambda t: t + 1),
        "names an order of weights that is not read",
    ),
    "bytes in three dimensions": ("8 bits", replaced("weight", lambda t: t[None]), "is no matrix"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_said_at_once(tmp_path, tiny, what):
    kind, change, words = DAMAGE[what]
    folder, _ = quantized(tiny("llama"), tmp_path / "m", KINDS[kind], CONFIG)
    change_tensors(folder, change)
    with pytest.raises(GwqError, match=words):
        Source(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"blocksize": 0},
        {"blocksize": "64"},
        {"shape": [200]},
        {"shape": [-200, -96]},
        {"shape": None},
        {"nested_blocksize": 256},
        {"nested_blocksize": 256, "nested_offset": "x"},
    ],
)
def test_settings_that_cannot_be(tmp_path, tiny, said):
    folder, _ = quantized(tiny("llama"), tmp_path / "m", in_levels(state_of=said), CONFIG)
    with pytest.raises(GwqError, match=r"its settings can.*download the model again"):
        Source(folder)
