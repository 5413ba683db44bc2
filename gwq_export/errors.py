"""Errors that the user can mend, and how other exceptions become such an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

AGAIN = "the file is damaged, download or export it again"


class GwqError(ValueError):
    """Something the user can mend.

    The message is one sentence that says what is wrong and what to do.
    """

    # what was made and measured all the same, as --json prints it
    result: dict[str, Any] | None = None


class NoMemory(GwqError, MemoryError):
    """There is not enough memory.

    The message says for what; a command adds which of its options would help.
    """


@contextlib.contextmanager
def about(subject: object) -> Iterator[None]:
    """Prefix the message of a GwqError with `subject`.

    The message stays one line of sane length, whatever names the file holds.
    """
    try:
        yield
    except GwqError as e:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{subject}: {e}")
        raise GwqError(text if len(text) < 1000 else f"{text[:500]} ... {text[-300:]}") from None


def one_line(error: object) -> str:
    """The message of another library's exception, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
