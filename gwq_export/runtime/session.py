"""A text that goes on: token ids through every part of a model, after what its KV caches hold."""

from collections.abc import Callable, Sequence

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.native.cuda import Cuda
from gwq_export.native.ops import ATTENTION_CUT, Best
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.runtime.buffers import BATCH, DEVICE_BATCH
from gwq_export.runtime.forward import Forward
from gwq_export.runtime.logits import Firsts, Scores, Wanted, Whole
from gwq_export.runtime.weights import Weights

MOST_BEST = 512  # logits that a device is asked for, rather than for all


class Session:
    """A KV cache for up to `ctx` positions over shared Weights. One Python thread at a time.

    Its memory grows with the positions that it holds. parts: a Forward for each of the weights'.
    Raises GwqError when ctx is below 1.
    """

    def __init__(self, weights: Weights, ctx: int) -> None:
        if ctx < 1:
            raise GwqError(f"a context of {ctx} positions holds no text: give at least 1")
        self.config = weights.config
        self.weights = weights
        self.ctx = ctx
        self.parts = [Forward(weights, ctx, i) for i in range(len(weights.parts))]
        # a pass that was cut short may have got further in some parts: the first one's counts
        self._cache = self.parts[0].cache

    @property
    def cache_bytes(self) -> int:
        """Bytes of this machine's memory that the KV cache takes once the context is full.

        What lies on a device is not among them.
        """
        return sum(part.cache_bytes for part in self.parts)

    @property
    def pos(self) -> int:
        """How many positions the cache holds."""
        return self._cache.pos

    def rewind(self, pos: int = 0) -> None:
        """Forget everything from position `pos` on. Raises GwqError when it is negative.

        Where a state cannot go back so far, what lies between it and `pos` is computed again.
        """
        held = self._cache.ids[: max(0, pos)].copy()
        at = self._cache.rewind(pos)
        if at < len(held):
            self.forward(held[at:], keep=0)

    def reuse(self, ids: Sequence[int] | np.ndarray, keep: int = 1) -> int:
        """Rewind to the longest prefix of `ids` that the cache can go back to; returns its length.

        keep: at least so many of the last ids are left to be computed, for their logits.
        """
        return self._cache.reuse(ids, keep)

    def at_once(self) -> int:
        """How many tokens get the same logits in one call as in one call each, to the bit."""
        cut = ATTENTION_CUT
        while cut <= self.pos:
            cut *= 2
        return min(MAX_TOKENS, cut - self.pos)

    @property
    def batch(self) -> int:
        """How many tokens of a prompt go together, as long as few of their logits are wanted."""
        on_cpu = any(part.layers and not part.pool.on_device for part in self.weights.parts)
        return BATCH if on_cpu else DEVICE_BATCH

    def forward(self, tokens: Sequence[int] | np.ndarray, keep: int = 1) -> np.ndarray:
        """Run token ids (n,) after what the cache holds.

        Returns float32 logits (keep, vocab) of the last `keep` of them, 0 to n. Raises GwqError
        when the context is full, memory is, an id is out of range, or the file has changed.
        """
        ids = self._checked(tokens, keep)
        out = np.empty((keep, self.config.vocab), np.float32)
        self._batches(ids, keep, lambda first, end: Whole(out[first:end]))
        return out

    def scores(
        self, tokens: Sequence[int] | np.ndarray, keep: int = 1, best: int = 0
    ) -> Sequence[Scores]:
        """As `forward`, of whose logits the `best` largest are enough; 0: they are not.

        On a device only these cross. Raises GwqError where logits there are not finite.
        """
        pool = self.weights.parts[-1].pool
        if not 0 < best <= MOST_BEST or not isinstance(pool, Cuda):
            return list(self.forward(tokens, keep))
        ids = self._checked(tokens, keep)
        vocab = self.config.vocab
        k = min(best, vocab)
        found: list[Best] = []
        self._batches(ids, keep, lambda first, end: Firsts(end - first, vocab, k, pool, found))
        return found

    def _checked(self, tokens: Sequence[int] | np.ndarray, keep: int) -> np.ndarray:
        """int32 ids (n,) of tokens that can be run next. Raises GwqError for others."""
        ids = np.asarray(tokens)
        n = len(ids) if ids.ndim == 1 else 0
        if not n:
            raise GwqError("there are no tokens to compute: give a sequence of token ids")
        if not 0 <= keep <= n:
            raise GwqError(f"logits of the last {keep} of {n} tokens: give a number from 0 to {n}")
        if self.pos + n > self.ctx:
            raise GwqError(
                f"{self.pos} + {n} tokens do not fit the context of {self.ctx}: shorten the text"
                + (" or use a larger context" if self.ctx < self.config.ctx else "")
            )
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.config.vocab:
            raise GwqError(
                f"a token id is not an integer in 0..{self.config.vocab - 1}: "
                "the tokenizer does not belong to this model"
            )
        return np.ascontiguousarray(ids, np.int32)

    def _batches(self, ids: np.ndarray, keep: int, wanted: Callable[[int, int], Wanted]) -> None:
        """Run token ids; wanted(first, end): what takes these of the last `keep` ones' logits."""
        n = len(ids)
        self.weights.guard.check()
        self._reserve(self.pos + n)
        skipped = n - keep  # tokens at the start whose logits nobody wants
        batch = self.batch if keep <= BATCH else BATCH
        for first in range(0, n, batch):
            last = min(n, first + batch)
            of_kept = max(first, skipped) - skipped, max(0, last - skipped)
            self._forward(ids[first:last], wanted(*of_kept))
        self.weights.guard.check()

    def _forward(self, ids: np.ndarray, wanted: Wanted) -> None:
        """Run one batch: ids (n,) int32; `wanted` takes the logits of the last of them, 0 to n."""
        *others, last = self.parts
        x = None
        for part in others:
            part.cache.rewind(self.pos)
            hidden = np.empty((len(ids), self.config.dim), np.float32)
            part.run(ids, x, Whole(hidden))
            x = hidden
        last.cache.rewind(self.pos)
        if last.part.layers or wanted.rows:
            first = 0 if last.part.layers else len(ids) - wanted.rows
            last.run(ids[first:], None if x is None else x[first:], wanted)
        for part in reversed(self.parts):
            part.cache.append(ids)

    def token_programs(self) -> list[Program]:
        """The forward pass of one token with its logits, a program for each part of the weights.

        They are good until the cache grows.
        """
        self._reserve(self.pos + 1)
        return [part.program(1, 1 if part.part.head else 0)[0] for part in self.parts]

    def _reserve(self, positions: int) -> None:
        """Make room for so many positions. Raises NoMemory."""
        for part in reversed(self.parts):
            part.reserve(positions)
