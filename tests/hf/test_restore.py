"""A file back as a Hugging Face folder, which transformers loads and computes with."""

import json

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.config import read_config
from gwq_export.hf import restore
from gwq_export.hf.source import Source
from tests.support.models import TINY_MODELS
from tests.support.paths import REFERENCE


def logits_of(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            .eval()(torch.tensor([ids]))
            .logits[0]
            .numpy()
        )


ASKS = ("llama3-rope",)  # its factors have no name in a config of their own


@pytest.mark.parametrize("name", TINY_MODELS)
def test_transformers_computes_what_the_runtime_does(tiny, exported, tmp_path, name):
    path, _ = exported(tiny(name), type="f32")
    if name in ASKS:
        with pytest.raises(GwqError, match="folder with --config-from"):
            restore.restore(gwq_export.open_gguf(path), tmp_path / "hf")
    restore.restore(
        gwq_export.open_gguf(path),
        tmp_path / "hf",
        config_from=tiny(name) if name in ASKS else None,
    )
    ids = np.random.default_rng(0).integers(0, 1024, 48).tolist()
    expected = gwq_export.load(path).logits(ids)
    assert np.abs(logits_of(tmp_path / "hf", ids) - expected).max() < 2e-4 * np.abs(expected).max()
    if name == "longrope":  # the other list of factors
        ids = np.random.default_rng(1).integers(0, 1024, 100).tolist()
        expected = gwq_export.load(path).logits(ids)
        assert (
            np.abs(logits_of(tmp_path / "hf", ids) - expected).max() < 2e-4 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    "name", ["mistral", "gemma3-every", "gpt2", "longrope", "mixtral", "qwen3moe-plain"]
)
def test_there_and_back(tiny, exported, tmp_path, name):
    """Quantized file -> folder -> float32 file: weights are the file's to the bit, and so are all
    hyperparameters.
    """
    path, _ = exported(tiny(name), type="gwq4", preset="paper", samples=2, ctx=64)
    restore.restore(gwq_export.open_gguf(path), tmp_path / "hf")
    gwq_export.export(tmp_path / "hf", tmp_path / "f32.gguf", type="f32")
    there, back = gwq_export.open_gguf(path), gwq_export.open_gguf(tmp_path / "f32.gguf")
    assert read_config(there) == read_config(back)
    matrices = [t for t in there.tensors.values() if not t.companion]
    assert matrices
    assert all(np.array_equal(t.dequantize(), back.tensors[t.name].dequantize()) for t in matrices)


def test_an_unquantized_file_gives_the_source_back(exported, tmp_path):
    path, _ = exported(type="f32")
    found = restore.restore(gwq_export.open_gguf(path), tmp_path / "hf", "float16")
    there, back = Source(REFERENCE), Source(tmp_path / "hf")
    assert back.tied
    assert back.layers == there.layers
    assert back.dims == there.dims
    assert back.heads == there.heads
    for name in [
        there.arch.embed,
        there.arch.norm,
        *(n for i in range(there.layers) for n in there.block(i).values()),
    ]:
        # the source is float16
        assert np.array_equal(there.tensor(name).numpy(), back.tensor(name).numpy()), name
    for key in (
        "rms_norm_eps",
        "max_position_embeddings",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
    ):
        assert back.config[key] == there.config[key], key
    assert found["files"] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert found["bytes"] == sum(p.stat().st_size for p in (tmp_path / "hf").iterdir())


def test_the_tokenizer_comes_along(exported, shared, tmp_path):
    """Ids, BOS included, as transformers reads them; for both families."""
    from transformers import AutoTokenizer

    text = "Once upon a time, there were 12 Grüße\n\tto you."
    for model in (REFERENCE, shared / "models" / "stories260K"):
        path, _ = exported(model, type="f16")
        folder = tmp_path / model.name
        restore.restore(gwq_export.open_gguf(path), folder)
        ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(model)
        assert (
            ours(text)["input_ids"]
            == theirs(text)["input_ids"]
            == gwq_export.load(path).tokenizer.encode(text)
        )
        assert (
            ours(text, text)["input_ids"][: len(ours(text)["input_ids"])] == ours(text)["input_ids"]
        )
        assert ours.decode(ours(text)["input_ids"], skip_special_tokens=True).strip() == text
        if theirs.chat_template:
            chat = [{"role": "user", "content": "hello"}]
            assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(
                chat, tokenize=False
            )


@pytest.mark.parametrize(
    "dtype, bytes_per_weight", [("float32", 4), ("float16", 2), ("bfloat16", 2)]
)
def test_shards_and_types(tiny, exported, tmp_path, monkeypatch, dtype, bytes_per_weight):
    path, result = exported(tiny("llama"), type="gwq4", samples=1, ctx=32)
    monkeypatch.setattr(restore, "SHARD", 200_000)
    restore.restore(gwq_export.open_gguf(path), tmp_path / "hf", dtype)
    files = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == bytes_per_weight * result["params"]
    assert set(index["weight_map"].values()) == set(files)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == dtype
    got = Source(tmp_path / "hf").tensor("model.layers.2.mlp.up_proj.weight").numpy()
    expected = gwq_export.open_gguf(path).tensors["blk.2.ffn_up.weight"].dequantize()
    assert (
        np.abs(got - expected).max()
        <= np.abs(expected).max() * {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    )


def test_what_the_keys_do_not_say_is_asked_for(tiny, exported, tmp_path):
    """Scales of scores that no config can name exactly, and factors that a file from elsewhere
    leaves out.
    """
    for name, change, words in [
        ("gemma2-scalar", {"gemma2.attention.scale": 0.15}, "attention.scale"),
        ("granite", {"granite.logit_scale": None}, "logit_scale"),
    ]:
        reader = gwq_export.open_gguf(exported(tiny(name), type="f32")[0])
        reader.metadata = {
            k: v
            for k, v in ({k: reader.metadata[k] for k in reader.metadata} | change).items()
            if v is not None
        }
        with pytest.raises(GwqError, match=f"{words}.*with --config-from"):
            restore.restore(reader, tmp_path / "hf")
        restore.restore(reader, tmp_path / name, config_from=tiny(name))


def test_refusals_leave_nothing(tiny, exported, tmp_path, monkeypatch):
    path, _ = exported(tiny("llama"), type="gwq4", samples=1, ctx=32)
    rope, _ = exported(tiny("llama3-rope"), type="gwq3", samples=1, ctx=32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for file, folder, options, words in [
        (path, "full", {}, "not an empty folder"),
        (path, "full/x", {}, "not an empty folder"),
        (path, "none/hf", {}, "does not exist"),
        (path, "hf", {"dtype": "int8"}, "choose one of float32"),
        (rope, "hf", {}, "--config-from"),
        (path, "hf", {"config_from": tmp_path / "empty"}, "config.json cannot be read"),
    ]:
        with pytest.raises(GwqError, match=words):
            restore.restore(gwq_export.open_gguf(file), tmp_path / folder, **options)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restore, "encode_ggml", full_disk)
    with pytest.raises(GwqError, match="No space left"):
        restore.restore(gwq_export.open_gguf(path), tmp_path / "hf")
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    # an empty folder is as good as none
    restore.restore(gwq_export.open_gguf(path), tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
