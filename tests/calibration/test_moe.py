"""Statistics of experts, whose matrices are one tensor or several in a checkpoint."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.statistics import ENOUGH
from gwq_export.calibration.text import Calibration
from gwq_export.hf.source import Source
from studies.oracle import original_model, parameter


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


def whole_factors(folder, tokens):
    """{matrix of an expert: (hessian, rows, columns, tokens)}: the experts computed again, from
    what transformers' routers say.

    columns: sums over the tokens, the others are means.
    """
    model = original_model(folder)
    seen = {}
    found = {}

    def note(name):
        def hook(module, args, output):
            output.requires_grad_()
            output.retain_grad()
            seen.setdefault(name, []).append((*(a.detach() for a in args), output))

        return hook

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_hook(note(name))
    for ids in tokens:
        scores = model(input_ids=ids[None]).logits[0]
        torch.nn.functional.cross_entropy(scores[:-1], ids[1:], reduction="sum").backward()
    parameters = dict(model.named_parameters())
    for name, calls in seen.items():
        hidden, chosen, share = (torch.cat([call[i] for call in calls]) for i in range(3))
        upstream = torch.cat([call[3].grad for call in calls])
        for j in range(int(chosen.max()) + 1):
            token, slot = torch.where(chosen == j)
            gate, up, down = (
                parameter(parameters, f"{name}.{j}.{kind}_proj.weight").detach()
                for kind in ("gate", "up", "down")
            )
            x = hidden[token]
            g = (x @ gate.T).requires_grad_()
            u = (x @ up.T).requires_grad_()
            inner = torch.nn.functional.silu(g) * u
            z = (inner @ down.T).requires_grad_()
            outer = share[token, slot, None] * upstream[token]
            inner.backward(outer @ down)
            for kind, given, dz in (
                ("gate", x, g.grad),
                ("up", x, u.grad),
                ("down", inner.detach(), outer),
            ):
                assert z.shape == outer.shape
                factors = (
                    given.T @ given / len(given),
                    (dz**2).sum(0) / tokens.numel(),
                    (dz**2).sum(1) @ given**2,
                )
                found[f"{name}.{j}.{kind}_proj.weight"] = *factors, len(token)
    return found


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
    assert min(calibration.reached.values()) >= ENOUGH
