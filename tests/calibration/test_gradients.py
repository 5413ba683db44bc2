"""Block-by-block gradients against a whole-model backward pass."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gwq_export import GwqError
from gwq_export.calibration import statistics as calibration_statistics
from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.labels import labels_loss
from gwq_export.calibration.text import Calibration, sample_tokens
from gwq_export.hf.source import Source
from studies.oracle import parameter
from tests.support.models import TINY_MODELS
from tests.support.paths import REFERENCE


def whole_model(folder, tokens):
    """{parameter: (samples, ...) gradients} and losses of transformers' own model and loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    losses = []
    for ids in tokens:
        model.zero_grad()
        loss = model(input_ids=ids[None], labels=ids[None]).loss
        loss.backward()
        losses.append(loss.item())
        for name, p in model.named_parameters():
            found.setdefault(name, []).append(p.grad.clone())
    found[Source(folder).arch.head] = found.get("lm_head.weight")  # as checkpoints call it
    return {name: torch.stack(g) for name, g in found.items() if g}, losses


@pytest.mark.parametrize("name", [*TINY_MODELS, "reference"])
def test_equal_to_whole_model_backward(tiny, name):
    folder = REFERENCE if name == "reference" else tiny(name)
    source = Source(folder)
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (3, 40))))
    expected, losses = whole_model(folder, calibration.tokens)
    ends = [source.arch.embed] if source.tied else [source.arch.embed, source.arch.head]
    seen = set()
    for tensor, weight, found in gradients(source, calibration, ("abs", "mean", "square"), ends):
        g = parameter(expected, tensor).double()
        seen.add(tensor)
        assert np.array_equal(weight, source.tensor(tensor).numpy())
        for statistic, value in [
            ("abs", g.abs().mean(0)),
            ("mean", g.mean(0)),
            ("square", (g * g).mean(0)),
        ]:
            assert np.abs(found[statistic] - value.numpy()).max() <= 2e-5 * value.abs().max(), (
                tensor,
                statistic,
            )
    linear = {n for i in range(source.layers) for row, n in source.block(i).items() if row.linear}
    assert seen == linear | set(ends)
    assert calibration.losses == pytest.approx(losses, rel=1e-5)


def test_gradients_of_own_predictions_have_their_second_moment():
    """Over tokens drawn from p, the gradient by the logits is p - onehot; its second moment is
    diag(p) - p p^T.
    """
    p = torch.tensor([0.6, 0.25, 0.1, 0.05])
    n = 20000
    logits = p.log().repeat(n + 1, 1).requires_grad_()
    ids = torch.zeros(1, n + 1, dtype=torch.long)
    model = SimpleNamespace(logits=lambda ids, hidden: hidden)
    loss, wanted = labels_loss(model, ids, logits, 3)
    g = n * torch.autograd.grad(wanted, logits)[0][:-1]
    assert torch.allclose(g.T @ g / n, p.diag() - p[:, None] * p, atol=0.01)
    assert loss.item() == pytest.approx(-np.log(0.6))
    assert torch.equal(labels_loss(model, ids, logits, 3)[1], wanted)
    assert not torch.equal(labels_loss(model, ids, logits, 4)[1], wanted)
    loss, wanted = labels_loss(model, ids, logits, None)
    assert wanted is loss


@pytest.mark.parametrize(
    "model, name", [("llama", "lm_head.weight"), ("llama-bias", "model.embed_tokens.weight")]
)
def test_own_predictions_are_not_surprised_by_a_text(tiny, tmp_path, model, name):
    """Random tokens: while predictions are nearly even, both kinds of gradients are of one size; a
    sure model's own are smaller.
    """
    source = tiny(model)
    ratios = []
    folder = shutil.copytree(source, tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    for factor in (0.1, 10):
        save_file(
            tensors | {name: tensors[name] * factor}, folder / "model.safetensors", {"format": "pt"}
        )
        sums = []
        opened = Source(folder)
        for own in (False, True):
            calibration = Calibration(
                torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (4, 60)))
            )
            found = gradients(opened, calibration, ("rows", "hessian"), [name], sampled_labels=own)
            size = {n: s["rows"].sum() * s["hessian"].trace() for n, _, s in found}
            sums.append(
                [
                    size[n]
                    for n in (
                        "model.layers.0.mlp.down_proj.weight",
                        "model.layers.2.self_attn.v_proj.weight",
                        name,
                    )
                ]
            )
        ratios.append(np.divide(*sums[::-1]))
    assert np.allclose(ratios[0], 1, atol=0.25) and (ratios[1] < 0.7).all(), ratios


