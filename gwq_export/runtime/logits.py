"""Logits as a session hands them out: all of them, or the best ones of a device."""

from typing import Protocol, TypeAlias

import numpy as np

from gwq_export.native.cuda import Cuda
from gwq_export.native.library import F32, Pool
from gwq_export.native.ops import Best, top

# After a token: logits (vocab,) float32, or the best of them
Scores: TypeAlias = np.ndarray | Best


class Wanted(Protocol):
    """What takes the logits of the last `rows` tokens of a batch."""

    rows: int

    def room(self, pool: Pool) -> F32:
        """Where the operations are to write them, (rows, vocab)."""
        ...

    def take(self, logits: F32) -> None:
        """Take them from there."""
        ...


class Whole:
    """Takes all logits into an array (rows, vocab), C-contiguous float32."""

    def __init__(self, out: np.ndarray) -> None:
        self.out = out
        self.rows = len(out)

    def room(self, pool: Pool) -> F32:
        """As Wanted.room."""
        return pool.output(self.out)

    def take(self, logits: F32) -> None:
        """As Wanted.take."""
        logits.fetch(self.out)


class Firsts:
    """Takes the k best of each token's logits from a device, behind those that `found` has."""

    def __init__(self, rows: int, vocab: int, k: int, device: Cuda, found: list[Best]) -> None:
        self.rows = rows
        self._vocab = vocab
        self._k = k
        self._device = device
        self._found = found

    def room(self, pool: Pool) -> F32:
        """As Wanted.room."""
        return pool.floats((self.rows, self._vocab))

    def take(self, logits: F32) -> None:
        """As Wanted.take."""
        for i in range(self.rows):
            at = logits.ptr + i * self._vocab
            self._found.append(self._device.best(at, self._vocab, self._k))


def best(scores: Scores, k: int) -> Best:
    """The k largest logits. Raises GwqError where they are not finite."""
    if isinstance(scores, Best):
        return Best(scores.ids[:k], scores.values[:k])
    ids = top(scores, min(k, scores.size))
    return Best(ids, scores[ids])
