"""Inputs that drift: what is measured, what codes make of it, and that exports use it."""

import numpy as np
import pytest
import torch

import gwq_export
from gwq_export.calibration.drift import DriftPass
from gwq_export.compute.results import Memory
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.reference import transformers_logits
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.hf.source import Source
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from studies.oracle import original_model
from tests.support.paths import DATA

RNG = np.random.default_rng(5)


def inputs_of(model, names, tokens):
    """{name: inputs (tokens, columns)} of a transformers model's linear modules."""
    found = {}
    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, args, name=name: found.setdefault(name, []).append(args[0][0])
        )
        for name in names
    ]
    with torch.no_grad():
        for ids in tokens:
            model(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(x) for name, x in found.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox", "gemma2", "mixtral"])
def test_moments_are_those_of_a_model_with_the_same_weights(tiny, kind):
    """Of every matrix when its turn comes, with all that was put before in their place."""
    folder = tiny(kind)
    source = Source(folder)
    model, other = original_model(folder), original_model(folder)
    tokens = torch.from_numpy(RNG.integers(3, 40, (3, 12)))
    keep = Memory()
    walk = DriftPass(source, tokens, "cpu", keep)
    walk.embed(None)
    met = []
    for i in range(source.layers):
        for group in walk.groups(i):
            before = inputs_of(model, group.names, tokens)
            after = inputs_of(other, group.names, tokens)
            for name in group.names:
                x, y = before[name], after[name]
                assert np.allclose(group.hessian, y.T @ y / len(y), rtol=1e-3, atol=1e-5)
                assert np.allclose(group.drift, (x - y).T @ y / len(y), rtol=1e-2, atol=1e-5)
                weight = other.get_parameter(name)
                noise = 0.1 * torch.from_numpy(RNG.standard_normal(weight.shape)).float()
                weight.data += noise * weight.data.std()
                walk.put(name, weight.detach().numpy())
                met.append(name)
        walk.finish(i)
        assert walk.reached == i + 1
    linear = [n for i in range(source.layers) for r, n in source.block(i).items() if r.linear]
    experts = {
        n for i in range(source.layers) for r, n in source.block(i).items() if r.expert is not None
    }
    assert sorted(met) == sorted(set(linear) - experts)


def test_embeddings_of_the_file_are_where_drift_begins(tiny):
    source = Source(tiny("llama"))
    tokens = torch.from_numpy(RNG.integers(3, 40, (2, 8)))
    walk = DriftPass(source, tokens, "cpu", Memory())
    embedding = source.tensor(source.arch.embed).numpy() + np.float32(0.5)
    walk.embed(embedding)
    assert torch.equal(walk.file.get("state.0"), torch.from_numpy(embedding)[tokens])
    assert not torch.equal(walk.file.get("state.0"), walk.original.get("state.0"))


def test_codes_answer_to_drifted_inputs():
    """Where the inputs of a matrix came out larger by half, its weights come out smaller."""
    weight = RNG.standard_normal((48, 64)).astype(np.float32)
    x = RNG.standard_normal((4000, 64)).astype(np.float32)
    y = x * np.float32(1.5)
    statistics = {
        "hessian": Curvature(y.T @ y / len(y), len(y)),
        "rows": np.ones(48, np.float32),
        "drift": (x - y).T @ y / len(y),
    }
    from gwq_export.format.decoding import dequantize
    from gwq_export.quantization import quantize as module

    def coded(drift):
        recipe = Recipe(TYPES["gwq6"], drift=drift)
        return dequantize(recipe.type, quantize(weight, statistics, recipe)[0], weight.shape)

    def scale(of):
        return (of * weight).sum() / (weight**2).sum()

    assert scale(coded(False)) == pytest.approx(1, abs=0.02)
    assert scale(coded(True)) == pytest.approx(1 - module.TAKEN / 3, abs=0.02)


@pytest.mark.parametrize(
    "options", [{"type": "gwq3"}, {"type": "gwq3", "tensor_type": "token_embd=gwq2"}, {"bpw": 6.0}]
)
def test_exports_are_coded_for_it(tiny, tmp_path, monkeypatch, options):
    """Without the correction other codes come out. Inputs of the first block's first matrices drift
    where the embedding is coded, too.
    """
    files = []
    for taken in (0.7, 0):
        monkeypatch.setattr("gwq_export.quantization.quantize.TAKEN", taken)
        out = tmp_path / f"{taken}.gguf"
        gwq_export.export(tiny("llama-bias"), out, samples=4, ctx=32, tune=0, **options)
        with Reader(out) as reader:
            files.append({name: bytes(t.data) for name, t in reader.tensors.items()})
    differ = {name for name in files[0] if files[0][name] != files[1][name]}
    assert {"blk.0.ffn_down.weight", "blk.1.attn_q.weight", "blk.2.attn_output.weight"} <= differ
    coded_embedding = options.keys() != {"type"}
    assert ("blk.0.attn_q.weight" in differ) == coded_embedding


def test_files_are_closer_with_it(tmp_path):
    """The bundled model, and of which files the header says so."""
    folder = DATA / "gwq-reference"
    text = (DATA / "eval.txt").read_text()[:12000]
    reference = transformers_logits(folder)
    klds = {}
    for fast in (True, False):
        out = tmp_path / f"{fast}.gguf"
        gwq_export.export(folder, out, type="gwq3", ctx=128, samples=24, tune=0, fast=fast)
        klds[fast] = evaluate(gwq_export.load(out), text, 128, reference)["kld_mean"]
        with Reader(out) as reader:
            assert ("gwq.drift_correction" in reader.metadata) == (not fast)
            assert ("gwq.row_feedback" in reader.metadata) == (not fast)
    assert klds[False] < 0.96 * klds[True]
