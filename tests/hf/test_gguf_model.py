"""A GGUF file alone is a model: what is exported from it is what its folder would give."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.config import read_config
from gwq_export.calibration.block_model import BlockModel
from gwq_export.hf.gguf_checkpoint import bytes_of
from gwq_export.hf.gguf_model import GGUFModel
from gwq_export.hf.opened import open_model
from gwq_export.hf.source import Source
from tests.support.cli import assert_one_line, call
from tests.support.models import TINY_MODELS, save_tiny
from tests.support.split_files import split

QUICK = {"samples": 1, "ctx": 24}
OWN = ("gwq.source_base", "gwq.source_base_types")


def logits(source, ids):
    """float32 (n, vocab) by transformers' modules with a source's config and weights."""
    model = BlockModel(source, "cpu")
    model.load_ends()
    hidden = model.embed(ids)
    for i in range(source.layers):
        model.load(i)
        hidden = model.run(i, hidden)
    return model.logits(ids, hidden).numpy()


@pytest.mark.parametrize("name", TINY_MODELS)
@torch.no_grad()
def test_transformers_computes_the_same(tiny, exported, name):
    """Config and weights from the file's keys, against the folder's own."""
    folder, file = Source(tiny(name)), GGUFModel(exported(tiny(name), type="f32")[0])
    assert (file.tied, file.layers, file.vocab) == (folder.tied, folder.layers, folder.vocab)
    assert file.heads == folder.heads and file.embedding_scale == folder.embedding_scale
    assert {key: file.dims[key] for key in folder.dims} == folder.dims
    for n in (48, 100) if name == "longrope" else (48,):  # either list of factors
        ids = torch.from_numpy(np.random.default_rng(n).integers(0, 1024, (1, n)))
        expected, found = (logits(source, ids) for source in (folder, file))
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), name


@pytest.mark.parametrize("name", ["llama3-rope", "gemma3", "qwen3moe", "gpt2"])
def test_a_file_gives_what_its_folder_gives(tiny, exported, calib, tmp_path, name):
    """The same codes, and the same keys beside those that name the file."""
    options = {"type": "gwq4", "outliers": 0.002, "calib": calib} | QUICK
    if name == "llama3-rope":  # the file has its factors rounded: last bits of states differ
        options |= {"fast": True}
    path, _ = exported(tiny(name), type="f32")
    gwq_export.export(path, tmp_path / "m.gguf", **options)
    one, two = (
        gwq_export.open_gguf(p) for p in (tmp_path / "m.gguf", exported(tiny(name), **options)[0])
    )
    assert set(one.metadata) - set(two.metadata) == set(OWN)
    assert one.metadata["gwq.source_base"] == path.name
    for key in two.metadata:
        assert np.array_equal(one.metadata[key], two.metadata[key]), key
    for tensor, other in zip(one.tensors.values(), two.tensors.values(), strict=True):
        assert tensor.name == other.name and np.array_equal(tensor.data, other.data), tensor.name


def test_a_stock_file_keeps_its_keys(tmp_path):
    """Names, tokens, chat template, stop tokens and licence; not what is the file's own."""
    pytest.importorskip("gguf", reason="needs gguf-py, which the export extra installs")
    from tests.support.ggml_files import MIXED, decoded, rewrite

    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    folder = save_tiny(tmp_path / "hf", "LlamaConfig", head_dim=64, num_hidden_layers=2, **wide)
    gwq_export.export(folder, tmp_path / "f32.gguf", type="f32")
    stock = changed(
        rewrite(tmp_path / "f32.gguf", tmp_path / "stock.gguf", MIXED),
        {
            "general.name": "Tiny",
            "general.license": "apache-2.0",
            "general.tags": ["a", "b"],
            "general.size_label": "1M",
            "tokenizer.ggml.eot_token_id": 2,
            "tokenizer.ggml.eom_token_id": 3,
            "tokenizer.chat_template": "{{ messages[0]['content'] }}!",
            "quantize.imatrix.file": "x.dat",
            "split.count": np.uint16(0),
        },
    )
    out = tmp_path / "m.gguf"
    gwq_export.export(stock, out, type="f32")
    there, back = reader(stock), reader(out)
    own = ("general.file_type", "gwq.", "quantize.", "split.")
    kept = [key for key in there.metadata if not key.startswith(own)]
    assert len(kept) > 25
    assert [key for key in back.metadata if not key.startswith(own)] and all(
        np.array_equal(back.metadata[key], there.metadata[key]) for key in kept
    )
    assert not any(key.startswith(("quantize.", "split.")) for key in back.metadata)
    assert back.metadata["general.file_type"] == 0
    assert read_config(back) == read_config(there)
    expected = decoded(stock)
    for name, tensor in back.tensors.items():
        assert np.array_equal(tensor.dequantize(), expected.tensors[name].dequantize()), name
    model = gwq_export.load(out, threads=1)
    assert model.tokenizer.chat([{"role": "user", "content": "hi"}]) == "hi!"
    assert {2, 3} <= model.tokenizer.stop_ids


