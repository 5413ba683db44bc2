"""How the next token is picked from logits, and how a text ends before a stop string."""

from dataclasses import dataclass

import numpy as np

from gwq_export.errors import GwqError


@dataclass(frozen=True)
class Sampling:
    """temp 0 is greedy; top_k 0, top_p 1, min_p 0 and repeat_penalty 1 switch their filter off.
    Raises GwqError for impossible values.

    repeat_penalty: what was among the last repeat_last_n tokens (-1: all), prompt included, has its
    logit divided by it if positive, else multiplied (Keskar et al., arXiv 1909.05858).
    """

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64

    def __post_init__(self):
        if not (
            self.temp >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        ):
            raise GwqError(
                "sampling: temp and top_k must not be negative, top_p lies in (0, 1], min_p in [0, 1]"
            )
        if not (0 < self.repeat_penalty < np.inf and self.repeat_last_n >= -1):
            raise GwqError(
                "sampling: repeat_penalty must be above 0, repeat_last_n -1 (the whole text) or more"
            )
        if self.seed is not None and self.seed < 0:
            raise GwqError(f"--seed {self.seed}: give a number from 0")

    def pick(self, logits, rng, before=()):
        """A token id from logits (vocab,), after the ids `before`.

        Raises GwqError when they are not finite.
        """
        if not np.isfinite(logits).all():
            raise GwqError(
                "the model's logits are not finite: the file is damaged (see gwq-info --check), or the model was"
            )
        if self.repeat_penalty != 1 and self.repeat_last_n and len(before):
            recent = np.unique(before if self.repeat_last_n < 0 else before[-self.repeat_last_n :])
            logits = logits.copy()
            logits[recent] *= np.where(
                logits[recent] > 0, 1 / self.repeat_penalty, self.repeat_penalty
            )
        if self.temp == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        order = order[: self.top_k or None]
        p = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / self.temp)
        p /= p.sum()
        keep = (np.cumsum(p) - p < self.top_p) & (p >= self.min_p * p[0])
        p = np.where(keep, p, 0)
        return int(rng.choice(order, p=p / p.sum()))


class StopStrings:
    """Text in, text out up to the first of `strings`; what may be the start of one is held back.
    Raises GwqError for an empty one.
    """

    def __init__(self, strings=()):
        if not all(strings):
            raise GwqError("a stop string is empty: give some text with --stop")
        self.strings, self._held, self.found = tuple(strings), "", False

    def feed(self, piece):
        """What is certain to lie before any stop string; sets `found`."""
        text = self._held + piece
        ends = [at for at in map(text.find, self.strings) if at >= 0]
        if ends:
            self._held, self.found = "", True
            return text[: min(ends)]
        longest = max(map(len, self.strings), default=0)
        keep = next(
            (
                n
                for n in range(min(longest - 1, len(text)), 0, -1)
                if any(s.startswith(text[-n:]) for s in self.strings)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self):
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text
