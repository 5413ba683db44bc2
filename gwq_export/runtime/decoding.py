"""Logits of one token after another, with those of likely next tokens computed ahead."""

import time
from collections.abc import Sequence

import numpy as np

from gwq_export.runtime.lookup import DRAFTS, Lookup, Pace
from gwq_export.runtime.session import Session


class Decoder:
    """Runs tokens through a session.

    Guesses of `lookup` run along with a token where that promises to be faster. It changes no
    result: each token's logits are what they are without, to the bit.

    session: holds the token ids `ids`. ahead: whether to guess.
    """

    def __init__(self, session: Session, ids: Sequence[int], ahead: bool = True) -> None:
        self.session = session
        self.guessed = 0  # tokens that were computed ahead
        self.right = 0  # of these, those that came
        self._lookup = Lookup(ids) if ahead else None
        self._pace = Pace()
        self._next: tuple[int, int] | None = None  # the next token's guess, tokens alike before it
        self._computed: list[int] = []  # guesses whose logits are there
        self._logits: list[np.ndarray] = []  # after each of them
        self._pos = session.pos  # positions of the session that hold tokens, not guesses

    def after(self, token: int, most: int) -> np.ndarray:
        """Logits (vocab,) float32 after one more token. most: tokens that may come after it."""
        guesses, alike = self._look_up(token)
        if self._computed[:1] == [token]:
            self.right += 1
        else:
            self.close()
            count = self._pace.drafts(alike, min(len(guesses), most, self.session.at_once() - 1))
            self._computed = [token, *guesses[:count]]
            start = time.perf_counter()
            self._logits = list(self.session.forward(self._computed, keep=count + 1))
            self._pace.took(count + 1, time.perf_counter() - start)
            self.guessed += count
        self._pos += 1
        self._computed = self._computed[1:]
        return self._logits.pop(0)

    def close(self) -> None:
        """Let the session forget guesses that have not come."""
        self.session.rewind(self._pos)
        self._computed, self._logits = [], []

    def _look_up(self, token: int) -> tuple[list[int], int]:
        """(guesses of the tokens after this one, how many before them are alike)."""
        if self._lookup is None:
            return [], 0
        if self._next is not None:
            guess, alike = self._next
            self._pace.judge(alike, guess == token)
        self._lookup.append(token)
        guesses, alike = self._lookup.guess(max(DRAFTS))
        self._next = (guesses[0], alike) if guesses else None
        return guesses, alike