def reader(path):
    from gwq_export.format.foreign import foreign_type
    from gwq_export.format.reader import Reader

    return Reader(path, foreign_type)


def changed(path, keys):
    """The file with other keys, a value of None for none; in its place."""
    from gwq_export.format.writer import Writer

    old = reader(path)
    values = {key: old.metadata[key] for key in old.metadata} | keys
    values = {key: value for key, value in values.items() if value is not None}
    data = {name: t.data.copy() for name, t in old.tensors.items()}
    out = path.with_name("changed-" + path.name)
    with Writer(out, values, [(t.name, t.type, t.shape) for t in old.tensors.values()]) as writer:
        for name, array in data.items():
            writer.write(name, array)
    return out


def test_a_head_that_is_a_copy_of_the_embedding_is_not_stored_twice(tiny, exported, tmp_path):
    from gwq_export.format.writer import Writer

    path, _ = exported(tiny("llama-bias"), type="f32")
    there = reader(path)
    embed = there.tensors["token_embd.weight"]
    assert "output.weight" not in there.tensors
    for change in (0, 1):
        out = tmp_path / f"{change}.gguf"
        copy = embed.data.copy()
        copy[5] ^= change
        tensors = [*there.tensors.values(), replace(embed, name="output.weight", data=copy)]
        metadata = {key: there.metadata[key] for key in there.metadata}
        with Writer(out, metadata, [(t.name, t.type, t.shape) for t in tensors]) as writer:
            for t in tensors:
                writer.write(t.name, t.data)
        assert GGUFModel(out).tied is not bool(change)
        gwq_export.export(out, tmp_path / "m.gguf", type="f32")
        assert ("output.weight" in reader(tmp_path / "m.gguf").tensors) == bool(change)
        expected, found = (gwq_export.load(p, threads=1) for p in (out, tmp_path / "m.gguf"))
        assert np.array_equal(found.logits([1, 2]), expected.logits([1, 2]))


