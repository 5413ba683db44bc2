"""Next-token logits for evaluation, behind one function, by our runtime or by transformers.

A Predictor's `logits(ids, keep, reuse=False)` takes token ids (n,) and yields float32 (m, vocab)
arrays, in order, that together are the logits after each of the last `keep` ids; at most BATCH rows
at once, so that long windows over large vocabularies fit in memory. With `reuse` it need not
compute again what the ids share with those of the call before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from gwq_export.format.foreign import open_any
from gwq_export.runtime.buffers import BATCH
from gwq_export.runtime.model import Model
from gwq_export.runtime.session import Session


def load(
    path: str | PathLike[str],
    threads: int | None = None,
    base: bool = False,
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> Model:
    """Open any GGUF file of a supported architecture, with a KV cache of float32.

    threads, base, device, gpu_layers: as for `gwq_export.load`. Raises GwqError.
    """
    reader = open_any(path, base)
    return Model(reader, device, threads, cache="f32", gpu_layers=gpu_layers)


@dataclass(frozen=True)
class Predictor:
    """A model that gives logits. Not for several threads at once."""

    ctx: int  # how many ids `logits` takes at most
    logits: Callable[..., Iterator[np.ndarray]]


def batches(start: int, n: int, keep: int) -> Iterator[tuple[int, int, int]]:
    """Cut positions start .. n - 1 into batches, as every Predictor does: (first, last, kept).

    kept: how many of the batch are among the last `keep` of all n.
    """
    for first in range(start, n, BATCH):
        last = min(n, first + BATCH)
        yield first, last, max(0, min(last - first, last - (n - keep)))


def runtime_logits(model: Model) -> Predictor:
    """A Predictor by our runtime; model: what `gwq_export.load` returns."""
    session: Session | None = None

    def logits(
        ids: Sequence[int] | np.ndarray, keep: int, reuse: bool = False
    ) -> Iterator[np.ndarray]:
        nonlocal session
        ids = [int(i) for i in ids]
        if session is None or session.ctx < len(ids):
            session = model.session(len(ids))
        if not reuse:
            session.rewind()
        start = session.reuse(ids, keep)
        for first, last, kept in batches(start, len(ids), keep):
            out = session.forward(ids[first:last], keep=kept)
            if kept:
                yield out

    return Predictor(model.ctx, logits)


def module_logits(model: Any) -> Predictor:
    """A Predictor by a transformers model in memory (a torch module with `config`)."""
    import torch

    @torch.no_grad()
    def logits(
        ids: Sequence[int] | np.ndarray, keep: int, reuse: bool = False
    ) -> Iterator[np.ndarray]:
        out = model(input_ids=torch.as_tensor(np.asarray(ids, np.int64))[None]).logits[0, -keep:]
        at = 0
        for _, _, kept in batches(0, len(ids), keep):
            if kept:
                yield out[at : at + kept].float().numpy()
            at += kept

    return Predictor(getattr(model.config, "max_position_embeddings", None) or 1 << 31, logits)
