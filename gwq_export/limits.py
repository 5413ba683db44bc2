"""What a file may ask for: counts and lengths beyond these are refused before they are used.

Real models stay far below: vocabularies have up to 300,000 tokens and 600,000 merges, chat
templates 30 kB, and the largest models a few thousand tensors, side-tables counted in.
"""

from __future__ import annotations

import time

from gwq_export.errors import AGAIN, GwqError

KEYS = 1 << 16  # metadata keys of a file
TENSORS = 1 << 16  # tensors of a file, side-tables among them
TOKENS = 1 << 20  # of a vocabulary
MERGES = 1 << 21  # of a vocabulary
PIECE = 1 << 12  # characters of a token
PIECES_WORK = 1 << 28  # sum of the squared lengths of the pieces whose merges are looked for
MERGES_TEXT = 1 << 26  # characters of all merges that were found
TOKENIZER_JSON = 1 << 27  # characters of an embedded tokenizer.json
STEPS = 64  # normalizers, pre-tokenizers or decoders of a tokenizer
PATTERN = 1 << 14  # characters of a tokenizer's regular expression
GROWTH = 256  # times as long as before may a text be after all normalizers, or decoders
PROBE_SECONDS = 5.0  # that a tokenizer may take for a text of a few lines
TEMPLATE = 1 << 20  # characters of a chat template
TEMPLATE_WORK = 1 << 20  # steps of a chat template, beside those that its messages allow
TEMPLATE_TEXT = 1 << 22  # characters of a value in a chat template, beside those of its messages
TEMPLATE_BITS = 256  # of a whole number in a chat template
TEMPLATE_SECONDS = 10.0  # that a chat template may take


def check_limit(what: str, found: int, most: int) -> None:
    """Raise GwqError when a file has more of something than any model has.

    what: names it in the message, as in "the file has 5 keys"; found: how many there are.
    """
    if found > most:
        raise GwqError(f"{what}: {found}, and no model has more than {most}; {AGAIN}")


class Deadline:
    """Seconds of this thread's own processor time, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.thread_time() + seconds

    @property
    def passed(self) -> bool:
        """Whether they are over."""
        return time.thread_time() > self._end
