"""Logits of one token after another, with those of likely next tokens computed ahead."""

from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Protocol

import numpy as np

from gwq_export.runtime.logits import Scores
from gwq_export.runtime.pace import Pace
from gwq_export.runtime.session import Session


class Guesser(Protocol):
    """What guesses the next tokens of a text: a `Lookup` or a `Drafter`."""

    def append(self, token: int) -> None:
        """Add a token to the text."""
        ...

    def propose(self, most: int, pace: Pace) -> list[int]:
        """Guesses of the next tokens, at most `most`: as many as promise to be worth a pass.

        pace: of the session that is to compute them.
        """
        ...


class Decoder:
    """Runs tokens through a session.

    Guesses run along with a token where that promises to be faster. They change no result: each
    token's logits are what they are without, to the bit.

    session: holds the text that the guessers know. guessers: by name; of those that have guesses,
    the first one's are computed. enough: as `Sampling.enough`.
    """

    def __init__(
        self,
        session: Session,
        guessers: Mapping[str, Guesser],
        enough: Callable[[int], int] = lambda before: 0,
    ) -> None:
        self.session = session
        self.guessed: Counter[str] = Counter()  # tokens computed ahead, by the guesser's name
        self.right: Counter[str] = Counter()  # of these, those that came
        self._guessers = guessers
        self._enough = enough
        self._pace = Pace()
        self._guesser = ""  # whose guesses were computed last
        self._computed: list[int] = []  # guesses whose logits are there
        self._logits: list[Scores] = []  # after each of them
        self._pos = session.pos  # positions of the session that hold tokens, not guesses
        self._tokens = 0  # that were run
        self._seconds = 0.0  # that this took, guessing included
        self._alone: list[float] = []  # seconds of passes of one token

    @property
    def speedup(self) -> float:
        """Tokens a second, of those by passes of one token, as far as these were seen."""
        if not self._alone:
            return 1.0
        return self._tokens * float(np.median(self._alone)) / self._seconds

    def after(self, token: int, most: int) -> Scores:
        """Logits (vocab,) float32 after one more token, or enough of them.

        most: tokens that may come after it.
        """
        for guesser in self._guessers.values():
            guesser.append(token)
        if self._computed[:1] == [token]:
            self.right[self._guesser] += 1
        else:
            self.close()
            self._compute(token, min(most, self.session.at_once() - 1))
        self._pos += 1
        self._tokens += 1
        self._computed = self._computed[1:]
        return self._logits.pop(0)

    def close(self) -> None:
        """Let the session forget guesses that have not come."""
        self.session.rewind(self._pos)
        self._computed, self._logits = [], []

    def _compute(self, token: int, most: int) -> None:
        """Run a token with at most `most` guesses."""
        start = perf_counter()
        guesses: list[int] = []
        for name, guesser in self._guessers.items():
            if guesses := guesser.propose(most, self._pace):
                self._guesser = name
                self.guessed[name] += len(guesses)
                break
        middle = perf_counter()
        self._computed = [token, *guesses]
        count = len(self._computed)
        enough = self._enough(self.session.pos + count)
        self._logits = list(self.session.scores(self._computed, count, enough))
        end = perf_counter()
        self._pace.took(len(self._computed), end - middle)
        self._seconds += end - start
        if not guesses:
            self._alone.append(end - middle)
