"""What crosses from a device when a token is chosen, on the host over native/cuda/shim.h."""

import numpy as np
import pytest

import gwq_export
from gwq_export.errors import GwqError
from gwq_export.native.cuda import DeviceF32
from gwq_export.runtime.sampling import Sampling
from tests.support.forward import PROMPT

pytestmark = pytest.mark.usefixtures("cuda_device")

SAMPLINGS = [
    {},
    {"temp": 0.8, "seed": 3},
    {"temp": 1.5, "top_k": 7, "top_p": 0.9, "seed": 4},
    {"temp": 1.2, "top_k": 5, "min_p": 0.1, "seed": 5, "repeat_penalty": 1.3},
    {"repeat_penalty": 1.5, "repeat_last_n": -1},
    {"temp": 1.0, "top_k": 9, "seed": 6, "repeat_penalty": 0.7},
    {"temp": 1.0, "top_k": 0, "seed": 7},
]


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
def test_the_best_logits_are_enough(bundled, monkeypatch, options):
    """The text that all of them give; and where that can be, no others cross."""
    model = gwq_export.load(bundled, device="cuda")
    ids = model.prompt_ids(PROMPT)
    sampling = Sampling(**options)
    fetched, real = [], DeviceF32.fetch
    monkeypatch.setattr(
        DeviceF32, "fetch", lambda self, out: (fetched.append(out.shape), real(self, out))
    )
    found = list(model.tokens(model.session(60), ids, 30, sampling))
    few = sampling.enough(60) > 0
    assert bool(fetched) != few
    monkeypatch.setattr(Sampling, "enough", lambda self, before: 0)
    assert list(model.tokens(model.session(60), ids, 30, sampling)) == found
    assert len(found) == 30 and fetched
    assert few == ("top_k" not in options or options["top_k"] not in (0, 9))


def test_a_draft_model_sends_two(bundled, exported, monkeypatch):
    """They are its largest logits; and the text is that of the large model."""
    smaller = exported(type="gwq2")[0]
    model = gwq_export.load(bundled, device="cuda", draft=smaller, lookup=False)
    ids = model.prompt_ids(PROMPT)
    logits = gwq_export.load(smaller, device="cuda").logits(ids)[-1]
    want = gwq_export.load(bundled).generate(PROMPT, n=24)
    session, drafter = model.session(60), model.drafter(60)
    monkeypatch.setattr(DeviceF32, "fetch", None)
    (two,) = model.drafter(60).session.scores(ids, best=2)
    assert np.array_equal(two.ids, np.argsort(-logits, kind="stable")[:2])
    assert np.array_equal(two.values, logits[two.ids])
    found = list(model.tokens(session, ids, 24, drafter=drafter))
    assert model.tokenizer.decode(found).strip() == want.strip()


def test_logits_that_are_not_finite(bundled):
    model = gwq_export.load(bundled, device="cuda")
    norm = model.weights.parts[-1].norm.weight
    norm.array = np.full_like(norm.array, np.nan)
    with pytest.raises(GwqError, match="the model's logits: a number is not finite"):
        model.session(20).scores([5], best=3)
