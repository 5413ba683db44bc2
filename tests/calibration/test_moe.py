"""Statistics of experts, whose matrices are one tensor or several in a checkpoint."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.statistics import MIN_EXPERT_TOKENS
from gwq_export.calibration.text import Calibration
from gwq_export.hf.source import Source
from studies.oracle import original_model
from tests.support.experts import whole_factors


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_stored_as_one_tensor(tiny, tmp_path, name):
    """Checkpoints with the fused parameters that transformers uses hold the same weights."""
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny(name) / file, tmp_path / file)
    fused = {n: p.contiguous() for n, p in original_model(tiny(name)).state_dict().items()}
    assert any(n.endswith("experts.gate_up_proj") for n in fused)
    save_file(fused, tmp_path / "model.safetensors")
    separate, source = Source(tiny(name)), Source(tmp_path)
    for i in range(source.layers):
        assert source.block(i) == separate.block(i)
        for hf in source.block(i).values():
            assert torch.equal(source.tensor(hf), separate.tensor(hf)), hf


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe-plain"])
def test_factors_are_those_of_the_tokens_of_an_expert(tiny, name):
    source = Source(tiny(name))
    seen = 0
    calibration = Calibration(torch.from_numpy(np.random.default_rng(0).integers(3, 1024, (3, 40))))
    expected = whole_factors(tiny(name), calibration.tokens)
    for tensor, _, found in gradients(source, calibration, ("hessian", "rows")):
        if tensor in expected:
            seen += 1
            *wanted, _, tokens = expected[tensor]
            assert calibration.reached[tensor] == tokens
            for got, value in zip((found["hessian"], found["rows"]), wanted, strict=True):
                assert np.abs(got - value.numpy()).max() <= 5e-5 * value.abs().max().item(), tensor
    assert seen == len(expected) == 3 * 4 * source.layers
    assert min(calibration.reached.values()) >= MIN_EXPERT_TOKENS
