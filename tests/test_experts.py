"""Mixture of experts: routing, three-dimensional tensors, calibration of every expert, and files of such models."""

import numpy as np
import pytest
import torch
from reference import dequantized_model, kl_by_token, logits

import gwq_export
from gwq_export.experts import route

IDS = np.random.default_rng(5).integers(3, 8192, 90)
MODELS = ["mixtral", "qwen3moe", "qwen3moe-plain"]


@pytest.mark.parametrize("normed", [True, False])
def test_routing_is_a_softmax_of_which_the_largest_are_kept(normed):
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(1)) * 3
    top, index = torch.softmax(scores, -1).topk(3)
    expected = torch.zeros(50, 9).scatter(1, index, top / top.sum(-1, keepdim=True) if normed else top)
    chosen, weights = route(scores.numpy(), 3, normed)
    got = np.zeros((50, 9), np.float32)
    np.put_along_axis(got, chosen, weights, axis=1)
    assert np.allclose(got, expected, atol=1e-6) and (np.diff(chosen) > 0).all()
    assert route(np.zeros((1, 5), np.float32), 2, True)[0].tolist() == [[0, 1]]  # equal scores: the lower experts


@pytest.mark.parametrize("name", MODELS)
def test_quantized_logits_equal_transformers_on_dequantized_weights(tiny, exported, name):
    """But for tokens to which activations of 8 bits give another expert: the routers of random models are undecided."""
    path, _ = exported(tiny(name), type="gwq4", outliers=0.02)
    gwq_export.open_gguf(path).check()
    found = kl_by_token(logits(dequantized_model(tiny(name), path), IDS), gwq_export.load(path).logits(IDS))
    assert np.quantile(found, 0.8) < 1e-3
