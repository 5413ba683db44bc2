"""Folders that are no whole unquantized model: the refusal says what they are and what to do."""

import json
import shutil

import pytest

from gwq_export import GwqError
from gwq_export.hf.source import Source

MATRIX = "model.layers.0.self_attn.q_proj"


def with_tensors(tiny, folder, *names, config=None):
    """A copy of a small model in which tensors of these names stand for a matrix."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop(f"{MATRIX}.weight")
    save_file(tensors | {name: weight.clone() for name in names}, folder / "model.safetensors")
    if config:
        change(folder, config)
    return folder


def change(folder, edit):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))


@pytest.mark.parametrize(
    "endings, words",
    [
        (["qweight", "qzeros", "scales", "g_idx"], "by GPTQ "),
        (["qweight", "qzeros", "scales"], "by AWQ or GPTQ "),
        (["weight_packed", "weight_scale", "weight_shape"], "by compressed-tensors "),
        (["weight", "weight_scale_inv"], "by FP8 "),
        (["weight", "SCB"], r"by bitsandbytes \(8 bits\) "),
        (["weight", "weight.absmax", "weight.quant_map"], r"by bitsandbytes \(4 bits\) "),
        (["trellis", "suh", "svh"], "by EXL3 "),
    ],
)
def test_quantized_tensors(tiny, tmp_path, endings, words):
    folder = with_tensors(tiny, tmp_path / "m", *(f"{MATRIX}.{e}" for e in endings))
    with pytest.raises(GwqError, match=f"{words}.*export the unquantized model"):
        Source(folder)


def test_adapters(tiny, tmp_path):
    """A folder of an adapter alone, and its tensors beside a config."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(GwqError, match=r"adapter \(LoRA\) of org/base.*as --lora"):
        Source(folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(GwqError, match="of its base model"):
        Source(folder)
    name = f"base_model.model.{MATRIX}.lora_A.weight"
    folder = with_tensors(tiny, tmp_path / "m", f"{MATRIX}.weight", name)
    with pytest.raises(GwqError, match="this folder as --lora"):
        Source(folder)


def test_a_folder_of_gguf_files(tmp_path):
    (tmp_path / "model-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(GwqError, match=r"give one of them, such as model-Q8_0\.gguf"):
        Source(tmp_path)


@pytest.mark.parametrize("value", [None, []])
def test_a_config_without_a_class(tiny, tmp_path, value):
    """The folder is read as the class that transformers chooses by model_type."""
    for name in ("llama", "qwen3moe", "gemma3", "gpt2", "gptneox", "phi"):
        folder = tmp_path / name
        shutil.copytree(tiny(name), folder)
        before = Source(folder).arch
        change(folder, {"architectures": value})
        assert Source(folder).arch == before
