"""What the user can mend, and how other errors become such a sentence."""

import contextlib

AGAIN = "the file is damaged, download or export it again"


@contextlib.contextmanager
def about(what):
    """Prefix the sentence of a GwqError; keep it one line of sane length, whatever names the file
    holds.
    """
    try:
        yield
    except GwqError as e:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{what}: {e}")
        raise GwqError(text if len(text) < 1000 else f"{text[:500]} ... {text[-300:]}") from None


def one_line(error):
    """The message of another library's exception, on one line."""
    return " ".join(str(error).split())[:300]


class GwqError(ValueError):
    """Something the user can mend. The message is one sentence that says what is wrong and what to
    do.

    result: what was made and measured all the same, as `--json` prints it, or None.
    """

    result = None
