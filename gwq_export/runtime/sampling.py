"""How the next token is picked from logits, and how a text ends before a stop string."""

from __future__ import annotations  # np.random in a hint would be imported with this

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.native.ops import Best, top
from gwq_export.runtime.logits import Scores


@dataclass(frozen=True)
class Sampling:
    """How to pick a token: temp 0 is greedy.

    top_k 0, top_p 1, min_p 0 and repeat_penalty 1 each switch their filter off. The logit of every
    token among the last repeat_last_n (-1: all, prompt included) is divided by repeat_penalty if it
    is positive and multiplied by it otherwise (Keskar et al., arXiv 1909.05858). Raises GwqError
    for impossible values.
    """

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64

    def __post_init__(self) -> None:
        if not (
            self.temp >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        ):
            raise GwqError(
                "sampling: temp and top_k must not be negative, "
                "top_p lies in (0, 1], min_p in [0, 1]"
            )
        if not (0 < self.repeat_penalty < np.inf and self.repeat_last_n >= -1):
            raise GwqError(
                "sampling: repeat_penalty must be above 0, "
                "repeat_last_n -1 (the whole text) or more"
            )
        if self.seed is not None and self.seed < 0:
            raise GwqError(f"--seed {self.seed}: give a number from 0")

    def rng(self) -> np.random.Generator | None:
        """The chance that `pick` takes; None, which needs no import of numpy.random, if greedy."""
        return np.random.default_rng(self.seed) if self.temp else None

    @property
    def _first(self) -> int:
        """How many of the likeliest ids are looked at, 0: all."""
        return self.top_k if self.temp else 1

    @property
    def _penalizes(self) -> bool:
        return self.repeat_penalty != 1 and self.repeat_last_n != 0

    def enough(self, before: int) -> int:
        """How many of the largest logits `pick` needs after so many ids, 0: all.

        A penalty puts no other ids before the likeliest ones than it takes from among them; what
        makes ids likelier could bring up any.
        """
        if not self._penalizes or not self._first:
            return self._first
        if self.repeat_penalty < 1:
            return 0
        return self._first + (before if self.repeat_last_n < 0 else self.repeat_last_n)

    def pick(
        self, logits: Scores, rng: np.random.Generator | None, before: Sequence[int] = ()
    ) -> int:
        """Pick a token id by logits (vocab,) float32, or the largest of them, `enough`.

        rng: what `rng` returns, one for all tokens of a text. before: the ids so far, for the
        repeat penalty. Raises GwqError for logits that are not finite.
        """
        order, values = self._likeliest(logits, before)
        if self.temp == 0:
            return int(order[0])
        # p: probabilities of the top_k likeliest ids, descending
        p = np.exp((values - values[0]).astype(np.float64) / self.temp)
        p /= p.sum()
        # top_p: an id stays while those before it sum to less than top_p; the first always stays
        keep = (np.cumsum(p) - p < self.top_p) & (p >= self.min_p * p[0])
        p = np.where(keep, p, 0)
        assert rng is not None
        return int(rng.choice(order, p=p / p.sum()))

    def _likeliest(self, logits: Scores, before: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, their logits) of the likeliest ids, top_k of them, descending."""
        recent = np.zeros(0, int)
        if self._penalizes and len(before):
            recent = np.unique(before if self.repeat_last_n < 0 else before[-self.repeat_last_n :])
        if isinstance(logits, Best):
            ids, values = logits.ids, self._penalized(logits.values, np.isin(logits.ids, recent))
            order = np.lexsort((ids, -values))[: self._first]
            return ids[order], values[order]
        values = self._penalized(logits, recent) if len(recent) else logits
        if self._first:
            order = top(values, min(self._first, values.size))
        else:
            top(values, 1)  # are they finite?
            order = np.argsort(-values, kind="stable")  # sooner than `top` of all
        return order, values[order]

    def _penalized(self, logits: np.ndarray, recent: np.ndarray) -> np.ndarray:
        """A copy, with the repeat penalty on those that `recent` indexes."""
        logits = logits.copy()
        logits[recent] *= np.where(logits[recent] > 0, 1 / self.repeat_penalty, self.repeat_penalty)
        return logits


class StopStrings:
    """Passes text on, piece by piece, up to the first of `strings`.

    The end of a piece that may be the start of a stop string waits for what follows. found: whether
    the text has ended. Raises GwqError for an empty stop string.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if not all(strings):
            raise GwqError("a stop string is empty: give some text with --stop")
        self.strings = tuple(strings)
        self.found = False
        self._waiting = ""

    def feed(self, piece: str) -> str:
        """Take the next piece; returns what certainly lies before any stop string. Sets `found`."""
        text = self._waiting + piece
        starts = [at for at in map(text.find, self.strings) if at >= 0]
        if starts:
            self._waiting = ""
            self.found = True
            return text[: min(starts)]
        certain = len(text) - self._unfinished(text)
        self._waiting = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What still waited, at the end of the text."""
        text = self._waiting
        self._waiting = ""
        return text

    def _unfinished(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self.strings), default=0)
        for n in range(min(longest - 1, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self.strings):
                return n
        return 0
