"""Regular expressions that a file brings: whether one can be searched for in a sane time.

Oniguruma, which searches, gives up on a match after ten million steps. A pattern that takes as many
at every character of a text is nevertheless one to refuse before.
"""

from __future__ import annotations

import re

# one token of a pattern: a class or an escape (both are units), the start of a group, its end, a
# quantifier, any other character
_TOKEN = re.compile(
    r"""
    (?P<escape>\\[pPxXu]\{[^}]*\}|\\.)
    |(?P<open>\((?:\?(?:<?[=!]|>|~|<\w+>|[imxsaDWS-]*:|[imxsaDWS-]+(?=\))|\#[^)]*))?)
    |(?P<close>\))
    |(?P<many>\*|\+|\{\d*,\})
    |(?P<some>\{\d*,?\d*\}|\?)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def _end_of_class(pattern: str, at: int) -> int:
    """Where the character class that begins at `at` ends; classes may hold others."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return at


def repeats_repeats(pattern: str) -> bool:
    """Whether a group is repeated without a limit that holds something repeated without one.

    Such a group can match a text in exponentially many ways. Possessive quantifiers and atomic
    groups try one way alone.
    """
    inside = [False]  # of every open group: whether it holds a repetition without a limit
    atomic = [False]  # whether it tries one way alone
    last = False  # whether what the next quantifier is for holds one
    at = 0
    while at < len(pattern):
        if pattern[at] == "[":
            at = _end_of_class(pattern, at)
            last = False
            continue
        token = _TOKEN.match(pattern, at)
        assert token is not None  # `other` matches everything
        at = token.end()
        match token.lastgroup:
            case "open":
                inside.append(False)
                atomic.append(token[0] == "(?>")
                last = False
            case "close":
                if len(inside) > 1:
                    held = inside.pop() and not atomic.pop()
                    last = held
                    inside[-1] |= held
            case "many":
                if last:
                    return True
                possessive = token[0] in "*+" and pattern[at : at + 1] == "+"
                at += pattern[at : at + 1] in ("+", "?")
                inside[-1] |= not possessive
                last = not possessive
            case "some":
                at += pattern[at : at + 1] in ("+", "?")
            case _:
                last = False
    return False
