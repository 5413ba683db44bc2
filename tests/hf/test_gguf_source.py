"""--base: weights of a GGUF file under the names of the checkpoint that it was made from."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.spec import gguf_name
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.hf.gguf_source import GGUFSource
from gwq_export.hf.hub import resolve
from gwq_export.hf.source import Source
from studies.oracle import checkpoint_weight
from tests.support.cli import assert_one_line, call
from tests.support.kills import Killed, killed_after
from tests.support.models import TINY_MODELS, save_tiny

QUICK = {"samples": 1, "ctx": 24}


@pytest.fixture(scope="module")
def calib(tmp_path_factory):
    """A calibration text that is read quickly."""
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text("The city lay by the river, and the river by the sea. " * 20)
    return path


def bare(folder, out):
    """The folder without its weights."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    return Path(out)


def data(path):
    return {t.name: t.data.tobytes() for t in gwq_export.open_gguf(path).tensors.values()}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_weights_are_the_folders_to_the_bit(tiny, exported, tmp_path, name):
    path, _ = exported(tiny(name), type="f32")
    source = Source(tiny(name))
    base = GGUFSource(bare(tiny(name), tmp_path / "hf"), path)
    assert base.tied == source.tied and base.dims == source.dims
    rows = [
        *source.ends(),
        *((source.arch.first[0], source.arch.head) for _ in range(not source.tied)),
    ]
    for i in range(source.layers):
        assert base.block(i) == source.block(i)
        rows += source.block(i).items()
    for (
        row,
        hf,
    ) in rows:  # of Gemma's norms, the file has one more; that sum is what is computed with
        assert torch.equal(base.tensor(hf) + row.plus, source.tensor(hf) + row.plus), hf
        assert base.shape(hf) == source.shape(hf)


@pytest.mark.parametrize("kind", ["q8_0", "gwq3", "bridge"])
def test_what_is_quantized_is_decoded(tiny, exported, calib, kind):
    """Side-tables and deltas included."""
    options = {"outliers": 0.02, "calib": calib} | QUICK if kind != "q8_0" else {}
    # 32 does not divide its width of 200
    options |= {"tensor_type": "ffn_down=f16"} if kind != "gwq3" else {}
    path, _ = exported(tiny("llama"), type=kind, **options)
    assert_decoded(path, gwq_export.open_gguf(path), tiny("llama"))


def assert_decoded(path, decoded, folder):
    """Every tensor is what `decoded`, a reader, says, as a checkpoint has it.

    The oracle of rows is reference.py's.
    """
    base = GGUFSource(folder, path)
    rows = [*base.ends(), (base.arch.first[0], base.arch.head)]
    names = [row.gguf for row, _ in base.ends()] + ["output.weight"]
    for i in range(base.layers):
        rows += base.block(i).items()
        names += [gguf_name(i, row) for row in base.block(i)]
    assert len(rows) == len(names) > 20
    for (row, hf), name in zip(rows, names, strict=True):
        assert np.array_equal(
            base.tensor(hf).numpy(),
            checkpoint_weight(decoded.tensors[name].dequantize(), base, row),
        ), name
    assert "f32" not in base.provenance["source_base_types"]


def test_stock_types_are_decoded_as_gguf_does(tmp_path):
    pytest.importorskip("gguf", reason="needs gguf-py, which the export extra installs")
    from tests.support.ggml_files import MIXED, decoded, rewrite

    wide = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "head_dim": 64,
        "num_hidden_layers": 2,
    }
    folder = save_tiny(tmp_path / "hf", "LlamaConfig", **wide)
    gwq_export.export(folder, tmp_path / "f32.gguf", type="f32")
    path = rewrite(tmp_path / "f32.gguf", tmp_path / "stock.gguf", MIXED)
    assert_decoded(path, decoded(path), folder)
    result = gwq_export.export(folder, tmp_path / "m.gguf", base=path, type="f16")
    assert result["bytes"]
    assert set(GGUFSource(folder, path).provenance["source_base_types"].split(", ")) == {
        t.name.lower() for t in MIXED.values()
    }


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}


