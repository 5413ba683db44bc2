"""Mixture-of-experts and feed-forward layers with a linear module for every matrix.

transformers keeps the experts of a layer in fused parameters. Calibration looks at one matrix at a
time, whose inputs are those of the tokens that were routed to its expert, so it replaces them by
the modules here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class Expert(torch.nn.Module):
    """A gated feed-forward network: down(act(gate x) * (up x))."""

    def __init__(self, dim: int, width: int, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """dim: of the hidden states; width: inner width; act: the activation of the gate."""
        super().__init__()
        self.gate_proj = torch.nn.Linear(dim, width, bias=False)
        self.up_proj = torch.nn.Linear(dim, width, bias=False)
        self.down_proj = torch.nn.Linear(width, dim, bias=False)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (tokens, dim) for x (tokens, dim)."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.nn.ModuleList):
    """The experts of a layer, called like transformers' module of fused parameters."""

    def __init__(self, fused: torch.nn.Module) -> None:
        """fused: transformers' module, with `down_proj` (experts, dim, width) and `act_fn`."""
        experts, dim, width = fused.down_proj.shape
        super().__init__(Expert(dim, width, fused.act_fn) for _ in range(experts))

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, share: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum (tokens, dim) of the outputs of each token's experts.

        hidden (tokens, dim); chosen (tokens, k): the experts of each token, by number; share
        (tokens, k): their weights in the sum. Experts without a token do not run.
        """
        out = torch.zeros_like(hidden)
        for expert in chosen.unique().tolist():
            token, slot = torch.where(chosen == expert)
            weighted = self[expert](hidden[token]) * share[token, slot, None]
            out = out.index_add(0, token, weighted)
        return out


def unfuse(block: torch.nn.Module, path: str) -> None:
    """Replace the fused experts at `path` of a decoder block by `Experts`, on the meta device."""
    with torch.device("meta"):
        block.set_submodule(path, Experts(block.get_submodule(path)))


def unpair(block: torch.nn.Module, path: str) -> None:
    """Replace the feed-forward layer at `path`, whose `input_linear` is gate and up, on the meta
    device.
    """
    layer = block.get_submodule(path)
    dim, width = layer.output_linear.weight.shape
    with torch.device("meta"):
        block.set_submodule(path, Expert(dim, width, layer.activation))
