"""Speculative decoding: a smaller model guesses the next tokens, several checked at once.

The draft model picks its likeliest token, some times in a row; the model computes all of them in
one pass and keeps those that it would have picked itself (Leviathan et al., arXiv 2211.17192, where
the draft model samples). So the text is the same, token by token. The likeliest token is the guess
that is most often right, also of a token that is sampled. By how much it is likelier than the next
one says how far to trust it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from time import perf_counter
from typing import Any

from gwq_export.arch.config import read_config
from gwq_export.errors import GwqError, about
from gwq_export.format.reader import Reader
from gwq_export.runtime.logits import Scores, best
from gwq_export.runtime.pace import COUNTS, Pace, smoothed
from gwq_export.runtime.session import Session
from gwq_export.runtime.weights import Weights
from gwq_export.tokenizer.build import required, vocabulary

log = logging.getLogger("gwq_export")

MOST = max(COUNTS)  # guesses at a time
CHANCE = 0.7  # of a guess to be right, before any was judged
# the same of guesses that the draft model finds likelier than any other token by less than a factor
# of e, of e^2, of e^3, and more: what it says itself at least, if one of the two comes
CHANCES = (0.5, 0.73, 0.88, 0.95)
RATE = 0.1  # at which these follow what is seen
TIMED = 32  # the first of so many passes has no guesses, to know what that takes
WINDOW = 64  # tokens that the draft model reads when it starts afresh
READ = 0.25  # what a token takes that is read with many, of what a guess takes
# What drafting may lose, in the model's passes of one token: PURSE, and SHARE of every pass
PURSE = 5.0
SHARE = 0.03
RETRY = 2.0  # what is to be in the purse before an empty one is opened again


def open_draft(draft: str | PathLike[str] | Reader, file: Reader) -> Reader:
    """Open the file of a draft model for that of a model; nothing but headers is read.

    Warns of one that is no smaller. Raises GwqError unless it is a model with the same vocabulary:
    every id has the same token, padding aside.
    """
    with about("--draft"):
        reader = draft if isinstance(draft, Reader) else Reader(draft)
        read_config(reader)
        if difference := _difference(reader.metadata, file.metadata):
            raise GwqError(
                f"{reader.path} does not have the vocabulary of {file.path} ({difference}): "
                "use a smaller model with the same tokenizer"
            )
    if reader.nbytes >= file.nbytes:
        log.warning("--draft %s is no smaller than the model: it will not be faster", reader.path)
    return reader


def _difference(draft: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """How the vocabularies of two files differ, by their metadata; "" if they do not."""
    kind, wanted = (required(metadata, "model", str) for metadata in (draft, model))
    if kind != wanted:
        return f"a tokenizer of type {kind}, not {wanted}"
    tokens, others = vocabulary(draft), vocabulary(model)
    for i, (token, other) in enumerate(zip(tokens, others, strict=False)):
        if token != other:
            return f"token {i} is {token!r:.40}, not {other!r:.40}"
    return f"{len(tokens)} tokens, not {len(others)}" if len(tokens) != len(others) else ""


class Drafter:
    """Guesses the next tokens of a text by a draft model. Not for several threads.

    It keeps account of what guesses have saved and what they took. Where they do not pay, it rests,
    and tries again when that costs little beside what was computed meanwhile.

    weights: of the draft model. ctx: positions that its KV cache may have, at most the model's own;
    of a longer text it reads the end. vocab: tokens that the other model knows.
    """

    def __init__(self, weights: Weights, ctx: int, vocab: int) -> None:
        self.session = Session(weights, min(ctx, weights.config.ctx))
        self._window = min(WINDOW, self.session.ctx // 2)
        self._vocab = min(vocab, weights.config.vocab)
        self._text: list[int] = []
        self._first = 0  # of the text, the token at the session's position 0
        self._held = 0  # the session holds the text up to this token, then guesses
        # of the tokens that come next, each with its class in CHANCES; the last one was not run
        self._guesses: list[tuple[int, int]] = []
        self._chance = CHANCE
        self._chances = list(CHANCES)
        self._each: float | None = None  # seconds that a guess takes
        self._purse = PURSE
        self._resting = False
        self._proposals = 0
        # of the last proposal: seconds that it took, its guesses, how many of them were right
        self._seconds = 0.0
        self._proposed = 0
        self._right = 0

    def start(self, ids: Sequence[int], halt: Callable[[], bool] = lambda: False) -> None:
        """Begin a text with `ids` and read what is new of it; less if halt() becomes true."""
        self._text = list(ids)
        self._guesses = []
        self._first = 0
        self._held = self.session.reuse(ids)
        if self._resting:
            return
        if len(ids) + MOST > self.session.ctx:
            self._start_afresh()
        while self._held < len(ids) and not halt():
            if self._read(self.session.batch) is None:
                break

    def append(self, token: int) -> None:
        """Add a token to the text, and judge the guess that there was of it."""
        self._text.append(token)
        if not self._guesses:
            return
        guess, kind = self._guesses.pop(0)
        right = guess == token
        self._chance += RATE * (right - self._chance)
        self._chances[kind] += RATE * (right - self._chances[kind])
        if right:
            self._right += 1
            self._held += bool(self._guesses)
        else:
            self._guesses = []

    def propose(self, most: int, pace: Pace) -> list[int]:
        """Guesses of the next tokens, at most `most`: as many as promise to be worth a pass.

        pace: of the session that is to compute them.
        """
        one = pace.one
        most = min(most, MOST, self.session.ctx - self._window)
        if one is None or most < 1:
            return []
        self._settle(pace, one)
        self._proposals += 1
        if self._rests(one) or self._proposals % TIMED == 1:
            return []
        start = perf_counter()
        self._guesses = self._draft(most, pace, one)
        self._seconds = perf_counter() - start
        if self._guesses:
            self._each = smoothed(self._each, self._seconds / len(self._guesses))
        chances = [self._chances[kind] for _, kind in self._guesses]
        self._proposed = pace.best(chances, range(1, MOST + 1))
        return [guess for guess, _ in self._guesses[: self._proposed]]

    def _settle(self, pace: Pace, one: float) -> None:
        """Put into the purse what the last proposal has saved, less what it took."""
        saved = min(self._right, self._proposed)
        took = self._seconds / one + pace.passes(self._proposed + 1) - 1
        self._purse += SHARE + saved - took
        self._seconds, self._proposed, self._right = 0.0, 0, 0
        if not self._resting:
            self._purse = min(PURSE, self._purse)

    def _rests(self, one: float) -> bool:
        """Whether to leave the model alone, because guesses have not paid."""
        again = RETRY + READ * self._window * (self._each or 0.0) / one
        if self._purse <= 0:
            self._resting = True
        elif self._resting and self._purse >= again:
            self._resting = False
            self._chance, self._chances = CHANCE, list(CHANCES)
        return self._resting

    def _draft(self, most: int, pace: Pace, one: float) -> list[tuple[int, int]]:
        """The draft model's next tokens, each with its class, while one more promises to pay.

        The first one tells what a guess takes.
        """
        self._held = min(self._held, len(self._text) - 1)  # for logits after the last one
        self.session.rewind(self._held - self._first)
        too_long = len(self._text) - self._first + most > self.session.ctx
        if too_long or len(self._text) - self._held > self._window:
            self._start_afresh()
        guesses: list[tuple[int, int]] = []
        likely = 1.0
        logits = self._read(self._window)
        while logits is not None:
            guess, kind = _likeliest(logits)
            if guess >= self._vocab:  # padding
                break
            guesses.append((guess, kind))
            likely *= self._chances[kind]
            count = len(guesses)
            if count == most or self._each is None:
                break
            takes = self._each / one + pace.passes(count + 2) - pace.passes(count + 1)
            if likely * self._chance < takes:  # what one more saves is a pass, if it is right
                break
            (logits,) = self.session.scores([guess], best=2)
        return guesses

    def _start_afresh(self) -> None:
        """Leave out all of the text but its end."""
        self.session.rewind()
        self._first = self._held = max(0, len(self._text) - self._window)

    def _read(self, most: int) -> Scores | None:
        """Run the next tokens of the text, at most `most`; returns two logits or more after them.

        None if the draft model does not know one of them.
        """
        ids = self._text[self._held : self._held + most]
        if max(ids) >= self._vocab:
            return None
        (logits,) = self.session.scores(ids, best=2)
        self._held += len(ids)
        return logits


def _likeliest(logits: Scores) -> tuple[int, int]:
    """The token with the largest logit, and its class in CHANCES."""
    with about("--draft"):
        two = best(logits, 2)
    lead = two.values[0] - two.values[-1]
    return int(two.ids[0]), min(int(lead), len(CHANCES) - 1)
