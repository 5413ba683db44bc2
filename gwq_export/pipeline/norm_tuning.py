"""The gains of the norms, tuned once the matrices are coded.

A file's norms stay float32, so tuning them costs no byte and no time when the file runs. A few
steps of Adam (arXiv 1412.6980) lower the KL divergence of the file's predictions from the model's,
over all norms at once (norm tweaking, arXiv 2309.02784, goes block by block). Every step is a
forward and a backward pass as in calibration, one decoded block at a time. Samples that no step has
seen decide in the end whether the gains stay.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from gwq_export.calibration.block_model import BlockModel
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.calibration.text import Calibration
from gwq_export.compute.results import Memory
from gwq_export.format.reader import Reader
from gwq_export.hf.source import Source
from gwq_export.pipeline.plan import TensorPlan

# Per weight of the decoder's linears: with more bits the loss is small, and little of it is in the
# norms.
BITS = 4
# Forward passes that a calibration takes the time of; with its gradient a pass counts as three.
PASSES = 4
WINDOWS = 4  # of calibration, at least: with fewer, too few are left to judge
STEPS = 3
TOKENS = 1024  # of a step, and of the samples that judge
# Of the root of the KL divergence: by how much a gain changes in the first step, and less in each
# step after it.
RATE = 1 / 12
MEMORY = 0.8, 0.9  # Adam's decay rates of the mean gradient and of the mean squared gradient
EPSILON = np.float32(1e-12)


def judged(samples: int, ctx: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(sample numbers of each step, sample numbers that judge); no sample does both."""
    order = np.random.default_rng(0).permutation(samples)
    per_step = max(1, TOKENS // ctx)
    judges = max(1, min(per_step, samples // 4))
    rest = order[judges:]
    count = min(per_step, len(rest))
    steps = [
        np.take(rest, np.arange(k * per_step, k * per_step + count), mode="wrap")
        for k in range(STEPS)
    ]
    return steps, order[:judges]


def share(samples: int, ctx: int) -> float:
    """Time of the tuning as a share of that of a calibration of (samples, ctx) tokens."""
    steps, judges = judged(samples, ctx)
    return (3 * sum(map(len, steps)) + 2 * len(judges)) / (PASSES * samples)


def worthwhile(plans: Iterable[TensorPlan], bits: float, calibration: Calibration | None) -> bool:
    """Whether to tune the norms of a file whose decoder linears take `bits` per weight."""
    coded = any(p.linear and p.recipe.curvature and p.recipe.type.bits for p in plans)
    return coded and calibration is not None and bits < BITS and len(calibration.tokens) >= WINDOWS


def is_norm(name: str) -> bool:
    """Whether a tensor of a file belongs to a norm."""
    return name.endswith(("norm.weight", "norm.bias"))


def norms_of(source: Source) -> list[dict[str, str]]:
    """[{module: name of its weight}] of each block's norms and, last, of the final norm.

    Hugging Face names.
    """
    blocks = [
        {
            row.hf.removesuffix(".weight"): name
            for row, name in source.block(i).items()
            if row.gguf.endswith("norm.weight")
        }
        for i in range(source.layers)
    ]
    return [*blocks, {source.arch.norm.removesuffix(".weight"): source.arch.norm}]


class _Decoded:
    """A Source whose decoder linears are those of an open file."""

    def __init__(self, source: Source, reader: Reader, plans: Iterable[TensorPlan]):
        self._source = source
        self._reader = reader
        self._matrices = {hf: (p, j) for p in plans if p.linear for j, hf in enumerate(p.sources)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensor(self, name: str) -> torch.Tensor:
        """The decoded matrix in the checkpoint's layout, or the source's own tensor."""
        if name not in self._matrices:
            return self._source.tensor(name)
        plan, j = self._matrices[name]
        decoded = self._reader.tensors[plan.name].matrices()[j].dequantize()
        return torch.from_numpy(plan.arrange.inverse(decoded))


def tune(
    source: Source,
    reader: Reader,
    plans: Sequence[TensorPlan],
    tokens: torch.Tensor,
    target: np.ndarray,
    device: str,
    progress: Callable[[str, int, int], None],
    work: Memory,
) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    """Factors for the norms' gains, {Hugging Face name of a weight or bias: float32 array}, and the
    KL divergence (nats per token) of the samples that judge, (before, after).

    There are no factors where the KL divergence did not fall. reader: the file with all but its
    norms, whose decoder linears `plans` describe. tokens: int64 (samples, ctx); target: float32
    (samples, ctx, dim), the model's hidden states after the last block. work: with a Workdir,
    another call goes on from what a killed one left.
    """
    steps, judges = judged(*tokens.shape)
    tuner = _Tuner(_Decoded(source, reader, plans), tokens, target, device, progress, work)
    gains = mean = square = np.zeros(tuner.size, np.float32)
    decay_mean, decay_square = MEMORY
    for k, samples in enumerate(steps):
        kept = work.get(f"gains.{k}")
        if not kept:
            kld, gradients = tuner.step(k, gains, samples, judges if k == 0 else judges[:0])
            if k == 0:
                before = np.array([kld[: len(samples)].mean(), kld[len(samples) :].mean()])
            mean = decay_mean * mean + (1 - decay_mean) * gradients.mean(0)
            square = decay_square * square + (1 - decay_square) * (gradients**2).mean(0)
            # Adam: both means started at zero, hence the divisions by 1 - decay^(k + 1)
            root = np.sqrt(square / (1 - decay_square ** (k + 1)))
            direction = mean / (1 - decay_mean ** (k + 1)) / (root + EPSILON)
            rate = np.float32(RATE * before[0] ** 0.5 * (1 - k / STEPS))
            kept = [gains - rate * direction, mean, square, before]
            work.put(f"gains.{k}", *kept)
            tuner.clear(k)
        gains, mean, square, before = kept
    after = work.get("after")
    if not after:
        kld, _ = tuner.step(STEPS, gains, judges[:0], judges)
        after = [np.array(kld.mean())]
        work.put("after", *after)
        tuner.clear(STEPS)
    kld_before, kld_after = float(before[1]), float(after[0])
    factors = tuner.named(1 + gains) if kld_after < kld_before else {}
    return factors, (kld_before, kld_after)


class _Tuner:
    """Passes through a model whose norms have other gains. `size`: how many gains there are."""

    def __init__(
        self,
        source: Any,
        tokens: torch.Tensor,
        target: np.ndarray,
        device: str,
        progress: Callable[[str, int, int], None],
        work: Memory,
    ):
        self.model = BlockModel(source, device)
        self.blocks = source.layers
        self.tokens = tokens
        self.target = target
        self.progress = progress
        self.work = work
        self.norms = norms_of(source)
        self.lengths = [[source.shape(name)[0] for name in n.values()] for n in self.norms]
        self.size = sum(map(sum, self.lengths))

    def _parts(self, flat: torch.Tensor) -> list[list[torch.Tensor]]:
        """The tensor (size,) cut up: a list of parts for each block, and one for the final norm."""
        parts = iter(flat.split([n for lengths in self.lengths for n in lengths]))
        return [[next(parts) for _ in lengths] for lengths in self.lengths]

    def named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """{name of a norm's weight, and of its bias: its part} of an array (size,)."""
        parts = [p.numpy() for parts in self._parts(torch.from_numpy(flat)) for p in parts]
        names = [name.removesuffix("weight") for norms in self.norms for name in norms.values()]
        return {
            name + kind: part
            for name, part in zip(names, parts, strict=True)
            for kind in ("weight", "bias")
        }

    def clear(self, k: int) -> None:
        """Forget what step k has kept."""
        for kind in ("state", "upstream", "gradient"):
            for i in range(self.blocks + 1):
                self.work.drop(f"{k}.{kind}.{i}")

    def step(
        self, k: int, gains: np.ndarray, samples: np.ndarray, judges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(KL divergence of each of `samples` and `judges`, gradients (samples, size) of it).

        gains: float32 (size,), how much each gain differs from 1.
        """
        flat = torch.from_numpy(1 + gains).to(self.model.device)
        factors = [[p.clone().requires_grad_() for p in parts] for parts in self._parts(flat)]
        rows = np.concatenate([samples, judges]).astype(int)
        walk = BlockPass(self.model, self.tokens[rows], self.work, f"{k}.")
        walk.embed()
        walk.forward(
            lambda i, block: _multiplied(block, self.norms[i], factors[i]),
            report=lambda done: self.progress("norms", *self._done(k, done)),
        )
        if f"gradient.{self.blocks}" not in walk:
            self._end(walk, factors[-1][0], rows, len(samples))
        for i in reversed(range(self.blocks if len(samples) else 0)):
            if f"gradient.{i}" not in walk:
                self._backward(walk, i, factors[i])
            self.progress("norms", *self._done(k, 2 * self.blocks - i))
        kept = [self.work.get(f"{k}.gradient.{i}") for i in range(self.blocks + 1)]
        by_gains = [arrays[0] for arrays in kept if arrays]
        _, kld = self.work.need(f"{k}.gradient.{self.blocks}")
        return kld, np.concatenate(by_gains, axis=1)

    def _done(self, k: int, blocks: int) -> tuple[int, int]:
        return 2 * k * self.blocks + blocks, (2 * STEPS + 1) * self.blocks

    def _end(self, walk: BlockPass, factor: torch.Tensor, rows: np.ndarray, count: int) -> None:
        """What follows the last block: keeps KL divergences, and gradients of the first `count`
        windows by the final norm's gains and by the states.
        """
        model = self.model
        states = walk.get(f"state.{self.blocks}")
        here = threading.local()

        def differentiate(s: int) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
            ids = walk.tokens[s][None]
            hidden = states[s : s + 1].clone().requires_grad_()
            here.tuned = False
            with torch.no_grad():
                target = torch.from_numpy(self.target[rows[s]])[None].to(model.device)
                wanted = model.logits(ids, target)
                p = wanted.softmax(-1)
                entropy = cross_entropy(wanted, p)
                del wanted
            here.tuned = True
            loss = cross_entropy(model.logits(ids, hidden), p)
            upstream, gradient = None, None
            if s < count:
                upstream, gradient = torch.autograd.grad(loss, [hidden, factor])
            return upstream, gradient, (loss - entropy).item()  # KL = cross-entropy - entropy

        (path,) = self.norms[-1]
        norm = model.model.get_submodule(path)
        handle = norm.register_forward_hook(
            lambda module, args, out: out * factor if here.tuned else out
        )
        found = walk.at_the_end(differentiate, len(rows))
        handle.remove()
        upstream, gradient, kld = zip(*found, strict=True)
        if count:
            walk.put(f"upstream.{self.blocks}", torch.cat(upstream[:count]))
        by_gains = np.zeros((0, len(factor)), np.float32)
        if count:
            by_gains = torch.stack(gradient[:count]).cpu().numpy()
        walk.keep.put(f"{walk.prefix}gradient.{self.blocks}", by_gains, np.array(kld))

    def _backward(self, walk: BlockPass, i: int, factors: list[torch.Tensor]) -> None:
        """Keep the gradients of block i's gains, and of its input for the block before it."""
        with _multiplied(self.model.load(i), self.norms[i], factors):
            found = [torch.cat(g) for _, g, _ in walk.backward(i, lambda noted: factors)]
        self.model.drop(i)
        walk.put(f"gradient.{i}", torch.stack(found))
        walk.drop(f"upstream.{i + 1}")


@contextmanager
def _multiplied(
    block: torch.nn.Module, norms: Iterable[str], factors: Iterable[torch.Tensor]
) -> Iterator[None]:
    """As long as this lasts, the outputs of a block's norms are multiplied by factors."""

    def multiply(factor: torch.Tensor, module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out * factor

    handles = [
        block.get_submodule(path).register_forward_hook(functools.partial(multiply, factor))
        for path, factor in zip(norms, factors, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
