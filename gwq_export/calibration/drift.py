"""How the inputs of matrices drift once what comes before them is quantized.

Statistics are those of the model as it is, but in the file a matrix W meets inputs x' that the
errors before it have moved from x. The matrix W' whose outputs for x' come closest to W x, in the
mean square, is

    W' = W E[x x'^T] H'^-1 = W + W D H'^-1,      D = E[(x - x') x'^T],      H' = E[x' x'^T]

so that codes for W' instead of W also make up for errors of other matrices, as far as those depend
on x' (asymmetric calibration: GPTAQ, arXiv 2504.02692). D and H' are measured here, with two
streams of hidden states, one through the model and one through what of the file is coded by then.
Both must come from the same tokens, as W' is a regression; `quantization.quantize` uses them.
"""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from gwq_export.calibration.block_model import BlockModel, ModelSource
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.compute.linalg import add_gram, add_product, mirror
from gwq_export.compute.results import Memory
from gwq_export.compute.threads import batches, each


class _Reached(Exception):
    """A module that is asked for its input has been called: the rest of the block is not needed."""


class Drifted(NamedTuple):
    """What the matrices of one input meet in the file.

    names: Hugging Face names. hessian, drift: H' and D, float32 (cols, cols).
    """

    names: list[str]
    hessian: np.ndarray
    drift: np.ndarray


class DriftPass:
    """One pass over token windows (samples, ctx), block by block from the first.

    Of each block: take the groups of `groups(i)` in turn, and `put` what the file makes of their
    matrices before the next; then `finish(i)`. Hidden states between blocks are kept in `keep`;
    with a Workdir, another run goes on from block `reached`.
    """

    def __init__(self, source: ModelSource, tokens: torch.Tensor, device: str, keep: Memory):
        self.model = BlockModel(source, device)
        self.original = BlockPass(self.model, tokens, keep, "drift.model.")
        self.file = BlockPass(self.model, tokens, keep, "drift.file.")
        self._block = torch.nn.Module()  # that is loaded
        self._paths: dict[str, str] = {}  # Hugging Face name of its linears: path in it
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # path: model's, file's
        self._input = threading.local()

    @property
    def reached(self) -> int:
        """The block that is the next one."""
        blocks = range(len(self.model.blocks) + 1)
        return max((i for i in blocks if f"state.{i}" in self.file), default=0)

    @torch.no_grad()
    def embed(self, embedding: np.ndarray | None) -> None:
        """Begin. embedding: the file's, float32 (vocab, dim), or None for the model's."""
        begun = "state.0" in self.file or self.reached > 0
        self.original.embed(only_arguments=begun)
        if begun:
            return
        if embedding is None:
            self.file.put("state.0", self.original.get("state.0"))
            return
        self.model.load_ends()
        own = torch.from_numpy(embedding).to(self.model.device)
        self.model.end(self.model.source.arch.embed).data = own
        self.file.put("state.0", torch.cat([self.model.embed(w[None]) for w in self.file.tokens]))
        self.model.drop_ends()

    def groups(self, i: int) -> Iterator[Drifted]:
        """Load block i; its matrices by input, in the order in which they are computed.

        Without experts, whose tokens differ between the streams.
        """
        linear = {row: name for row, name in self.model.source.block(i).items() if row.linear}
        self._block = self.model.load(i)
        self._paths = {name: row.hf for row, name in linear.items()}
        self._weights = {}
        alone = [name for row, name in linear.items() if row.expert is None]
        for names in self._called_together(i, alone):
            yield Drifted(names, *self._moments(i, names[0]))

    def put(self, name: str, weight: np.ndarray) -> None:
        """What the file has of a matrix of the loaded block, in the checkpoint's layout."""
        path = self._paths[name]
        own = torch.from_numpy(np.ascontiguousarray(weight)).to(self.model.device)
        self._weights[path] = self._block.get_parameter(path).data, own

    def finish(self, i: int) -> None:
        """Run both streams through block i, the file's with what was `put`, and drop it."""
        outputs = {}
        for stream in (self.original, self.file):
            self._use(stream)
            states = stream.get(f"state.{i}")
            run = partial(self._output, i, states)
            outputs[stream] = torch.cat(each(run, range(len(states))))
        self.original.put(f"state.{i + 1}", outputs[self.original])
        self.file.put(f"state.{i + 1}", outputs[self.file])  # last: `reached` goes by it
        for stream in outputs:
            stream.drop(f"state.{i}")
        self._weights = {}
        self.model.drop(i)

    def _use(self, stream: BlockPass) -> None:
        """Give the loaded block the weights of a stream."""
        for path, pair in self._weights.items():
            self._block.get_parameter(path).data = pair[stream is self.file]

    def _module(self, name: str) -> torch.nn.Module:
        """The loaded block's module of a matrix."""
        return self._block.get_submodule(self._paths[name].removesuffix(".weight"))

    @torch.no_grad()
    def _output(self, i: int, states: torch.Tensor, s: int) -> torch.Tensor:
        return self.model.run(i, states[s : s + 1])

    @torch.no_grad()
    def _called_together(self, i: int, alone: list[str]) -> list[list[str]]:
        """Some matrices by the input they have, in the order in which their modules are called."""
        inputs: list[torch.Tensor] = []  # alive, so that equal addresses mean equal tensors
        groups: list[list[str]] = []
        found: dict[tuple[int, torch.Size], int] = {}

        def note(name: str, module: Any, args: Any) -> None:
            x = args[0]
            inputs.append(x)
            at = found.setdefault((x.data_ptr(), x.shape), len(groups))
            if at == len(groups):
                groups.append([])
            groups[at].append(name)

        handles = [
            self._module(name).register_forward_pre_hook(partial(note, name)) for name in alone
        ]
        self.model.run(i, self.original.get(f"state.{i}")[:1])
        for handle in handles:
            handle.remove()
        return groups

    def _moments(self, i: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(H', D) of a matrix of the loaded block."""
        handle = self._module(name).register_forward_pre_hook(self._stop)
        states = {stream: stream.get(f"state.{i}") for stream in (self.original, self.file)}
        sums: list[torch.Tensor] = []
        for batch in batches(len(self.file.tokens)):
            x: dict[BlockPass, list[torch.Tensor]] = {}
            for stream, hidden in states.items():
                self._use(stream)
                x[stream] = each(partial(self._reach, i, hidden), batch)
            for before, after in zip(x[self.original], x[self.file], strict=True):
                sums = sums or [after.new_zeros(2 * after.shape[1:]) for _ in range(2)]
                add_gram(sums[0], after)
                add_product(sums[1], before - after, after)
        handle.remove()
        mirror(sums[0])
        hessian, drift = (total / self.file.tokens.numel() for total in sums)
        return hessian.cpu().numpy(), drift.cpu().numpy()

    def _stop(self, module: Any, args: Any) -> None:
        self._input.x = args[0]
        raise _Reached

    @torch.no_grad()
    def _reach(self, i: int, states: torch.Tensor, s: int) -> torch.Tensor:
        """The input (ctx, cols) of the module that stops the block's run on window s."""
        try:
            self.model.run(i, states[s : s + 1])
        except _Reached:
            x = self._input.__dict__.pop("x")
            return x.reshape(-1, x.shape[-1])
        raise AssertionError("the module was not called")  # `_called_together` has seen it
