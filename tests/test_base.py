"""--base: weights of a GGUF file under the names of the checkpoint that it was made from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_MODELS, save_tiny
from test_cli import assert_one_line, call

import gwq_export
from gwq_export import GwqError
from gwq_export.base import Base
from gwq_export.format import TYPES, decode_stock, encode_stock
from gwq_export.source import Source

QUICK = {"samples": 1, "ctx": 24}


def bare(folder, out):
    """The folder without its weights."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    return Path(out)


def data(path):
    return {t.name: t.data.tobytes() for t in gwq_export.open_gguf(path).tensors.values()}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_weights_are_the_folders_to_the_bit(tiny, exported, tmp_path, name):
    path, _ = exported(tiny(name), type="f32")
    source, base = Source(tiny(name)), Base(bare(tiny(name), tmp_path / "hf"), path)
    assert base.tied == source.tied and base.dims == source.dims
    rows = [*source.ends(), *((source.arch.first[0], source.arch.head) for _ in range(not source.tied))]
    for i in range(source.layers):
        assert base.block(i) == source.block(i)
        rows += source.block(i).items()
    for row, hf in rows:  # of Gemma's norms, the file has one more; that sum is what is computed with
        assert torch.equal(base.tensor(hf) + row.plus, source.tensor(hf) + row.plus), hf
        assert base.shape(hf) == source.shape(hf)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}


def small(folder, config_class, dtype="float32", **settings):
    """A random model of two blocks in a float type."""
    from transformers import AutoModelForCausalLM

    save_tiny(folder, config_class, **SMALL | settings)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config_class, settings, kind", [
    ("LlamaConfig", HEADS | {"dtype": "bfloat16"}, "bf16"),  # permuted rows
    ("LlamaConfig", HEADS | {"dtype": "float16"}, "f16"),
    ("Gemma3TextConfig", HEADS | {"query_pre_attn_scalar": 16}, "f32"),  # norms less one
    ("GPT2Config", {"n_inner": 64}, "f32"),  # transposed
    ("GPTNeoXConfig", {}, "f32"),  # regrouped
    ("MixtralConfig", HEADS | {"num_local_experts": 3}, "f32"),
])  # fmt: skip
def test_a_file_gives_what_its_folder_gives(tmp_path, config_class, settings, kind):
    folder = small(tmp_path / "hf", config_class, **settings)
    gwq_export.export(folder, tmp_path / "base.gguf", type=kind)
    options = {"type": "gwq4", "outliers": 0.002} | QUICK
    gwq_export.export(folder, tmp_path / "direct.gguf", **options)
    gwq_export.export(bare(folder, tmp_path / "bare"), tmp_path / "m.gguf", base=tmp_path / "base.gguf", **options)
    assert data(tmp_path / "m.gguf") == data(tmp_path / "direct.gguf")
    one, two = (gwq_export.open_gguf(tmp_path / f"{name}.gguf").metadata for name in ("m", "direct"))
    assert (one["gwq.source_base"], one["gwq.source_base_types"]) == ("base.gguf", kind)
    assert set(one) - set(two) == {"gwq.source_base", "gwq.source_base_types"}