def whole_factors(folder, tokens):
    """{matrix: factors} over all tokens, L the sum of a sample's token losses.

    "hessian" is the mean of x x^T, "rows" that of (dL/dz)^2, "products" that of dL/dz dL/dz^T, by
    hooks on transformers' model. The embedding is its transpose's matrix: one-hot tokens out,
    gradients in.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scale = float(getattr(model.get_input_embeddings(), "embed_scale", 1))
    seen = {}  # Gemma's module multiplies its rows

    def note(name):
        def hook(module, args, output):
            output.requires_grad_()
            output.retain_grad()
            seen.setdefault(name, []).append((args[0].detach(), output))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            module.register_forward_hook(note(f"{name}.weight"))
    for ids in tokens:
        logits = model(input_ids=ids[None]).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").backward()
    found = {}
    for name, pairs in seen.items():
        x = torch.cat([x[0] for x, _ in pairs]).double()
        g = torch.cat([z.grad[0] for _, z in pairs]).double()
        assert len(x) == len(g) == tokens.numel()
        if x.dim() == 1:  # token ids: the input is one-hot, and the "rows" are the tokens
            share = torch.bincount(x.long(), minlength=model.config.vocab_size).double() / len(x)
            # Good and Turing's estimate, spread over all
            unseen = min(0.5, (share * len(x)).round().eq(1).sum().item() / len(x))
            found[name] = {
                "hessian": scale**2 * g.T @ g / len(g),
                "rows": share * (1 - unseen) + unseen / len(share),
            }
        else:
            found[name] = {
                "hessian": x.T @ x / len(x),
                "rows": (g * g).mean(0),
                "products": g.T @ g / len(g),
            }
    found[Source(folder).arch.head] = found["lm_head.weight"]
    return found


BOTH = ("hessian", "rows")


NAMES = (
    "llama",
    "llama-bias",
    "qwen3",
    "mistral",
    "linear-rope",
    "granite",
    "olmo2",
    "phi",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
)
CASES = [(name, BOTH) for name in NAMES]  # ends untied and tied
CASES += [
    ("llama", ("square", *BOTH)),
    ("llama-bias", ("abs", *BOTH)),
    ("llama", ("rows",)),
    ("llama", ("hessian",)),
]


@pytest.mark.parametrize("name, statistics", CASES)
def test_factors_are_those_of_the_whole_model(tiny, name, statistics):
    source = Source(tiny(name))
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (3, 30))))
    expected = whole_factors(tiny(name), calibration.tokens)
    arch = source.arch
    seen = set()
    ends = [arch.embed] if source.tied else [arch.embed, arch.head]
    for tensor, _, found in gradients(source, calibration, statistics, ends):
        assert set(found) == set(statistics)
        seen.add(tensor)
        if source.tied and tensor == arch.embed:
            # one product in the place of two: s of the head's tokens, f of the embedding's
            h, e = expected[arch.head], expected[arch.embed]
            s = h["rows"].sum()
            f = e["rows"].sum()
            wanted = {
                "hessian": s * h["hessian"] + f * e["hessian"],
                "rows": (h["rows"] / s + e["rows"] / f) / 2,
            }
        else:
            wanted = expected[tensor]
        for factor in set(statistics) & set(BOTH):
            value = wanted[factor].numpy()
            assert found[factor].shape == value.shape and found[factor].dtype == np.float32
            assert np.abs(found[factor] - value).max() <= 2e-5 * np.abs(value).max(), (
                tensor,
                factor,
            )
            assert found[factor].any()
    assert seen == {
        n for i in range(source.layers) for row, n in source.block(i).items() if row.linear
    } | set(ends)


@pytest.mark.parametrize("group", [1024, 24])
def test_products_of_outputs_are_kept_in_groups(tiny, group, monkeypatch):
    """Those of different rows are discounted by the tokens that they are means of."""
    monkeypatch.setattr(calibration_statistics, "GROUP", group)
    source = Source(tiny("llama"))
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (3, 30))))
    expected = whole_factors(tiny("llama"), calibration.tokens)
    seen = 0
    for tensor, _, found in gradients(source, calibration, ("outputs", "rows"), [source.arch.head]):
        if tensor == source.arch.head:
            assert "outputs" not in found
            continue
        wanted = expected[tensor]["products"].numpy()
        rows, width = found["outputs"].shape
        assert rows == len(wanted) and width == min(rows, group)
        for i in range(rows):
            here = slice(i // width * width, min((i // width + 1) * width, rows))
            row = wanted[i, here] * 90 / (90 + width)
            row[i - here.start] = wanted[i, i]
            got = found["outputs"][i]
            assert np.abs(got[: len(row)] - row).max() <= 2e-5 * np.abs(wanted).max()
            assert not got[len(row) :].any()
        seen += 1
    assert seen == 7 * source.layers


def test_matrices_of_one_input_share_their_hessian(tiny):
    """So that it is factored once for each."""
    source = Source(tiny("llama"))
    kept = {}
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (2, 20))))
    for tensor, _, found in gradients(source, calibration, ("hessian", "rows")):
        kept.setdefault(id(found["hessian"]), (found["hessian"], []))[1].append(
            tensor.split(".")[-2]
        )
    assert sorted(map(sorted, (names for _, names in kept.values()))) == sorted(
        [["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
        * source.layers
    )


@pytest.mark.parametrize("ends", [["model.embed_tokens.weight"], ["lm_head.weight"]])
def test_embedding_and_head_alone(tiny, ends):
    folder = tiny("llama")
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (2, 20))))
    expected, _ = whole_model(folder, calibration.tokens)
    found = {
        tensor: s["mean"]
        for tensor, _, s in gradients(Source(folder), calibration, ("mean",), ends)
        if tensor in ends
    }
    assert list(found) == ends
    for tensor in ends:
        value = expected[tensor].mean(0)
        assert np.abs(found[tensor] - value.numpy()).max() <= 2e-5 * value.abs().max()


def test_samples_are_seeded_windows_of_the_text():
    ids = np.arange(1000)
    a, b, c = (sample_tokens(ids, 4, 50, seed) for seed in (1, 1, 2))
    assert a.shape == (4, 50) and torch.equal(a, b) and not torch.equal(a, c)
    assert all((row[1:] - row[:-1] == 1).all() for row in a)
    with_bos = sample_tokens(ids, 4, 50, 1, bos=7)
    assert (with_bos[:, 0] == 7).all() and with_bos.shape == (4, 50)
    assert sample_tokens(ids, 100, 300, 0).shape == (3, 300)  # fewer samples than asked
    assert sample_tokens(ids[:20], 4, 50, 0).shape == (1, 20)  # one short window
    with pytest.raises(GwqError, match="empty"):
        sample_tokens(ids[:1], 4, 50, 0)


def test_hash_follows_the_tokens():
    a, b = (Calibration(torch.full((1, 4), v)) for v in (1, 2))
    assert a.hash != b.hash and len(a.hash) == 64
