"""What a chat template may spend: steps, characters, seconds of its thread.

Every value has a weight: the characters and members that it has once it is written out. What the
template may make grows with the weight of what it is given, so long chats have what they need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sized
from typing import Any, TypeAlias

from gwq_export import limits
from gwq_export.limits import Deadline

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = Mapping[str, Any]

CHARS = 32  # characters that are copied in a step
ALLOWED = 64  # steps for each character or member of what the template is given
LONGER = 16  # times as long as that may a value of the template be
MOST = 1 << 16  # in a number that says how wide, long or many
CLOCK = 64  # steps between two looks at the clock
# a width of four digits, or one that is an argument
_WIDE = re.compile(r"%[^%a-zA-Z]*(\d{4}|\*)")


class Exceeded(Exception):
    """The template wants more than it may have."""


def weight(value: Any, tick: Callable[[int], None] = lambda steps: None) -> int:
    """Characters and members of a value, those of its members included.

    tick: is called with the members as they are found, and may raise.
    """
    total = 0
    waiting = [value]
    while waiting:
        value = waiting.pop()
        total += 1
        if isinstance(value, (str, bytes)):
            total += len(value)
        elif isinstance(value, int):
            if value.bit_length() > limits.TEMPLATE_BITS:
                raise Exceeded(f"it makes a number of more than {limits.TEMPLATE_BITS} bits")
        elif isinstance(value, Mapping):
            tick(2 * len(value))
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            tick(len(value))
            waiting += value
        elif isinstance(value, Sized):  # a range, a view of a mapping
            total += len(value)
    return total


class Budget:
    """What is left of a rendering's steps and time. given: what the template is called with.

    Its methods raise Exceeded.
    """

    def __init__(self, given: Any) -> None:
        given_weight = weight(given)
        self.steps = limits.TEMPLATE_WORK + ALLOWED * given_weight
        self.most = limits.TEMPLATE_TEXT + LONGER * given_weight
        self._deadline = Deadline(limits.TEMPLATE_SECONDS)
        self._look = self.steps - CLOCK  # at the clock, when so many are left

    def tick(self, steps: int = 1) -> None:
        """Spend steps."""
        self.steps -= steps
        if self.steps < self._look:
            self._look = self.steps - CLOCK
            if self.steps < 0:
                raise Exceeded("it takes more steps than any model's")
            if self._deadline.passed:
                raise Exceeded(f"it takes more than {self._deadline.seconds:.0f} seconds")

    def check(self, size: int) -> None:
        """Refuse to make a value of so many characters and members."""
        if size > self.most:
            raise Exceeded(f"it makes a value of {size} characters or members")

    def weigh(self, value: Any) -> int:
        """Spend what it takes to make a value, or to go through it; returns its weight."""
        found = weight(value, self.tick)
        self.check(found)
        self.tick(1 + found // CHARS)
        return found


# --- what must be known before a function is called -----------------------------------------------


def _numbers(values: Any) -> list[int]:
    return [abs(v) for v in values if isinstance(v, int)]


def _wide(budget: Budget, weights: int, args: Args, kwargs: Kwargs) -> None:
    """A number says how wide every line, or every member, gets."""
    budget.check(weights * (1 + max(_numbers((*args, *kwargs.values())), default=0)))


def _replace(budget: Budget, weights: int, args: Args, kwargs: Kwargs) -> None:
    text, old, new = (str(arg) for arg in args[:3])
    budget.check(len(text) + text.count(old) * len(new))


def _join(budget: Budget, weights: int, args: Args, kwargs: Kwargs) -> None:
    longest = max((len(a) for a in (*args, *kwargs.values()) if isinstance(a, str)), default=0)
    members = max((len(a) for a in args if isinstance(a, Sized)), default=0)
    budget.check(weights + longest * members)


def _format(budget: Budget, weights: int, args: Args, kwargs: Kwargs) -> None:
    if isinstance(args[0], (str, bytes)) and _WIDE.search(str(args[0])):
        raise Exceeded("it pads a text to a thousand characters or more")
    budget.check(weights * (1 + str(args[0]).count("%")))


def _sum(budget: Budget, weights: int, args: Args, kwargs: Kwargs) -> None:
    start = kwargs.get("start", args[2] if len(args) > 2 else 0)
    if not isinstance(start, (int, float)):
        raise Exceeded("it sums up what are no numbers")


# name of a filter or of a method -> what it may make; the first argument is what it is called for
BEFORE: dict[str, Callable[[Budget, int, Args, Kwargs], None]] = {
    **dict.fromkeys(
        ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "batch", "slice"),
        _wide,
    ),
    "replace": _replace,
    "join": _join,
    "format": _format,
    "sum": _sum,
}


def before_call(budget: Budget, name: str, args: Args, kwargs: Kwargs) -> None:
    """Spend what a filter or method takes for its arguments, and refuse one that makes too much."""
    if max(_numbers((*args[1:], *kwargs.values())), default=0) > MOST:
        raise Exceeded(f"it calls {name} with a number above {MOST}")
    weights = sum(map(budget.weigh, (*args, *kwargs.values())))
    if name in BEFORE:
        BEFORE[name](budget, weights, args, kwargs)


def before_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse an operation that makes too much."""
    if operator == "%" and isinstance(left, (str, bytes)):
        before_call(budget, "format", (left, right), {})
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(0, right) if operator == "**" else 1)
        if bits > limits.TEMPLATE_BITS:
            raise Exceeded(f"it makes a number of more than {limits.TEMPLATE_BITS} bits")
    elif operator == "*":
        times = max(_numbers((left, right)), default=1)
        budget.check(sum(len(v) for v in (left, right) if isinstance(v, Sized)) * times)
    elif operator == "+":
        budget.check(sum(len(v) for v in (left, right) if isinstance(v, Sized)))