@pytest.mark.parametrize("changed_byte", [None, 0, -1])
def test_a_head_is_compared_piece_by_piece(tiny, exported, tmp_path, monkeypatch, changed_byte):
    """The last piece, too, and without the map."""
    read = []
    monkeypatch.setattr("gwq_export.hf.gguf_model.AT_ONCE", 1000)
    monkeypatch.setattr(
        "gwq_export.hf.gguf_model.bytes_of", lambda *a: (read.append(a[1]), bytes_of(*a))[1]
    )
    path = shutil.copy(exported(tiny("llama"), type="f16")[0], tmp_path / "m.gguf")
    head, embed = (reader(path).tensors[f"{n}.weight"] for n in ("output", "token_embd"))
    data = bytearray(path.read_bytes())
    copy = data[embed.offset : embed.offset + embed.nbytes]
    if changed_byte is not None:
        copy[changed_byte] ^= 1
    data[head.offset : head.offset + head.nbytes] = copy
    path.write_bytes(data)
    assert GGUFModel(path).tied == (changed_byte is None)
    pieces = 1 if changed_byte == 0 else -(-head.nbytes // 1000)
    assert read == [1000 * i for i in range(pieces) for _ in "ab"]


@pytest.mark.parametrize("kind", ["gwq3", "bridge"])
def test_a_file_of_ours(tiny, exported, calib, tmp_path, kind):
    """Tiles, side-tables and deltas are decoded; its gwq.* keys do not pass for the new file's."""
    options = {"outliers": 0.02, "calib": calib} | QUICK
    options |= {"tensor_type": "ffn_down=f16"} if kind == "bridge" else {}
    path, _ = exported(tiny("llama"), type=kind, **options)
    gwq_export.export(path, tmp_path / "m.gguf", type="f32")
    there, back = gwq_export.open_gguf(path), gwq_export.open_gguf(tmp_path / "m.gguf")
    assert {key for key in back.metadata if key.startswith("gwq.")} == set(OWN)
    for name, tensor in back.tensors.items():
        assert np.array_equal(tensor.dequantize(), there.tensors[name].dequantize()), name


def test_in_parts_with_a_budget_and_a_kept_folder(tiny, exported, calib, tmp_path):
    """The same file from parts; the parts are what a work folder belongs to."""
    path, _ = exported(tiny("llama"), type="f32")
    names = list(gwq_export.open_gguf(path).tensors)
    first, second = split(path, tmp_path, [names[:7]])
    # a name of the same length, as the file says what it was made from
    path = shutil.copy(path, tmp_path / "whole.gguf".rjust(len(first.name), "x"))
    options = {"bpw": 6.0, "calib": calib} | QUICK
    results = [
        gwq_export.export(model, tmp_path / f"{i}.gguf", **options)
        for i, model in enumerate((path, str(first)))
    ]
    assert results[0]["bytes"] == pytest.approx(results[1]["bytes"], abs=256)
    one, two = (gwq_export.open_gguf(tmp_path / f"{i}.gguf") for i in range(2))
    assert all(np.array_equal(t.data, two.tensors[n].data) for n, t in one.tensors.items())
    assert [name for name, *_ in GGUFModel(first).files] == [str(first), str(second)]


def test_verify_and_card(tiny, exported, calib, tmp_path):
    """What else an export makes asks the source for more than tensors."""
    path = changed(
        exported(tiny("llama"), type="f32")[0], {"general.license": "mit", "general.name": "Tiny"}
    )
    result = gwq_export.export(
        path,
        tmp_path / "m.gguf",
        type="q8_0",
        tensor_type="ffn_down=f16",
        verify=True,
        verify_text=calib,
        card=tmp_path / "README.md",
        ctx=24,
    )
    assert result["verify"]["kld_mean"] < 0.01
    text = (tmp_path / "README.md").read_text()
    assert "license: mit" in text and "# Tiny, quantized" in text


def test_refusals(tiny, exported, tmp_path, capsys):
    path, _ = exported(tiny("llama"), type="f32")
    copy = changed(path, {})
    out = tmp_path / "m.gguf"
    (tmp_path / "x.gguf").write_text("x")
    (tmp_path / "x.safetensors").write_bytes(bytes(99))
    metadata = gwq_export.open_gguf(path).metadata
    tokens = [*metadata["tokenizer.ggml.tokens"], "<more>"]
    for model, options, words in [
        (path, ["--base", path], "the weights are those of MODEL: leave --base out"),
        (path, ["--revision", "main"], "a file has none: leave --revision out"),
        (tmp_path / "x.gguf", [], "is a file, but not a GGUF file: give the model's folder"),
        (tmp_path / "x.safetensors", [], "is a file, but not a GGUF file"),
        (tmp_path / "y.gguf", [], "no such folder or file"),
        ({"tokenizer.ggml.tokens": tokens}, [], "1025 tokens and 1024 embeddings"),
        ({"general.architecture": "clip"}, [], "'clip' is not supported"),
        ({"llama.block_count": 4}, [], "layers.3.input_layernorm.weight is missing"),
    ]:
        model = changed(path, model) if isinstance(model, dict) else model
        status, _, err = call(capsys, "export", model, "--out", out, "--type", "f16", *options)
        assert_one_line("export", status, err, words)
    status, _, err = call(capsys, "export", copy, "--out", copy, "--type", "f16")
    assert_one_line("export", status, err, "that is the file of MODEL too")
    # calibration reads text
    status, _, err = call(
        capsys, "export", changed(path, {"tokenizer.ggml.tokens": None}), "--out", out
    )
    assert_one_line("export", status, err, "tokenizer.ggml.tokens is missing")
    assert not out.exists()


def test_what_transformers_cannot_be_told_is_said_before_long_work(tiny, exported, tmp_path):
    path = changed(exported(tiny("gemma2-scalar"), type="f32")[0], {"gemma2.attention.scale": 0.15})
    with pytest.raises(GwqError, match=r"attention\.scale.*give the model's folder.*--base"):
        gwq_export.export(path, tmp_path / "m.gguf", type="gwq4", **QUICK)


def test_the_name_of_the_pre_tokenizer(exported):
    path, _ = exported(type="f32")
    key = "tokenizer.ggml.pre"
    assert open_model(path).keys[key] == gwq_export.open_gguf(path).metadata[key]
    assert open_model(path, tokenizer_pre="qwen2").keys[key] == "qwen2"
    assert json.dumps(open_model(path).name)
