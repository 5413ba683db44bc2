"""How many guesses of the next tokens are worth computing, by what passes took."""

from collections.abc import Sequence

COUNTS = (1, 3, 5)  # guesses at a time: with the token before them 2, 4 or 6
AGED = 0.99  # what a pass of other tokens leaves of a duration that looked long
WORTH = 1.05  # tokens a second that guesses have to promise, of those without


class Pace:
    """What passes of a session took, and what that makes of guesses."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # of a pass, by its tokens

    def took(self, tokens: int, seconds: float) -> None:
        """Note what a pass of so many tokens took.

        A pass of other tokens that looked slow, as the first one does whose program has to be
        recorded, is forgotten little by little, or it would never be tried again.
        """
        self._seconds[tokens] = smoothed(self._seconds.get(tokens), seconds)
        for other, slow in self._seconds.items():
            if other not in (1, tokens) and self.one is not None:
                usual = self._usual(other)
                if slow > usual:
                    self._seconds[other] = max(usual, AGED * slow)

    @property
    def one(self) -> float | None:
        """Seconds of a pass of one token; None before there was one."""
        return self._seconds.get(1)

    def passes(self, tokens: int) -> float:
        """What a pass of so many tokens takes, in passes of one token, of which there was one."""
        return self._seconds.get(tokens, self._usual(tokens)) / self._seconds[1]

    def _usual(self, tokens: int) -> float:
        """Seconds that such a pass takes before one was seen."""
        return self._seconds[1] * (0.8 + 0.2 * tokens)

    def best(self, chances: Sequence[float], counts: Sequence[int] = COUNTS) -> int:
        """How many guesses to compute: of `counts` what promises most tokens a second, or none.

        chances: of every guess that there is, to be right if those before it are. counts: ascend.
        """
        if self.one is None:
            return 0
        best, rate = 0, WORTH
        for k in counts:
            if k > len(chances):
                break
            tokens, likely = 1.0, 1.0
            for chance in chances[:k]:
                likely *= chance
                tokens += likely
            if tokens / self.passes(k + 1) > rate:
                best, rate = k, tokens / self.passes(k + 1)
        return best


def smoothed(before: float | None, seconds: float) -> float:
    """A duration as measured so far (None: not yet), and once more."""
    if before is None:
        return seconds
    # what was slow may have set up its buffers, or shared the CPU: it counts little
    return min(seconds, 0.9 * before + 0.1 * seconds)
