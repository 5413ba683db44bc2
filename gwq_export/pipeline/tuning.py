"""Scales, tables, outliers and norms of a coded model, tuned together.

Each matrix was coded by itself, by what its errors cost to second order. Here all that can still
change (`tuned_parts`) is moved at once by what counts: Adam (arXiv 1412.6980) lowers the KL
divergence of the file's predictions from the model's, which costs no byte of the file. Every step
is a forward and a backward pass as in calibration, one decoded block at a time. Windows that no
step has seen decide in the end whether it all stays.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from gwq_export.calibration.block_model import BlockModel
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.compute.results import Memory
from gwq_export.hf.source import Source
from gwq_export.pipeline.tuned_blocks import TunedBlock, TunedModel, TunedSource
from gwq_export.pipeline.tuning_steps import divided

# Of its unit: by how much a number changes in a step at most, when WARM_UP steps are over; from
# then on less and less. Adam's first steps go by the signs of a noisy gradient: on SmolLM2-135M in
# gwq2, whose judges' KL divergence was 0.760, one step at 0.001 / 0.002 / 0.004 led to 0.697 /
# 0.690 / 0.806, and four at 0.004 to 0.642 in spite of the first.
RATE = 0.004
WARM_UP = 2
MEMORY = 0.9, 0.95  # Adam's decay rates of the mean gradient and of the mean squared gradient
EPSILON = np.float32(1e-20)

Progress = Callable[[str, int, int], None]


class Tuning:
    """The tuning of a file: call `run`, then take what it led to.

    source: the model. in_file(numbers): the TunedSource of the file, whose numbers are
    `numbers(i)`. tokens: int64 (windows, ctx), divided among `steps` steps and those that judge.
    work: with a Workdir, another run goes on from what a killed one left.
    """

    def __init__(
        self,
        source: Source,
        in_file: Callable[[Callable[[int], np.ndarray | None]], TunedSource],
        tokens: torch.Tensor,
        steps: int,
        device: str,
        progress: Progress,
        work: Memory,
    ):
        self.source = source
        self.in_file = in_file(self._numbers)
        self.blocks = source.layers
        self.tokens = tokens
        self.steps, self.judges = divided(len(tokens), tokens.shape[1], steps)
        self.device = device
        self.progress = progress
        self.work = work

    def run(self) -> tuple[float, float]:
        """Tune; returns the KL divergence (nats per token) of the windows that judge, (before,
        after).
        """
        self.target = self._target()
        self.model = TunedModel(self.in_file, self.device)
        before = self._judge("before", 1)
        for k in range(self._moves(0), len(self.steps)):
            self._step(k)
        return before, self._judge("after", 2 + len(self.steps))

    def factors(self) -> dict[str, np.ndarray]:
        """{Hugging Face name of a norm's weight or bias: what it is multiplied by} after `run`."""
        return self.in_file.named_factors()

    def tensors(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """(Hugging Face name, bytes of it and its side-table) of every tuned matrix after `run`."""
        for i in range(self.blocks):
            block, numbers = self.in_file.tuned(i)
            yield from block.parts(numbers).items()

    def _target(self) -> np.ndarray:
        """float32 (windows, ctx, dim): the model's own states after its last block."""
        last = f"model.state.{self.blocks}"
        if last not in self.work:
            walk = BlockPass(BlockModel(self.source, self.device), self.tokens, self.work, "model.")
            walk.embed()
            walk.forward(report=lambda done: self._report(0, done), drop_states=True)
        return self.work.need(last)[0]

    def _report(self, part: int, blocks: int) -> None:
        """Report progress. part: 0 for the model's own pass, 1 for judging, 2 + k for step k ..."""
        lengths = [1, 1, *(3 for _ in self.steps), 1]  # backward counts as two
        self.progress(
            "tune", sum(lengths[:part]) * self.blocks + blocks, sum(lengths) * self.blocks
        )

    def _numbers(self, i: int) -> np.ndarray | None:
        """The numbers of block i as far as they are tuned; None before the first step."""
        kept = self.work.get(f"numbers.{i}")
        return kept[0] if kept else None

    def _moves(self, i: int) -> int:
        """How many steps have moved the numbers of block i."""
        kept = self.work.get(f"numbers.{i}")
        return int(kept[3]) if kept else 0

    def _walk(self, name: str, part: int, windows: np.ndarray) -> BlockPass:
        """A forward pass of the file over some windows; its states are kept under `name.`."""
        walk = BlockPass(self.model, self.tokens[windows], self.work, f"{name}.")
        walk.embed()
        walk.forward(
            lambda i, block: _multiplied(block, self.model.factors()),
            report=lambda done: self._report(part, done),
        )
        return walk

    def _clear(self, name: str) -> None:
        """Forget what the passes called `name` have kept."""
        for i in range(self.blocks + 1):
            self.work.drop(f"{name}.state.{i}")
            self.work.drop(f"{name}.upstream.{i}")
        self.work.drop(f"{name}.last")

    def _judge(self, name: str, part: int) -> float:
        """KL divergence of the file as it is now, over the windows that judge."""
        kept = self.work.get(name)
        if not kept:
            kld, _ = self._end(self._walk(name, part, self.judges), self.judges, False)
            kept = [np.array(kld.mean())]
            self.work.put(name, *kept)
            self._clear(name)
        return float(kept[0])

    def _step(self, k: int) -> None:
        """Move all numbers of all blocks once."""
        self._clear(str(k - 1))
        windows = self.steps[k]
        walk = self._walk(str(k), 2 + k, windows)
        if self._moves(self.blocks) == k:
            if f"{k}.last" not in self.work:
                _, gradient = self._end(walk, windows, True)
                self.work.put(f"{k}.last", gradient)
            block, numbers = self.in_file.tuned(self.blocks)
            self._move(k, self.blocks, block, numbers, self.work.need(f"{k}.last")[0])
        for i in reversed(range(self.blocks)):
            if self._moves(i) == k:
                gradient = self._gradient(walk, i)
                self._move(k, i, self.model.block, self.model.numbers, gradient)
                walk.drop(f"upstream.{i + 1}")
            self._report(2 + k, 3 * self.blocks - 2 * i)
        self._clear(str(k))

    def _move(
        self, k: int, i: int, block: TunedBlock, numbers: np.ndarray, gradient: np.ndarray
    ) -> None:
        """Adam's step k for the numbers of block i."""
        kept = self.work.get(f"numbers.{i}")
        mean, square = kept[1:3] if kept else (np.zeros_like(numbers), np.zeros_like(numbers))
        decay_mean, decay_square = map(np.float32, MEMORY)
        mean = decay_mean * mean + (1 - decay_mean) * gradient
        square = decay_square * square + (1 - decay_square) * gradient**2
        # both means started at zero, hence the divisions by 1 - decay^(k + 1)
        root = np.sqrt(square / (1 - decay_square ** (k + 1)))
        direction = mean / (1 - decay_mean ** (k + 1)) / (root + EPSILON)
        rate = np.float32(RATE * min(1, (k + 1) / WARM_UP) * (1 - k / len(self.steps)))
        moved = numbers - rate * block.units * direction
        self.work.put(f"numbers.{i}", moved, mean, square, np.array(k + 1))

    def _end(
        self, walk: BlockPass, windows: np.ndarray, differentiate: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(KL divergence of each window, gradient of their mean by the final norm's factors).

        Keeps its gradient by the states after the last block, if one is asked for.
        """
        model = self.model
        states = walk.get(f"state.{self.blocks}")
        tokens = states.shape[0] * states.shape[1]
        block, numbers = self.in_file.tuned(self.blocks)
        ((path, factor),) = block.factors(numbers).items()
        by = torch.tensor(factor, device=model.device, requires_grad=differentiate)
        here = threading.local()

        def part(s: int, at: slice) -> tuple[torch.Tensor, torch.Tensor, float]:
            """Gradients and KL divergence of a part of window s, summed over its tokens."""
            ids = walk.tokens[s, at][None]
            hidden = states[s : s + 1, at].clone().requires_grad_(differentiate)
            with torch.no_grad():
                here.tuned = False
                target = torch.from_numpy(self.target[windows[s], at])[None].to(model.device)
                wanted = model.logits(ids, target)
                p = wanted.softmax(-1)
                entropy = cross_entropy(wanted, p, reduction="sum")
                del wanted
            here.tuned = True
            with torch.set_grad_enabled(differentiate):
                loss = cross_entropy(model.logits(ids, hidden), p, reduction="sum")
            kld = (loss - entropy).item()  # KL = cross-entropy - entropy
            if not differentiate:
                return hidden, by, kld
            return *torch.autograd.grad(loss, [hidden, by]), kld

        def window(s: int) -> tuple[torch.Tensor, torch.Tensor, float]:
            ctx = states.shape[1]
            parts = [part(s, at) for at in model.parts(ctx)]
            upstream, gradient, kld = zip(*parts, strict=True)
            return torch.cat(upstream, 1) / tokens, torch.stack(gradient).sum(0), sum(kld) / ctx

        handle = model.model.get_submodule(path).register_forward_hook(
            lambda module, args, out: out * by if here.tuned else out
        )
        upstream, gradient, kld = zip(*walk.at_the_end(window, len(windows)), strict=True)
        handle.remove()
        if differentiate:
            walk.put(f"upstream.{self.blocks}", torch.cat(upstream))
        return np.array(kld), (torch.stack(gradient).detach().sum(0) / tokens).cpu().numpy()

    def _gradient(self, walk: BlockPass, i: int) -> np.ndarray:
        """The gradient by block i's numbers; keeps that of its input for the block before it."""
        block = self.model.load(i)
        factors = self.model.factors()
        targets = {
            name: tensor.requires_grad_()
            for name, tensor in (self.model.weights(i) | factors).items()
        }
        sums: dict[str, torch.Tensor] = {}
        with _multiplied(block, factors):
            for _, found, _ in walk.backward(i, lambda noted: [*targets.values()]):
                for name, gradient in zip(targets, found, strict=True):
                    if gradient is not None:  # None: of an expert without a token
                        sums[name] = sums[name] + gradient if name in sums else gradient
        self.model.drop(i)
        known = {name: gradient.cpu().numpy() for name, gradient in sums.items()}
        return self.model.block.project(self.model.numbers, known)


@contextmanager
def _multiplied(block: torch.nn.Module, factors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """As long as this lasts, the outputs of a block's norms are multiplied by factors."""

    def multiply(factor: torch.Tensor, module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out * factor

    handles = [
        block.get_submodule(path).register_forward_hook(functools.partial(multiply, factor))
        for path, factor in factors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
