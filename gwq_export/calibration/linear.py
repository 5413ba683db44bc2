"""Linear modules whose products, forward and backward, are those of `compute.products`."""

from __future__ import annotations

from typing import Any

import torch

from gwq_export.compute.products import multiply


class _Apply(torch.autograd.Function):
    """x W^T + bias and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """x (.., cols), weight (rows, cols), bias (rows,) or None."""
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        flat = x.reshape(-1, x.shape[-1])
        if bias is None:
            out = multiply(flat, weight.T)
        else:
            out = multiply(flat, weight.T, bias.expand(len(flat), -1).contiguous(), add=True)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """g: the gradient by the result."""
        x, weight = ctx.saved_tensors
        flat = g.reshape(-1, g.shape[-1])
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = multiply(flat, weight).view(*g.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[1]:
            by_weight = multiply(flat.T, x.reshape(-1, x.shape[-1]))
        if ctx.needs_input_grad[2]:
            by_bias = flat.sum(0)
        return by_x, by_weight, by_bias


class Linear(torch.nn.Linear):
    """torch's module with these products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (.., cols)."""
        return _Apply.apply(x, self.weight, self.bias)


def use_own_products(module: torch.nn.Module) -> None:
    """Make the linear modules in `module` compute with `Linear`."""
    for part in module.modules():
        if type(part) is torch.nn.Linear:
            part.__class__ = Linear
