"""Errors that the user can mend, and how other exceptions become such an error."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import Any

AGAIN = "the file is damaged, download or export it again"
PANIC = "PanicException"  # of libraries in Rust; it is no Exception, and no module exports it
# words of torch, of the loader of shared libraries, of the system
_NO_MEMORY = re.compile(
    "can('|no)t allocate memory|out of memory|failed to map segment", re.IGNORECASE
)


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
        kind = NoMemory if isinstance(e, NoMemory) else GwqError
        raise kind(text if len(text) < 1000 else f"{text[:500]} ... {text[-300:]}") from None


def one_line(error: object) -> str:
    """The message of another library's exception, on one line of at most 300 characters.

    It is never empty: an exception without words is said by its name.
    """
    return " ".join(str(error).split())[:300] or type(error).__name__


def short_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory, whatever raises it.

    torch raises RuntimeError, the loader of shared libraries ImportError, the system OSError.
    """
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (
            isinstance(error, (RuntimeError, ImportError, OSError))
            and bool(_NO_MEMORY.search(str(error)))
        )
    )


def not_imported(error: ImportError, what: str, extra: str) -> GwqError:
    """The error to raise where `what` needs a package that cannot be imported.

    extra: of this package, that installs it. A package that is there, but does not load, is another
    matter than a missing one, and a lack of memory has to do with neither.
    """
    name = (error.name or "a package").partition(".")[0]
    if short_of_memory(error):
        return NoMemory(f"there is not enough memory to load what {what} needs")
    if isinstance(error, ModuleNotFoundError):
        return GwqError(f'{what} needs {name}: pip install "gwq-export[{extra}]"')
    return GwqError(
        f"{what} needs a package that does not load ({one_line(error)}): install it again, "
        f'pip install --force-reinstall "gwq-export[{extra}]"'
    )


@contextlib.contextmanager
def translated(sentence: str) -> Iterator[None]:
    """Turn whatever another library raises in this block into a GwqError.

    sentence: of that error, with {} in the place of the library's own words. A GwqError, Ctrl-C and
    the like pass; a lack of memory becomes NoMemory, for it says nothing about a file.
    """
    try:
        yield
    except GwqError:
        raise
    except BaseException as e:
        if short_of_memory(e):
            raise NoMemory("not enough memory") from None
        if not isinstance(e, Exception) and type(e).__name__ != PANIC:
            raise
        raise GwqError(sentence.replace("{}", one_line(e))) from None
