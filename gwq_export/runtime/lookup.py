"""Prompt lookup: guesses of the next tokens from earlier ones, several checked at once.

Text repeats itself: a summary its source, an edit the code. Where the last tokens have come before,
what followed them then is a guess of what follows now (Saxena, "Prompt Lookup Decoding", 2023). The
model computes the guesses in one pass, which costs less than a pass for each, and those that it
would have picked itself are kept. So the text is the same, token by token.
"""

from collections.abc import Sequence

from gwq_export.runtime.pace import COUNTS, Pace

SHORTEST, LONGEST = 3, 8  # tokens that have to be alike
RATE = 0.1  # at which a share of right guesses follows what is seen


class Lookup:
    """Where the last tokens of a text have come before.

    Guesses are judged whether or not they were computed, so that nothing has to be tried out.

    ids: the text so far; `append` makes it longer.
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # SHORTEST tokens -> where they last ended
        self._earlier: int | None = None  # where those at the end did, before they came again
        self._alike = 0  # tokens before there that are alike; 0: not counted yet
        # share of right guesses, by how many tokens before them were alike
        self._share = {n: n / (LONGEST + 1) for n in range(SHORTEST, LONGEST + 1)}
        for token in ids:
            self._add(token)

    def append(self, token: int) -> None:
        """Add a token to the text, and judge the guess that there was of it."""
        guesses, alike = self.guess(1)
        if guesses:
            self._share[alike] += RATE * ((guesses[0] == token) - self._share[alike])
        self._add(token)

    def propose(self, most: int, pace: Pace) -> list[int]:
        """Guesses of the next tokens, at most `most`: as many as promise to be worth a pass."""
        guesses, alike = self.guess(min(most, max(COUNTS)))
        return guesses[: pace.best(self.chances(alike, len(guesses)))]

    def guess(self, most: int) -> tuple[list[int], int]:
        """(up to `most` tokens that may follow, how many tokens before them are alike)."""
        end = self._earlier
        if end is None:
            return [], 0
        ids = self._ids
        if not self._alike:
            self._alike = SHORTEST
            while (
                self._alike < min(LONGEST, end)
                and ids[end - self._alike - 1] == ids[-self._alike - 1]
            ):
                self._alike += 1
        return ids[end : end + most], self._alike

    def chances(self, alike: int, count: int) -> list[float]:
        """Of every guess to be right if those before it are. alike: before the first of them."""
        # every right guess makes the past of the next one longer
        return [self._share[min(alike + i, LONGEST)] for i in range(count)]

    def _add(self, token: int) -> None:
        self._ids.append(token)
        self._alike = 0
        tail = tuple(self._ids[-SHORTEST:])
        if len(tail) == SHORTEST:
            self._earlier = self._ends.get(tail)
            self._ends[tail] = len(self._ids)
