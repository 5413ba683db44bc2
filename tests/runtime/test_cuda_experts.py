"""Prompts of mixtures of experts by the CUDA library, on the host over native/cuda/shim.h."""

import numpy as np
import pytest

import gwq_export
from gwq_export.native.cuda import Cuda, DeviceF32
from gwq_export.native.program import MAX_TOKENS
from tests.support.forward import IDS, REROUTED
from tests.support.nearness import assert_near

pytestmark = pytest.mark.usefixtures("cuda_device")


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe", "qwen2moe", "qwen2moe-normed"])
def test_prompts_of_a_mixture(tiny, exported, name):
    """A batch of any length gets what each of its tokens gets alone."""
    for type in ("f32", "gwq4"):
        path, _ = exported(tiny(name), type=type, samples=2, ctx=64)
        model = gwq_export.load(path, device="cuda", cache="f32")
        session = model.session(100)
        alone = np.concatenate([session.forward([i]) for i in IDS[:40].tolist()])
        of_cpu = gwq_export.load(path, threads=1, cache="f32").logits(IDS[:40])
        bound, rerouted = (1e-4, 0) if type == "f32" else (0.02, REROUTED[name])
        for n in (2, MAX_TOKENS, MAX_TOKENS + 1, 17, 40):
            together = model.logits(IDS[:n])
            if n <= MAX_TOKENS:
                assert np.array_equal(together, alone[:n])
            assert_near([of_cpu[:n]], [together], bound, rerouted)


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe"])
def test_a_mixture_reads_a_prompt_at_once(tiny, exported, monkeypatch, name):
    """Each expert multiplies all its tokens together, and no activation crosses."""
    path, _ = exported(tiny(name), type="f32")
    model = gwq_export.load(path, device="cuda")
    calls, real = [], Cuda.combine
    monkeypatch.setattr(
        Cuda, "combine", lambda self, *a: (calls.append(a[2].shape), real(self, *a))
    )
    session = model.session(100)
    session.scores(IDS[:1], best=1)  # makes room
    monkeypatch.setattr(DeviceF32, "put", None)
    session.scores(IDS[:50], best=1)
    c = model.config
    # the last layer computes only the token whose logits are wanted
    slots = c.experts_used + (name == "qwen2moe")
    assert calls == [(n, slots) for n in [50] * (c.layers - 1) + [1]]