def small(folder, config_class, dtype="float32", **settings):
    """A random model of two blocks in a float type."""
    from transformers import AutoModelForCausalLM

    save_tiny(folder, config_class, **SMALL | settings)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    "config_class, settings, kind",
    [
        ("LlamaConfig", HEADS | {"dtype": "bfloat16"}, "bf16"),  # permuted rows
        ("Gemma3TextConfig", HEADS | {"query_pre_attn_scalar": 16}, "f32"),  # norms less one
        ("MixtralConfig", HEADS | {"num_local_experts": 3}, "f32"),
    ],
)
def test_a_file_gives_what_its_folder_gives(tmp_path, calib, config_class, settings, kind):
    folder = small(tmp_path / "hf", config_class, **settings)
    gwq_export.export(folder, tmp_path / "base.gguf", type=kind)
    options = {"type": "gwq4", "outliers": 0.002, "calib": calib} | QUICK
    gwq_export.export(folder, tmp_path / "direct.gguf", **options)
    gwq_export.export(
        bare(folder, tmp_path / "bare"), tmp_path / "m.gguf", base=tmp_path / "base.gguf", **options
    )
    assert data(tmp_path / "m.gguf") == data(tmp_path / "direct.gguf")
    one, two = (
        gwq_export.open_gguf(tmp_path / f"{name}.gguf").metadata for name in ("m", "direct")
    )
    assert (one["gwq.source_base"], one["gwq.source_base_types"]) == ("base.gguf", kind)
    assert set(one) - set(two) == {"gwq.source_base", "gwq.source_base_types"}


def test_weights_are_the_files_and_not_the_folders(tmp_path, calib):
    """An F16 file of rounded weights beside the float32 checkpoint costs what the rounded
    checkpoint costs, in a sensitivity pass.
    """
    full = small(tmp_path / "full", "LlamaConfig", **HEADS)
    half = small(tmp_path / "half", "LlamaConfig", "float16", **HEADS)
    gwq_export.export(half, tmp_path / "f16.gguf", type="f16")
    options = {
        "report_only": True,
        "outliers": 0.0,
        "exclude": "token_embd|^output",
        "calib": calib,
    } | QUICK
    found = [
        gwq_export.export(folder, None, base=base, **options) | {"name": ""}
        for folder, base in [(full, tmp_path / "f16.gguf"), (half, None), (full, None)]
    ]
    assert found[0] == found[1] and found[0]["calibration_ppl"] != found[2]["calibration_ppl"]


def changed(path, out, keys=None, drop=(), tensors=None):
    """The file again with other keys, without some tensors, with others (name: float32) more or
    replaced.
    """
    reader = gwq_export.open_gguf(path)
    tensors = tensors or {}
    kept = {
        name: t for name, t in reader.tensors.items() if name not in drop and name not in tensors
    }
    layout = [(name, t.type, t.shape) for name, t in kept.items()] + [
        (name, TYPES["f32"], a.shape) for name, a in tensors.items()
    ]
    values = {k: reader.metadata[k] for k in reader.metadata} | (keys or {})
    with Writer(out, {k: v for k, v in values.items() if v is not None}, layout) as writer:
        for name, t in kept.items():
            writer.write(name, t.data)
        for name, a in tensors.items():
            writer.write(name, a)
    return out


