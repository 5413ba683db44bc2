"""The text model of a larger model: what transformers computes with the whole one from a text."""

import json
import logging
import re
import shutil

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.hf.source import Source
from tests.support.models import TINY_MODELS, save_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
QWEN3_VISION = QWEN_VISION | {"out_hidden_size": 96, "deepstack_visual_indexes": [0]}
TIED, APART = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
# config class -> (row of TINY_MODELS whose settings the text model has, its own, keys beside
# text_config)
WHOLES = {
    "LlavaConfig": ("llama", {}, {"vision_config": VISION | HEADS} | APART),
    "Gemma3Config": ("gemma3", {}, {"vision_config": VISION | HEADS} | TIED),
    "Mistral3Config": ("ministral3", {}, {"vision_config": VISION | HEADS} | APART),
    "Idefics3Config": ("llama", {}, {"vision_config": VISION | HEADS} | APART),
    "InternVLConfig": ("qwen2", {}, {"vision_config": VISION | HEADS} | APART),
    "LlavaOnevisionConfig": ("qwen3", {}, {"vision_config": VISION | HEADS} | TIED),
    "Cohere2VisionConfig": ("cohere2", {}, {"vision_config": VISION | HEADS} | TIED),
    "Lfm2VlConfig": ("lfm2", {}, {"vision_config": VISION | HEADS} | TIED),
    "Lfm3VlConfig": ("lfm3", {}, {"vision_config": VISION | HEADS} | TIED),
    "Qwen2VLConfig": (
        "qwen2",
        {"rope_parameters": MROPE},
        {"vision_config": {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 96}} | APART,
    ),
    "Qwen2_5_VLConfig": (
        "qwen2",
        {"rope_parameters": MROPE},
        {"vision_config": QWEN_VISION | {"out_hidden_size": 96}} | TIED,
    ),
    "Qwen3VLConfig": (
        "qwen3",
        {"rope_parameters": MROPE | {"mrope_interleaved": True}},
        {"vision_config": QWEN3_VISION} | APART,
    ),
    "Glm4vConfig": (
        "glm4",
        {"rope_parameters": MROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
        {"vision_config": QWEN_VISION | {"out_hidden_size": 96}} | APART,
    ),
    "GlmOcrConfig": (
        "glm4",
        {"rope_parameters": MROPE},
        {"vision_config": QWEN_VISION | {"out_hidden_size": 96}} | APART,
    ),
    "PaddleOCRVLConfig": (
        "llama",
        {"rope_parameters": MROPE},
        {"vision_config": VISION | HEADS} | TIED,
    ),
    "Exaone4_5_Config": (
        "exaone4",
        {},
        {"vision_config": QWEN_VISION | {"out_hidden_size": 96}} | APART,
    ),
    "Qwen2AudioConfig": (
        "qwen2",
        {},
        {"audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}},
    ),
}
# the larger class leaves this number of the text model's own out
HEAD_SCALE = {"Cohere2VisionConfig": 0.25}
# saved name -> that of another layout in which published checkpoints are
LAYOUTS = {
    "language_model.model": {
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head": "language_model.lm_head",
        r"^model\.(vision|multi)": r"\1",
    },
    "model and visual": {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(config class) -> folder of a random model of it, made once."""
    import torch
    import transformers

    from tests.support.models import TINY

    made = {}

    def make(name):
        if name in made:
            return made[name]
        row, own, others = WHOLES[name]
        text_class, settings = TINY_MODELS[row]
        config_class = getattr(transformers, name)
        text = getattr(transformers, text_class)(**TINY | settings).to_dict()
        if "rope_parameters" in own:
            del text["model_type"]  # the larger class has a text config of its own
        config = config_class(text_config=text | own, **others)
        torch.manual_seed(4)
        model = transformers.AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
        for parameter_name, p in model.named_parameters():
            if p.dim() == 1:
                p.data += 0.3 * torch.randn_like(p)
            elif "language_model" in parameter_name or "lm_head" in parameter_name:
                p.data *= 5
        made[name] = folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        save_tokenizer(folder, TINY["vocab_size"])
        return folder

    return make


IDS = np.random.default_rng(5).integers(3, 900, 60)


def expected_logits(folder):
    import torch
    from transformers import AutoModelForMultimodalLM

    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS[None])).logits[0].numpy()


def agrees(folder, out, expected):
    gwq_export.export(folder, out, type="f32")
    error = np.abs(gwq_export.load(out).logits(IDS) - expected).max()
    assert error <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", WHOLES)
def test_logits_are_those_of_the_whole_model(tmp_path, whole, caplog, name):
    expected = expected_logits(whole(name)) * HEAD_SCALE.get(name, 1)
    assert np.abs(expected).max() > 0.5
    with caplog.at_level(logging.WARNING):
        agrees(whole(name), tmp_path / "m.gguf", expected)
    assert re.search(r"its text model is exported; left out: .*\(\d+ tensors\)", caplog.text)
    metadata = gwq_export.open_gguf(tmp_path / "m.gguf").metadata
    row = Source(whole(name)).arch
    assert metadata["general.architecture"] == row.gguf


@pytest.mark.parametrize("name", ["Qwen2VLConfig", "Gemma3Config"])
def test_it_is_calibrated_and_quantized(tmp_path, whole, calib, name):
    out = tmp_path / "m.gguf"
    gwq_export.export(whole(name), out, type="gwq4", samples=2, ctx=64, calib=calib)
    assert np.isfinite(gwq_export.load(out).logits(IDS)).all()


@pytest.mark.parametrize(
    "name, layout",
    [
        ("LlavaConfig", "language_model.model"),
        ("Mistral3Config", "language_model.model"),
        ("Gemma3Config", "language_model.model"),
        ("Qwen2VLConfig", "model and visual"),
        ("Qwen2_5_VLConfig", "model and visual"),
    ],
)
def test_checkpoints_in_other_layouts(tmp_path, whole, name, layout):
    from safetensors.torch import load_file, save_file

    expected = expected_logits(whole(name))
    folder = shutil.copytree(whole(name), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for old, tensor in tensors.items():
        new = old
        for pattern, replacement in LAYOUTS[layout].items():
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    agrees(folder, tmp_path / "m.gguf", expected)


def test_a_block_behind_the_last_is_left_out(tmp_path, whole, caplog):
    """As checkpoints have one that predicts the token after the next."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(whole("GlmOcrConfig"), tmp_path / "m")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors |= {n.replace(".3.", ".4."): t.clone() for n, t in tensors.items() if "layers.3." in n}
    save_file(tensors, path, {"format": "pt"})
    agrees(folder, tmp_path / "m.gguf", expected_logits(folder))
    assert "language_model (" in caplog.text


def test_what_cannot_be_told_is_said(tmp_path, whole):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(whole("LlavaConfig"), tmp_path / "m")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    inside = [name for name in tensors if "embed_tokens" in name or "layers.0." in name]
    twice = tensors | {f"talker.{name}": tensors[name].clone() for name in inside}
    save_file(twice, path, {"format": "pt"})
    with pytest.raises(GwqError, match=r"cannot be told.*found: .*talker"):
        Source(folder)
    without = {name: t for name, t in tensors.items() if "1.mlp.up_proj" not in name}
    save_file(without, path, {"format": "pt"})
    with pytest.raises(GwqError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        Source(folder)


def test_a_text_model_without_a_row(tmp_path, whole):
    folder = shutil.copytree(whole("LlavaConfig"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] = {"model_type": "mpt"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(GwqError, match="MptForCausalLM, the text model of LlavaForCond"):
        Source(folder)


def test_a_whole_folder_is_no_source_of_a_config(tmp_path, whole):
    from gwq_export.hf.restore import restore

    gwq_export.export(whole("LlavaConfig"), tmp_path / "m.gguf", type="f32")
    reader = gwq_export.open_gguf(tmp_path / "m.gguf")
    with pytest.raises(GwqError, match="more parts than text"):
        restore(reader, tmp_path / "hf", config_from=whole("LlavaConfig"))
    restore(reader, tmp_path / "hf")
    agrees(tmp_path / "hf", tmp_path / "again.gguf", expected_logits(whole("LlavaConfig")))
