"""One walk through a model, forward and backward, with one decoder block in memory at a time.

Calibration, tuning and verification all load a block, run every sample through it and drop it.
What they do to a block while it is there, and what they differentiate, they hand in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from gwq_export.calibration.block_model import BlockModel
from gwq_export.compute.results import Memory
from gwq_export.compute.threads import batches, each

Around = Callable[[int, torch.nn.Module], AbstractContextManager[Any]]
Report = Callable[[int], None]


def as_it_is(i: int, block: torch.nn.Module) -> AbstractContextManager[Any]:
    """Do nothing to a block."""
    return nullcontext()


class BlockPass:
    """A pass over the token windows `tokens`, int64 (samples, ctx).

    Between blocks only hidden states are kept, in `keep`, float32 (samples, ctx, dim) each: under
    `state.i` what block i reads (`state.N` what the last of N blocks writes), under `upstream.i`
    the gradient of the loss with respect to it. `prefix` comes before all these names. With a
    Workdir as `keep`, a pass that was killed goes on from what is there.
    """

    def __init__(self, model: BlockModel, tokens: torch.Tensor, keep: Memory, prefix: str = ""):
        self.model = model
        self.tokens = tokens.to(model.device)
        self.keep = keep
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.keep

    def get(self, name: str) -> torch.Tensor:
        """A kept tensor, on the model's device. On the CPU it shares the kept array's memory."""
        return torch.from_numpy(self.keep.need(self.prefix + name)[0]).to(self.model.device)

    def put(self, name: str, states: torch.Tensor) -> None:
        """Keep a tensor."""
        self.keep.put(self.prefix + name, states.detach().cpu().numpy())

    def drop(self, *names: str) -> None:
        """Forget kept tensors, if they are there."""
        for name in names:
            self.keep.drop(self.prefix + name)

    @torch.no_grad()
    def embed(self, only_arguments: bool = False) -> None:
        """Keep `state.0`, and let the blocks know the arguments that come with hidden states.

        only_arguments: the states are not needed any more.
        """
        kept = only_arguments or "state.0" in self
        if kept and self.model.knows_arguments:
            return
        self.model.load_ends()
        states = [self.model.embed(ids[None]) for ids in (self.tokens[:1] if kept else self.tokens)]
        if not kept:
            self.put("state.0", torch.cat(states))
        self.model.drop_ends()

    def forward(
        self,
        around: Around = as_it_is,
        run: Callable[[int, int, torch.Tensor], torch.Tensor] | None = None,
        report: Report = lambda done: None,
        drop_states: bool = False,
    ) -> None:
        """Keep the hidden states after every block whose output is not there yet.

        around(i, block): a context that lasts as long as block i is loaded. run(i, s, hidden): the
        output of block i for window s, hidden (1, ctx, dim); by default the block's own.
        report(blocks): so many are done. drop_states: forget the input of a block once it has run.
        """

        @torch.no_grad()  # per thread, so it belongs into what the threads run
        def output(i: int, states: torch.Tensor, s: int) -> torch.Tensor:
            hidden = states[s : s + 1]
            return self.model.run(i, hidden) if run is None else run(i, s, hidden)

        for i in range(len(self.model.blocks)):
            if f"state.{i + 1}" not in self:
                states = self.get(f"state.{i}")
                with around(i, self.model.load(i)):
                    outputs = each(partial(output, i, states), range(len(states)))
                    self.put(f"state.{i + 1}", torch.cat(outputs))
                self.model.drop(i)
                if drop_states:
                    self.drop(f"state.{i}")
            report(i + 1)

    def at_the_end(self, work: Callable[[int], Any], windows: int) -> list[Any]:
        """[work(s) for s in range(windows)] while last norm and head are loaded.

        As many windows run at a time as memory has room for their logits.
        """
        self.model.load_ends()
        results = each(work, range(windows), self.model.logits_size(self.tokens))
        self.model.drop_ends()
        return results

    def backward(
        self,
        i: int,
        targets: Callable[[Any], Sequence[torch.Tensor]],
        note: Callable[[], Any] = lambda: None,
    ) -> Iterator[tuple[int, tuple[torch.Tensor | None, ...], Any]]:
        """Yield (window, gradients of `targets`, what was noted) of loaded block i, by window.

        Runs the block again on `state.i` and differentiates with `upstream.(i + 1)`. note(): called
        after a window ran, in its thread. targets(noted): the tensors whose gradients are wanted
        beside that of the input. Afterwards `upstream.i` is kept. There may be more states than
        upstream gradients: the windows behind them are left out.
        """
        states = self.get(f"state.{i}")
        upstream = self.get(f"upstream.{i + 1}")

        def differentiate(s: int) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...], Any]:
            hidden = states[s : s + 1].clone().requires_grad_()
            output = self.model.run(i, hidden)
            noted = note()
            inputs = [hidden, *targets(noted)]
            lower, *gradients = torch.autograd.grad(
                output, inputs, upstream[s : s + 1], allow_unused=True
            )
            return lower, tuple(gradients), noted

        for batch in batches(len(upstream)):
            for s, (lower, gradients, noted) in zip(batch, each(differentiate, batch), strict=True):
                yield s, gradients, noted
                upstream[s] = lower  # only now: a gradient may be a view of what stood there
        self.put(f"upstream.{i}", upstream)
