"""Linear modules with products of their own."""

import pytest
import torch

from gwq_export.calibration.block_model import BlockModel
from gwq_export.calibration.linear import Linear, use_own_products
from gwq_export.hf.source import Source


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [3, 40])
def test_output_and_gradients_are_those_of_torch(bias, tokens):
    torch.manual_seed(0)
    module = torch.nn.Linear(24, 32, bias=bias)
    x = torch.randn(1, tokens, 24, requires_grad=True)
    g = torch.randn(1, tokens, 32)
    targets = [x, *module.parameters()]
    expected = [module(x), *torch.autograd.grad(module(x), targets, g)]
    use_own_products(module)
    assert type(module) is Linear
    found = [module(x), *torch.autograd.grad(module(x), targets, g)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_other_modules_stay_as_they_are():
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Own(2, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2))
    use_own_products(model)
    assert [type(part) for part in model] == [Own, torch.nn.LayerNorm, Linear]


def test_calibration_computes_with_them(tiny):
    model = BlockModel(Source(tiny("llama")), "cpu")
    parts = [part for block in model.blocks for part in block.modules()]
    linear = [part for part in (*parts, model.head) if isinstance(part, torch.nn.Linear)]
    assert len(linear) > len(model.blocks) and {type(part) for part in linear} == {Linear}
