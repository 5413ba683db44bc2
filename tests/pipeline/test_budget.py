"""Exports within a budget: the size is kept, and predictions are worth something."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.text import Calibration
from gwq_export.format.types import TYPES
from gwq_export.format.writer import file_size
from gwq_export.hf.source import Source
from gwq_export.pipeline.plan import file_bytes, plan_tensors
from gwq_export.pipeline.sensitivity import fit, sensitivities
from gwq_export.quantization.allocate import frontier
from gwq_export.quantization.loss_model import OFFERED
from gwq_export.quantization.recipe import Recipe
from tests.support.models import save_tiny
from tests.support.paths import DATA, REFERENCE


def ids(folder, samples, ctx):
    from gwq_export.tokenizer.from_hf import to_metadata
    from gwq_export.tokenizer.tokenizer import Tokenizer

    tokens = Tokenizer(to_metadata(folder, Source(folder).vocab)).encode(
        (DATA / "eval.txt").read_text()[:60000], special=False, bos=False
    )
    return torch.tensor(tokens[: samples * ctx]).reshape(samples, ctx)


@pytest.fixture(scope="module", params=["reference", "llama"])
def measured(request, tiny):
    folder = REFERENCE if request.param == "reference" else tiny(request.param)
    source = Source(folder)
    entries = plan_tensors(source, Recipe(TYPES["gwq4"], 0.0025))
    offers = sensitivities(
        source, entries, Calibration(ids(folder, 4, 128)), True, None, "cpu", lambda *_: None
    )
    return entries, offers


def test_every_budget_is_met(measured):
    entries, offers = measured

    def size(entries):
        layout = [
            (name, TYPES[kind], shape)
            for e in entries
            for name, kind, shape in e.recipe.tensors(e.name, e.shape)
        ]
        return file_size({"general.name": "x"}, layout)

    params = sum(int(np.prod(e.shape)) for e in entries)
    losses = []
    budgets = np.sort(np.random.default_rng(0).uniform(3.4, 9, 20)) * params / 8
    for budget in budgets.astype(int):
        chosen = fit(entries, offers, int(budget), size)
        assert 0.995 * budget <= size(chosen) <= budget
        losses.append(
            sum(
                min(c.loss for c in offers[e.name] if c.recipe.type == e.recipe.type)
                for e in chosen
                if e.name in offers
            )
        )
    assert losses[0] > 3 * losses[-1]
    with pytest.raises(GwqError, match="too small: the smallest file takes"):
        fit(entries, offers, int(1.5 * params / 8), size)
    with pytest.raises(GwqError, match="--type f16"):
        fit(entries, offers, 3 * params, size)


def test_offers_are_sound(measured):
    """More bytes, less loss; the bytes are those in the file."""
    entries, offers = measured
    for e in entries:
        if len(e.shape) < 2:
            assert e.name not in offers
            continue
        found = frontier(offers[e.name])
        assert len(found) > 3
        assert all(a.nbytes < b.nbytes and a.loss > b.loss >= 0 for a, b in pairwise(found))
        assert all(c.nbytes == file_bytes(e.name, e.shape, c.recipe) for c in found)
        assert {c.recipe.outliers for c in found} <= set().union(*OFFERED.values())


@pytest.mark.parametrize("largest", [1e5, 1e13])
def test_a_budget_for_a_model_with_huge_weights(tmp_path, largest):
    """The matrix gets the type that can hold it; where none can, one sentence says what to do, and
    that helps.
    """
    from safetensors.torch import load_file, save_file

    settings = {
        "hidden_size": 32,
        "intermediate_size": 72,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    folder = save_tiny(tmp_path / "hf", "LlamaConfig", tie_word_embeddings=True, **settings)
    tensors = load_file(folder / "model.safetensors")
    name = "blk.0.ffn_down.weight"
    tensors["model.layers.0.mlp.down_proj.weight"][3, 4] = largest
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "calib.txt").write_text(
        "The city lay by the river, and the river by the sea. " * 20
    )
    fixed = [f"{name}=bf16"]
    most = gwq_export.export(folder, tmp_path / "f16.gguf", type="f16", tensor_type=fixed)["bytes"]
    options = {
        "size": most - 8000,
        "outliers": 0.002,
        "samples": 1,
        "ctx": 32,
        "calib": tmp_path / "calib.txt",
        "exclude": "token",
    }
    too_large = f"^{name}: a weight is too large for gwq.: .*--tensor-type NAME=bf16$"
    given = {}
    if largest > 1e12:
        with pytest.raises(GwqError, match=too_large):
            gwq_export.export(folder, tmp_path / "m.gguf", **options)
        given["tensor_type"] = fixed
    result = gwq_export.export(folder, tmp_path / "m.gguf", **given, **options)
    type = {row["name"]: row["type"] for row in result["plan"]}[name]
    assert type == "bf16" if given else type.startswith("gwq")
    weights = gwq_export.open_gguf(tmp_path / "m.gguf").tensors[name].dequantize()
    assert weights[3, 4] == pytest.approx(largest, rel=1e-2)
    if not given:
        return
    with pytest.raises(GwqError, match=too_large):
        gwq_export.export(
            folder,
            tmp_path / "m.gguf",
            type="gwq4",
            dry_run=True,
            **{k: options[k] for k in ("samples", "ctx", "calib")},
        )


def test_dry_run_and_budget_through_files(tmp_path):
    """The plan's bytes are the file's, the prediction is near what is measured, and a budget beats
    the uniform file of its size.
    """
    from gwq_export.evaluation.perplexity import evaluate
    from gwq_export.evaluation.reference import transformers_logits

    text = (DATA / "eval.txt").read_text()[:24000]
    against = transformers_logits(REFERENCE)
    options = {"ctx": 256, "samples": 16}

    def measured(**more):
        found = gwq_export.export(REFERENCE, tmp_path / "m.gguf", **options, **more)
        assert (tmp_path / "m.gguf").stat().st_size == found["bytes"]
        return found, evaluate(gwq_export.load(tmp_path / "m.gguf"), text, 256, against)["kld_mean"]

    planned = gwq_export.export(
        REFERENCE, tmp_path / "never.gguf", type="gwq3", dry_run=True, **options
    )
    assert not (tmp_path / "never.gguf").exists()
    uniform, uniform_kld = measured(type="gwq3")
    assert planned["bytes"] == uniform["bytes"]
    assert planned["predicted_loss"] == pytest.approx(uniform_kld, rel=0.25)  # 12 samples
    assert planned["predicted_ppl"] == pytest.approx(
        planned["calibration_ppl"] * np.exp(planned["predicted_loss"])
    )
    # the embedding stays as it is, so that only the decoder's linear layers differ
    free, free_kld = measured(size=uniform["bytes"], tensor_type="token_embd=q8_0")
    assert 0.995 * uniform["bytes"] <= free["bytes"] <= uniform["bytes"]
    assert free_kld < 0.9 * uniform_kld
    assert sum(row["bytes"] for row in free["plan"]) <= free["bytes"]


def test_prediction_for_a_model_that_is_too_sure(tmp_path):
    """Twice the logits of the bundled model, and the divergence is still foreseen: the text's own
    surprise does not count.
    """
    from gwq_export.evaluation.perplexity import evaluate
    from gwq_export.evaluation.reference import transformers_logits

    folder = shutil.copytree(REFERENCE, tmp_path / "sure")
    tensors = load_file(REFERENCE / "model.safetensors")
    save_file(
        tensors | {"model.norm.weight": 2 * tensors["model.norm.weight"]},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    options = {"type": "gwq4", "tensor_type": "token_embd=f16", "ctx": 256, "samples": 16}
    options |= {"fast": True}  # the prediction does not know of drift
    predicted = gwq_export.export(folder, tmp_path / "m.gguf", dry_run=True, **options)[
        "predicted_loss"
    ]
    gwq_export.export(folder, tmp_path / "m.gguf", **options)
    text = (DATA / "eval.txt").read_text()[:12000]
    against = transformers_logits(folder)
    assert predicted == pytest.approx(
        evaluate(gwq_export.load(tmp_path / "m.gguf"), text, 256, against)["kld_mean"], rel=0.25
    )


def test_exports_say_how_few_tokens_there_were(tiny, tmp_path, monkeypatch):
    """The sensitivity pass and the export itself draw the Hessian of few tokens to the identity."""
    from gwq_export.quantization import curvature as encoder

    seen = []
    plain = encoder.Curvature.__init__

    def note(self, hessian, tokens=None):
        seen.append(tokens)
        plain(self, hessian, tokens)

    monkeypatch.setattr(encoder.Curvature, "__init__", note)
    gwq_export.export(tiny("qwen2"), tmp_path / "m.gguf", type="gwq2", samples=2, ctx=32)
    once = len(seen)
    gwq_export.export(
        tiny("qwen2"), tmp_path / "m.gguf", type="gwq2", samples=2, ctx=32, dry_run=True
    )
    assert 0 < once < len(seen) and set(seen) == {64, 32}
    assert set(seen[:once]) == {32}  # drift is measured on half of them


@pytest.mark.parametrize(
    "more, words",
    [
        ({"bpw": 4, "size": "1G"}, "give one"),
        ({"bpw": 4, "type": "gwq3"}, "leave out --type"),
        ({"size": "9e9x"}, "--size"),
        ({"bpw": 4, "preset": "paper"}, "--preset"),
        ({"bpw": 1.0, "samples": 1, "ctx": 64}, "too small"),
    ],
)
def test_budgets_that_cannot_be(tmp_path, more, words):
    with pytest.raises(GwqError, match=words):
        gwq_export.export(REFERENCE, tmp_path / "m.gguf", **more)
    assert not list(tmp_path.iterdir())
