"""The router and the experts it chooses."""

import numpy as np
import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.bench.files import decode_bytes
from gwq_export.native.library import F32, Pool, pointer
from gwq_export.native.ops import Ops

IDS = np.random.default_rng(5).integers(3, 1024, 90)


def route(scores, used, normed):
    """(experts, weights), both (n, used), of scores (n, experts)."""
    n, experts = scores.shape
    x, weights = F32(scores), F32((n, used))
    chosen = np.empty((n, used), np.int32)
    ids = pointer(chosen, "int32_t *")
    Ops(Pool(1)).route(x.ptr, n, experts, used, normed, ids, weights.ptr)
    return chosen, weights.array


@pytest.mark.parametrize("normed", [True, False])
def test_routing_is_a_softmax_of_which_the_largest_are_kept(normed):
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(1)) * 3
    top, index = torch.softmax(scores, -1).topk(3)
    expected = torch.zeros(50, 9).scatter(
        1, index, top / top.sum(-1, keepdim=True) if normed else top
    )
    chosen, weights = route(scores.numpy(), 3, normed)
    got = np.zeros((50, 9), np.float32)
    np.put_along_axis(got, chosen, weights, axis=1)
    assert np.allclose(got, expected, atol=1e-6) and (np.diff(chosen) > 0).all()
    # equal scores: the lower experts
    assert route(np.zeros((1, 5), np.float32), 2, True)[0].tolist() == [[0, 1]]
    with pytest.raises(GwqError, match="the scores of the experts: a number is not finite"):
        route(np.array([[0, np.nan, 1]]), 1, True)
    for used in (0, 6, 257):
        with pytest.raises(RuntimeError, match="GWQ_E_ARGUMENT"):
            route(np.zeros((1, 5)), used, True)


def test_threads_and_batches_do_not_change_results(tiny, exported):
    path, _ = exported(tiny("qwen3moe"), type="f32")
    one, three = gwq_export.load(path, threads=1), gwq_export.load(path, threads=3)
    expected = one.logits(IDS)
    session = three.session(len(IDS))
    assert np.array_equal(three.logits(IDS), expected)
    steps = np.concatenate([session.forward([i]) for i in IDS])
    assert np.abs(steps - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_token_reads_the_experts_chosen_for_it_alone(tiny, exported, monkeypatch):
    monkeypatch.setattr("gwq_export.runtime.forward.MAX_TOKENS", 0)  # no program
    path, _ = exported(tiny("qwen3moe"), type="f32")
    model = gwq_export.load(path)
    used = []

    def noted(layer, j, linear):
        return lambda *args: (used.append((layer, j)), linear(*args))

    for layer in model.weights.layers:
        layer.ffn.down = [noted(id(layer), j, linear) for j, linear in enumerate(layer.ffn.down)]
    model.session(4).forward([17])
    assert len(used) == len(set(used)) == 3 * len(model.weights.layers)
    sizes = {
        t.name: t.nbytes * (0.5 if "_exps" in t.name else 1)
        for t in model.weights.reader.tensors.values()
        if len(t.shape) > 1
    }
    del sizes["token_embd.weight"]
    assert decode_bytes(model.weights.reader) == sum(sizes.values())  # three of six experts


@pytest.mark.parametrize(
    "key, value",
    [("expert_count", 5), ("expert_used_count", 9), ("expert_feed_forward_length", 65)],
)
def test_files_whose_keys_do_not_fit_are_refused(tiny, exported, tmp_path, key, value):
    raw = exported(tiny("qwen3moe"), type="f32")[0].read_bytes()
    at = raw.index(f"qwen3moe.{key}".encode()) + len(f"qwen3moe.{key}") + 4
    (tmp_path / "m.gguf").write_bytes(raw[:at] + value.to_bytes(4, "little") + raw[at + 4 :])
    with pytest.raises(GwqError, match="export the model again"):
        gwq_export.load(tmp_path / "m.gguf")
