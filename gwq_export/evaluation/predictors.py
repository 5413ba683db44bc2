"""Next-token logits for evaluation, behind one function, by our runtime or by transformers.

A Predictor's `logits(ids, keep, reuse=False)` takes token ids (n,) and yields float32 (m, vocab)
arrays, in order, that together are the logits after each of the last `keep` ids; at most BATCH rows
at once, so that long windows over large vocabularies fit in memory. With `reuse` it need not
compute again what the ids share with those of the call before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.foreign import open_any
from gwq_export.runtime.model import Model
from gwq_export.runtime.session import BATCH


def load(path, threads=None, base=False):
    """A `gwq_export.runtime.model.Model` over any GGUF file of a supported architecture.

    base: as for `gwq_export.load`. Raises GwqError.
    """
    return Model(open_any(path, base), threads=threads, cache="f32")


@dataclass(frozen=True)
class Predictor:
    """ctx: how many ids `logits` takes at most. Not for several threads at once."""

    ctx: int
    logits: Callable


def _batches(start, n, keep):
    """(first, last, how many of them are kept) of positions start ..

    n, the last `keep` of which are kept.
    """
    for first in range(start, n, BATCH):
        last = min(n, first + BATCH)
        yield first, last, max(0, min(last - first, last - (n - keep)))


def runtime_logits(model):
    """A Predictor by our runtime; model: what `gwq_export.load` returns."""
    session, held = None, []  # the ids whose keys and values are in the session

    def logits(ids, keep, reuse=False):
        nonlocal session, held
        ids = [int(i) for i in ids]
        if session is None or session.ctx < len(ids):
            session, held = model.session(len(ids)), []
        shared = (
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, held, strict=False)))
            if reuse
            else 0
        )
        start, held = min(shared, len(ids) - keep), []
        session.rewind(start)
        for first, last, kept in _batches(start, len(ids), keep):
            out = session.forward(ids[first:last], keep=kept)
            if kept:
                yield out
        held = ids

    return Predictor(model.ctx, logits)


def transformers_logits(folder):
    """A Predictor by transformers in float32, from a Hugging Face folder.

    Raises GwqError without the export extra.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as e:
        raise GwqError(
            f'--against a Hugging Face folder needs {e.name}: pip install "gwq-export[export]"'
        ) from None
    try:
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError) as e:
        raise GwqError(
            f"--against {folder}: transformers cannot load it ({str(e).splitlines()[0]})"
        ) from None

    return module_logits(reference)


def module_logits(model):
    """A Predictor by a transformers model in memory."""
    import torch

    @torch.no_grad()
    def logits(ids, keep, reuse=False):
        out = model(input_ids=torch.as_tensor(np.asarray(ids, np.int64))[None]).logits[0, -keep:]
        at = 0
        for _, _, kept in _batches(0, len(ids), keep):
            if kept:
                yield out[at : at + kept].float().numpy()
            at += kept

    return Predictor(getattr(model.config, "max_position_embeddings", None) or 1 << 31, logits)


def reference_logits(path, model, threads=None):
    """A Predictor for --against: a Hugging Face folder or any GGUF file with the vocabulary of
    `model`. Raises GwqError.
    """
    if Path(path).is_dir():
        return transformers_logits(path)
    reference = load(path, threads)
    ours, theirs = (m.weights.reader.metadata["tokenizer.ggml.tokens"] for m in (model, reference))
    if any(a != b for a, b in zip(ours, theirs, strict=False)):
        raise GwqError(
            f"--against {path}: its vocabulary is another one: give an unquantized file of the same model"
        )
    return runtime_logits(reference)
