"""Prompt lookup: guesses of the next tokens from earlier ones, several checked at once.

Text repeats itself: a summary its source, an edit the code. Where the last tokens have come before,
what followed them then is a guess of what follows now (Saxena, "Prompt Lookup Decoding", 2023). The
model computes the guesses in one pass, which costs less than a pass for each, and those that it
would have picked itself are kept. So the text is the same, token by token.
"""

from collections.abc import Sequence

SHORTEST, LONGEST = 3, 8  # tokens that have to be alike
DRAFTS = (1, 3, 5)  # guesses at a time: with the token before them 2, 4 or 6
RATE = 0.1  # at which a share of right guesses follows what is seen
WORTH = 1.05  # tokens a second that guesses have to promise, of those without


class Lookup:
    """Where the last tokens of a text have come before.

    ids: the text so far; `append` makes it longer.
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # SHORTEST tokens -> where they last ended
        self._earlier: int | None = None  # where those at the end did, before they came again
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the text."""
        self._ids.append(token)
        tail = tuple(self._ids[-SHORTEST:])
        if len(tail) == SHORTEST:
            self._earlier = self._ends.get(tail)
            self._ends[tail] = len(self._ids)

    def guess(self, most: int) -> tuple[list[int], int]:
        """(up to `most` tokens that may follow, how many tokens before them are alike)."""
        end = self._earlier
        if end is None:
            return [], 0
        ids = self._ids
        alike = SHORTEST
        while alike < min(LONGEST, end) and ids[end - alike - 1] == ids[-alike - 1]:
            alike += 1
        return ids[end : end + most], alike


class Pace:
    """How many guesses are worth computing, by what passes took and which guesses were right.

    Guesses are judged whether or not they were computed, so that nothing has to be tried out.
    """

    def __init__(self) -> None:
        # share of right guesses, by how many tokens before them were alike
        self._share = {n: n / (LONGEST + 1) for n in range(SHORTEST, LONGEST + 1)}
        self._seconds: dict[int, float] = {}  # of a pass, by its tokens

    def took(self, tokens: int, seconds: float) -> None:
        """Note what a pass of so many tokens took."""
        before = self._seconds.get(tokens, seconds)
        # a slow pass may have set up its buffers, or shared the CPU: it counts little
        self._seconds[tokens] = min(seconds, 0.9 * before + 0.1 * seconds)

    def judge(self, alike: int, right: bool) -> None:
        """Note whether a guess was right. alike: as `Lookup.guess` says."""
        self._share[alike] += RATE * (right - self._share[alike])

    def drafts(self, alike: int, most: int) -> int:
        """How many guesses to compute: of DRAFTS what promises most tokens a second, or none."""
        one = self._seconds.get(1)
        if one is None or not alike:
            return 0
        best, rate = 0, WORTH
        for k in DRAFTS:
            if k > most:
                break
            tokens, likely = 1.0, 1.0
            for i in range(k):  # every right guess makes the next one's past longer
                likely *= self._share[min(alike + i, LONGEST)]
                tokens += likely
            cost = self._seconds.get(k + 1, one * (1 + 0.2 * k)) / one
            if tokens / cost > rate:
                best, rate = k, tokens / cost
        return best
