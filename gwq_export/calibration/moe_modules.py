"""Mixture-of-experts layers with a linear module for each matrix, in the place of transformers'
fused parameters.

Calibration looks at one matrix at a time: its inputs are those of the tokens that were routed to
its expert.
"""

import torch


class Expert(torch.nn.Module):
    """down(act(gate x) * (up x))"""

    def __init__(self, dim, width, act):
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(dim, width, bias=False) for _ in range(2))
        self.down_proj, self.act = torch.nn.Linear(width, dim, bias=False), act

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.nn.ModuleList):
    """The experts of a layer: what transformers' module of fused parameters computes, from its
    arguments.
    """

    def __init__(self, fused):
        experts, dim, width = fused.down_proj.shape
        super().__init__(Expert(dim, width, fused.act_fn) for _ in range(experts))

    def forward(self, hidden, chosen, share):
        """hidden (tokens, dim); chosen and share (tokens, k): the experts of each token, and their
        weights in the sum.
        """
        out = torch.zeros_like(hidden)
        for j in chosen.unique().tolist():
            token, slot = torch.where(chosen == j)
            out = out.index_add(0, token, self[j](hidden[token]) * share[token, slot, None])
        return out


def unfuse(block, path):
    """Replace the experts at `path` in a decoder block on the meta device."""
    with torch.device("meta"):
        block.set_submodule(path, Experts(block.get_submodule(path)))
