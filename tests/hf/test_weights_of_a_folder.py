"""Which tensors are the model's: the export takes those that transformers takes, or refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.folders import agrees, edited
from tests.support.models import TINY_MODELS

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS = "model.safetensors"


def reweighted(model, folder, change, config=None):
    """A copy of a folder; change: takes the weights and changes them, config: keys of it."""
    edited(model, folder, lambda c: c.update(config or {}))
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def other_head(weights):
    embed = weights[EMBED]
    noise = torch.randn(embed.shape, generator=torch.Generator().manual_seed(1))
    weights[HEAD] = embed + 0.3 * embed.std() * noise


def only_head(weights):
    weights[HEAD] = weights.pop(EMBED)


HEADS = {  # change of a tied model's weights -> whether the export is tied
    "none": (lambda w: None, True),
    "an equal one": (lambda w: w.update({HEAD: w[EMBED].clone()}), True),
    "another one": (other_head, False),
    "nothing but it": (only_head, True),
}


@pytest.mark.parametrize("what", sorted(HEADS))
@pytest.mark.parametrize("name", ["llama-bias", "qwen2", "gemma3"])
def test_the_head_of_a_tied_model(tmp_path, tiny, name, what, caplog):
    change, tied = HEADS[what]
    folder = reweighted(tiny(name), tmp_path / "m", change, {"tie_word_embeddings": True})
    if name == "qwen2":  # it is saved untied, with a head of its own
        weights = load_file(folder / WEIGHTS)
        if what == "none":
            del weights[HEAD]
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
    source = Source(folder)
    assert source.tied == tied
    assert ("differ" in caplog.text) == (not tied)
    agrees(folder)


def test_a_head_is_not_made_up(tmp_path, tiny):
    """transformers makes that of an untied model newly, at random."""
    folder = reweighted(tiny("llama"), tmp_path / "m", lambda w: w.pop(HEAD))
    with pytest.raises(GwqError, match=f"{HEAD} is missing, and the config does not tie it"):
        Source(folder)


def test_a_calibrated_export_of_a_head_of_its_own(tmp_path, tiny):
    """The walk through the blocks uses it too: the file is as close as one of an untied config."""
    import gwq_export

    found = {}
    for says in (True, False):
        folder = reweighted(
            tiny("llama-bias"), tmp_path / str(says), other_head, {"tie_word_embeddings": says}
        )
        out = folder / "m.gguf"
        gwq_export.export(folder, out, type="gwq4", samples=2, ctx=64)
        found[says] = gwq_export.open_gguf(out).tensors
    assert list(found[True]) == list(found[False])
    assert all(np.array_equal(t.data, found[False][n].data) for n, t in found[True].items())


def shards(folder, names, other):
    """An older checkpoint in shards, with its index."""
    save_file(other, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BESIDE = {  # what else lies in the folder: writes it, given the weights of another model
    "an older model": lambda f, w: save_file(w, f / "model_old.safetensors"),
    "consolidated": lambda f, w: save_file(
        {"tok.weight": w[EMBED]}, f / "consolidated.safetensors"
    ),
    "an adapter": lambda f, w: save_file(
        {LORA: torch.zeros(4, 64)}, f / "adapter_model.safetensors"
    ),
    "a Finder file": lambda f, w: (f / "._model.safetensors").write_bytes(bytes(4096)),
    "older shards": lambda f, w: shards(f, w, w),
}


@pytest.mark.parametrize("what", sorted(BESIDE))
def test_other_files_are_left_alone(tmp_path, tiny, what):
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    other = {k: torch.randn_like(v) for k, v in load_file(folder / WEIGHTS).items()}
    BESIDE[what](folder, other)
    agrees(folder)


def test_an_index_names_the_shards(tmp_path, tiny):
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards(folder, weights, weights)
    save_file({k: -v for k, v in weights.items()}, folder / "model-00002-of-00002.safetensors")
    agrees(folder)


def test_a_name_in_the_config(tmp_path, tiny):
    folder = edited(
        tiny("llama"), tmp_path / "m", lambda c: c.update(transformers_weights="mine.safetensors")
    )
    weights = {k: v * 1.1 for k, v in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / "mine.safetensors", {"format": "pt"})
    agrees(folder)


def test_no_file_with_the_name_of_weights(tmp_path, tiny):
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    (folder / WEIGHTS).rename(folder / "pytorch_model.safetensors")
    with pytest.raises(GwqError, match=r"no model\.safetensors and no model\.saf.*index"):
        Source(folder)


def test_an_adapter_in_the_folder_is_said(tmp_path, tiny, caplog):
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    Source(folder)
    assert "adapter_config.json" in caplog.text and "left out" in caplog.text


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_exactly_the_tensors_of_the_class(tmp_path, tiny, name):
    """Whatever tensor is missing is said, and so is one that the class does not have."""
    weights = load_file(tiny(name) / WEIGHTS)
    first = [w for w in weights if not re.search(r"\.(h|layers|experts)\.[1-9]", w)]
    for missing in first:
        folder = tmp_path / missing
        with pytest.raises(GwqError, match="is missing"):
            Source(reweighted(tiny(name), folder, lambda w, m=missing: w.pop(m)))
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight"])
def test_tensors_that_the_class_leaves_out(tmp_path, tiny, name):
    def add(weights):
        rows = weights["model.layers.0.self_attn.q_proj.weight"].shape[0]
        weights[f"model.layers.0.{name}"] = torch.ones(16 if "norm" in name else rows)

    with pytest.raises(GwqError, match="does not fit the config, by which there is none"):
        Source(reweighted(tiny("llama"), tmp_path / "m", add))


def test_a_bare_decoder(tmp_path, tiny):
    """Saved without the head's model around it: names lack the prefix."""
    folder = shutil.copytree(tiny("qwen2"), tmp_path / "m")
    weights = load_file(folder / WEIGHTS)
    save_file(
        {k.removeprefix("model."): v for k, v in weights.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    agrees(folder)


UNKNOWN = {"quantization_config": {"quant_method": "hqq"}}
QUANTIZED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}


def test_a_left_over_quantization_config(tmp_path, tiny, caplog):
    import gwq_export

    folder = edited(tiny("llama"), tmp_path / "m", lambda c: c.update(QUANTIZED))
    plain, left = tmp_path / "a.gguf", tmp_path / "b.gguf"
    gwq_export.export(tiny("llama"), plain, type="gwq4", samples=2, ctx=64)
    gwq_export.export(folder, left, type="gwq4", samples=2, ctx=64)
    assert "quantization_config" in caplog.text and "all weights are plain" in caplog.text
    assert plain.read_bytes()[-100_000:] == left.read_bytes()[-100_000:]


@pytest.mark.parametrize("type", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_the_key(tmp_path, tiny, type):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = reweighted(
        tiny("llama"), tmp_path / "m", lambda w: w.update({name: w[name].to(type)}), UNKNOWN
    )
    with pytest.raises(GwqError, match=r"quantization_config in config.json.*'hqq' is not read"):
        Source(folder)


def test_the_class_that_transformers_loads(tmp_path, tiny):
    """architectures may be missing; where it names another class than model_type, it is refused."""
    agrees(edited(tiny("qwen2"), tmp_path / "none", lambda c: c.update(architectures=None)))
    other = edited(
        tiny("qwen2"), tmp_path / "b", lambda c: c.update(architectures=["LlamaForCausalLM"])
    )
    with pytest.raises(GwqError, match=r"says LlamaForCausalLM, .* loads Qwen2ForCausalLM"):
        Source(other)
    layers = {"layer_types": ["full_attention"] * 3}  # transformers makes a Ministral of it
    with pytest.raises(GwqError, match=r"says MistralForCausalLM, .* loads MinistralForCausalLM"):
        Source(edited(tiny("mistral"), tmp_path / "c", lambda c: c.update(layers)))
    with pytest.raises(GwqError, match="architecture BertLMHeadModel is not supported"):
        Source(
            edited(
                tiny("qwen2"), tmp_path / "d", lambda c: (c.clear(), c.update(model_type="bert"))
            )
        )
