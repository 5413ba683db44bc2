"""A model whose decoder linears are those of a file and whose norms have other gains.

One block at a time is decoded, from numbers that a tuning moves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from gwq_export.calibration.block_model import BlockModel
from gwq_export.compute.threads import each
from gwq_export.hf.source import Source
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.pipeline.tuned_parts import TunedMatrix
from gwq_export.pipeline.tuning_steps import can_be_tuned

Stored = Callable[[TensorPlan, int], list[np.ndarray]]
Decoded = Callable[[TensorPlan, int], np.ndarray]


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


class TunedBlock:
    """What is tuned of one block: the numbers of its matrices, then factors for its norms' gains.

    matrices: {Hugging Face name: (plan, matrix)}. norms: {module: length}. `first` and `units`: all
    numbers one after another, as `TunedMatrix` has them; a factor is 1 at first, and so is its
    unit.
    """

    def __init__(
        self,
        matrices: Mapping[str, tuple[TensorPlan, TunedMatrix]],
        norms: Mapping[str, int],
    ):
        self.matrices = matrices
        self.norms = norms
        ones = np.ones(sum(norms.values()), np.float32)
        self.first = np.concatenate([*(m.first for _, m in matrices.values()), ones])
        self.units = np.concatenate([*(m.units for _, m in matrices.values()), ones])
        sizes = [*(len(m.first) for _, m in matrices.values()), *norms.values()]
        self._ends = np.cumsum(sizes)[:-1]

    def _split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip([*self.matrices, *self.norms], np.split(flat, self._ends), strict=True))

    def weights(self, flat: np.ndarray) -> dict[str, torch.Tensor]:
        """{Hugging Face name: decoded matrix in the checkpoint's layout}."""
        numbers = self._split(flat)

        def decode(name: str) -> torch.Tensor:
            plan, matrix = self.matrices[name]
            return torch.from_numpy(plan.arrange.inverse(matrix.decode(numbers[name])))

        return dict(zip(self.matrices, each(decode, [*self.matrices]), strict=True))

    def factors(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """{module: factors for the gains of this norm}."""
        numbers = self._split(flat)
        return {path: numbers[path] for path in self.norms}

    def project(self, flat: np.ndarray, gradients: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gradient by the numbers, flat.

        gradients: by {Hugging Face name: the matrix, in the checkpoint's layout} and by {module:
        the factors of the norm}; what is left out has none.
        """
        numbers = self._split(flat)

        def part(name: str) -> np.ndarray:
            if name not in gradients:
                return np.zeros_like(numbers[name])
            if name in self.norms:
                return gradients[name]
            plan, matrix = self.matrices[name]
            in_file = plan.arrange.statistics({"gradient": gradients[name]})["gradient"]
            return matrix.project(numbers[name], in_file)

        return np.concatenate(each(part, [*numbers]))

    def parts(self, flat: np.ndarray) -> dict[str, list[np.ndarray]]:
        """{Hugging Face name: bytes of the matrix and of its side-table}."""
        numbers = self._split(flat)
        return {name: m.parts(numbers[name]) for name, (_, m) in self.matrices.items()}


class TunedSource:
    """A Source whose decoder linears are those of a file, tuned as far as `numbers` says.

    plans: how the source's tensors are stored. stored(plan, j): bytes of matrix j of a plan and of
    its side-table, before tuning. decoded(plan, j): float32 weights, in the file's layout, of a
    plan that cannot be tuned. numbers(i): the numbers of block i (the final norm comes after the
    last block), or None where they are as they were.
    """

    def __init__(
        self,
        source: Source,
        plans: Iterable[TensorPlan],
        stored: Stored,
        decoded: Decoded,
        numbers: Callable[[int], np.ndarray | None],
    ):
        self._source = source
        self._plans = {hf: (p, j) for p in plans if p.linear for j, hf in enumerate(p.sources)}
        self._stored = stored
        self._decoded = decoded
        self._numbers = numbers
        self._norms = norms_of(source)
        self._ready: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tuned(self, i: int) -> tuple[TunedBlock, np.ndarray]:
        """(block i, or the final norm after the last, its numbers as they are now)."""
        norms = {path: self._source.shape(name)[0] for path, name in self._norms[i].items()}
        names = [*self._source.block(i).values()] if i < self._source.layers else []
        tuned = [n for n in names if n in self._plans and can_be_tuned(self._plans[n][0])]
        found = each(self._matrix, tuned)
        block = TunedBlock(dict(zip(tuned, found, strict=True)), norms)
        numbers = self._numbers(i)
        return block, block.first if numbers is None else numbers

    def _matrix(self, name: str) -> tuple[TensorPlan, TunedMatrix]:
        plan, j = self._plans[name]
        return plan, TunedMatrix(plan.recipe.type, plan.shape[-2:], self._stored(plan, j))

    def open(self, i: int) -> tuple[TunedBlock, np.ndarray]:
        """The same as `tuned`; its weights are what `tensor` returns until another is opened."""
        block, numbers = self.tuned(i)
        self._ready = block.weights(numbers)
        return block, numbers

    def tensor(self, name: str) -> torch.Tensor:
        """The file's matrix in the checkpoint's layout, or the source's own tensor."""
        if name in self._ready:
            return self._ready.pop(name)
        if name not in self._plans:
            return self._source.tensor(name)
        plan, j = self._plans[name]
        return torch.from_numpy(plan.arrange.inverse(self._decoded(plan, j)))

    def named_factors(self) -> dict[str, np.ndarray]:
        """{Hugging Face name of a norm's weight, and of its bias: factors for it, float32}."""
        found: dict[str, np.ndarray] = {}
        for i, names in enumerate(self._norms):
            numbers = self._numbers(i)
            if numbers is None:
                continue
            lengths = [self._source.shape(name)[0] for name in names.values()]
            gains = np.split(numbers[len(numbers) - sum(lengths) :], np.cumsum(lengths)[:-1])
            for name, part in zip(names.values(), gains, strict=True):
                found |= {name.removesuffix("weight") + kind: part for kind in ("weight", "bias")}
        return found


class TunedModel(BlockModel):
    """A BlockModel of a TunedSource. `block` and `numbers`: those of the loaded block."""

    source: TunedSource
    block: TunedBlock
    numbers: np.ndarray

    def load(self, i: int) -> torch.nn.Module:
        """Block i with its weights, as they are now."""
        self.block, self.numbers = self.source.open(i)
        return super().load(i)

    def weights(self, i: int) -> dict[str, torch.Tensor]:
        """{Hugging Face name: parameter} of the tuned matrices of loaded block i."""
        prefix = f"{self.source.arch.layers}.{i}."
        return {
            name: self.blocks[i].get_parameter(name.removeprefix(prefix))
            for name in self.block.matrices
        }

    def factors(self) -> dict[str, torch.Tensor]:
        """{module: factors for its output} of the norms of the loaded block."""
        found = self.block.factors(self.numbers)
        return {path: torch.tensor(part, device=self.device) for path, part in found.items()}