def test_files_of_another_model_are_refused(tiny, exported, tmp_path):
    """In one sentence, before anything is computed."""
    path = exported(tiny("llama"), type="f32")[0]
    folder = bare(tiny("llama"), tmp_path / "hf")
    out = tmp_path / "base.gguf"
    reader = gwq_export.open_gguf(path)
    config = json.loads((folder / "config.json").read_text())
    embed = reader.tensors["token_embd.weight"].dequantize()
    name = "blk.1.ffn_up.weight"
    narrow = np.ones((199, 96), np.float32)
    for settings, file, words in [
        (
            {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
            {},
            "its architecture is llama, that of .*hf is qwen2",
        ),
        ({"num_hidden_layers": 4}, {}, "its number of blocks is 3, that of .*hf is 4"),
        # of the same shapes
        (
            {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32},
            {},
            "attention heads is 6",
        ),
        ({"hidden_size": 128}, {}, "its width is 96"),
        ({"vocab_size": 1000}, {}, "its vocabulary size is 1024"),
        (
            {"intermediate_size": 256},
            {},
            r"tensor .*gate_proj.weight has shape \(200, 96\), "
            r"but \(256, 96\) would fit the config",
        ),
        ({}, {"drop": [name]}, "layers.1.mlp.up_proj.weight is missing; give the whole file"),
        ({}, {"tensors": {name: narrow}}, "would fit the config"),
        (
            {},
            {"tensors": {name: narrow[None]}},
            r"tensor blk.1.ffn_up.weight \(1x199x96\) has no place",
        ),
        (
            {},
            {"tensors": {"blk.1.ffn_up.scale": np.ones(1, np.float32)}},
            "blk.1.ffn_up.scale .* has no place",
        ),
        ({}, {"keys": {"general.architecture": "clip"}}, "'clip' is not supported"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | settings))
        with pytest.raises(GwqError, match=words):
            GGUFSource(folder, changed(path, out, **file))
    (folder / "config.json").write_text(json.dumps(config))
    embed = np.where(np.arange(len(embed))[:, None] == 5, np.float32(np.nan), embed)
    with pytest.raises(GwqError, match=r"embed_tokens\.weight holds NaN"):
        GGUFSource(folder, changed(path, out, tensors={"token_embd.weight": embed})).tensor(
            "model.embed_tokens.weight"
        )


def test_vocabularies(tiny, exported, tmp_path, caplog):
    """Another one is refused; a few other names are said, and the folder's are taken; a file
    without one passes.
    """
    path = exported(tiny("llama"), type="f32")[0]
    out = tmp_path / "base.gguf"
    key = "tokenizer.ggml.tokens"
    folder = bare(tiny("llama"), tmp_path / "hf")
    tokens = gwq_export.open_gguf(path).metadata[key]
    with pytest.raises(
        GwqError, match=r"base.gguf is another model: \d+ of its 1024 tokens are not those of"
    ):
        gwq_export.export(
            folder,
            tmp_path / "m.gguf",
            base=changed(path, out, keys={key: tokens[::-1]}),
            type="f16",
        )
    assert not (tmp_path / "m.gguf").exists() and "other names" not in caplog.text
    gwq_export.export(
        folder,
        tmp_path / "m.gguf",
        base=changed(path, out, keys={key: [*tokens[:-2], "<a>", "<b>"]}),
        type="f16",
    )
    assert "2 of 1024 tokens have other names than in" in caplog.text
    assert gwq_export.open_gguf(tmp_path / "m.gguf").metadata[key] == tokens
    GGUFSource(folder, changed(path, out, keys={key: None})).check_vocabulary({key: tokens})


def test_flags(tiny, exported, tmp_path, capsys):
    """The command, files that are none, and a work folder that belongs to another base."""
    path = exported(tiny("llama"), type="f32")[0]
    folder = bare(tiny("llama"), tmp_path / "hf")
    out = tmp_path / "m.gguf"
    assert (
        call(
            capsys,
            "export",
            folder,
            "--out",
            out,
            "--base",
            path,
            "--type",
            "q8_0",
            "--tensor-type",
            "ffn_down=f16",
        )[0]
        == 0
    )
    assert data(out) == data(exported(tiny("llama"), type="q8_0", tensor_type="ffn_down=f16")[0])
    (tmp_path / "x").write_text("x")
    for base, words in [
        (out, "that is the file to be written"),
        (tmp_path / "x", "not a GGUF file"),
        (tmp_path / "y", "does not exist"),
    ]:
        status, _, err = call(capsys, "export", folder, "--out", out, "--base", base)
        assert_one_line("export", status, err, words)
    with pytest.raises(GwqError, match=r"no .*safetensors"):
        gwq_export.export(folder, out)


def test_work_of_another_base_is_refused(tiny, exported, tmp_path, calib):
    path = exported(tiny("llama"), type="f32")[0]
    folder = bare(tiny("llama"), tmp_path / "hf")
    base = tmp_path / "base.gguf"
    options = {"type": "gwq4", "work_dir": tmp_path / "work", "calib": calib} | QUICK
    shutil.copyfile(path, base)
    with pytest.raises(Killed), killed_after(40):
        gwq_export.export(folder, tmp_path / "m.gguf", base=base, **options)
    other = shutil.copyfile(path, tmp_path / "other.gguf")
    for given in ({"base": other}, {}):
        with pytest.raises(GwqError, match="holds the work of another export"):
            gwq_export.export(tiny("llama"), tmp_path / "m.gguf", **options, **given)
    os.utime(base, (1, 1))
    with pytest.raises(GwqError, match="holds the work of another export"):
        gwq_export.export(folder, tmp_path / "m.gguf", base=base, **options)


def test_of_a_hub_id_the_weights_are_left_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda id, **options: asked.append(options["allow_patterns"]) or tmp_path,
    )
    for weights in (True, False):
        assert resolve("some/model", weights=weights) == tmp_path
    assert set(asked[0]) - set(asked[1]) == {"*.safetensors"} and "*.json" in asked[1]
