"""The best choice for every matrix within a byte budget: a knapsack problem, without tensors.

Every matrix has some choices, each with its bytes and its loss; one of each is to be picked, so
that the losses add up to as little as possible and the bytes to no more than the budget. (In the
literature: optimal bit allocation, the multiple-choice knapsack problem.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gwq_export.quantization.recipe import Recipe

MAX_FILL = 0.25  # fraction of outliers up to which `fill` goes
FIRST_FILL = 0.001  # fraction at which it begins where a matrix has none
BISECTIONS = 24


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix: its bytes in the file and the loss it adds, nats per token."""

    recipe: Recipe
    nbytes: int
    loss: float


def frontier(options: Sequence[Choice]) -> list[Choice]:
    """The choices that no other beats in both bytes and loss, by ascending bytes."""
    kept: list[Choice] = []
    for choice in sorted(options, key=lambda c: (c.nbytes, c.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def hull(options: Sequence[Choice]) -> list[Choice]:
    """The corners of a frontier's lower convex hull: no mix of two others beats one of them.

    From corner to corner, the loss saved per byte falls.
    """
    corners: list[Choice] = []
    for choice in options:
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], choice):
            corners.pop()
        corners.append(choice)
    return corners


def _slope(a: Choice, b: Choice) -> float:
    """Loss saved per byte by going from a to the larger b."""
    return (a.loss - b.loss) / max(b.nbytes - a.nbytes, 1e-9)


def allocate(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice] | None:
    """Pick one of each matrix's choices, of least total loss within `budget` bytes.

    Returns None where even the smallest choices do not fit. Every matrix begins with its smallest
    choice; then the steps along all convex hulls are taken in the order of the loss they save per
    byte. Where a step just fills the budget, the result is optimal: it minimizes loss + lambda *
    bytes for some price lambda of a byte (Shoham and Gersho, "Efficient bit allocation for an
    arbitrary set of quantizers", 1988). Bytes that remain buy single changes, the one that saves
    most first. The loss exceeds the optimum by at most what the largest single step saves. With few
    matrices that may be much, so the same type and fraction of outliers for all is tried, too: the
    result is no worse than any of these.
    """
    starts = [_along_hulls(options, budget), _alike(options, budget)]
    filled = [_with_changes(options, start, budget) for start in starts if start is not None]
    return min(filled, key=lambda picked: sum(c.loss for c in picked), default=None)


def _along_hulls(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice] | None:
    """The smallest choices, then steps along all convex hulls, the best per byte first."""
    fronts = [hull(frontier(choices)) for choices in options]
    picked = [front[0] for front in fronts]
    left = budget - sum(choice.nbytes for choice in picked)
    if left < 0:
        return None
    steps = [(_slope(a, b), i, a, b) for i, front in enumerate(fronts) for a, b in pairwise(front)]
    stopped = set()  # matrices of which a step did not fit: later ones start from it
    for _, i, a, b in sorted(steps, key=lambda step: -step[0]):
        if i in stopped or b.nbytes - a.nbytes > left:
            stopped.add(i)
            continue
        left -= b.nbytes - a.nbytes
        picked[i] = b
    return picked


def _alike(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice] | None:
    """All matrices by the same type and fraction of outliers, the best that fits."""
    by_kind = [{(c.recipe.type.name, c.recipe.outliers): c for c in o if c.recipe} for o in options]
    shared = set(by_kind[0]).intersection(*by_kind) if by_kind else set()
    picks = [[choices[kind] for choices in by_kind] for kind in sorted(shared)]
    fitting = [picked for picked in picks if sum(c.nbytes for c in picked) <= budget]
    return min(fitting, key=lambda picked: sum(c.loss for c in picked), default=None)


def _with_changes(
    options: Sequence[Sequence[Choice]], start: Sequence[Choice], budget: int
) -> list[Choice]:
    """Spend what is left on single changes, the one that saves most first."""
    fronts = [frontier(choices) for choices in options]
    picked = list(start)
    left = budget - sum(choice.nbytes for choice in picked)
    while change := _best_change(fronts, picked, left):
        i, choice = change
        left -= choice.nbytes - picked[i].nbytes
        picked[i] = choice
    return picked


def _best_change(
    fronts: Sequence[Sequence[Choice]], picked: Sequence[Choice], left: int
) -> tuple[int, Choice] | None:
    """(matrix, its new choice) of the change within `left` bytes that saves most loss."""
    best = None
    best_gain = 0.0
    for i, (front, now) in enumerate(zip(fronts, picked, strict=True)):
        for choice in front:
            gain = now.loss - choice.loss
            if choice.nbytes - now.nbytes <= left and gain > best_gain:
                best_gain = gain
                best = i, choice
    return best


def fill(
    options: Sequence[Sequence[Choice]],
    picked: Sequence[Choice],
    sizes: Sequence[Callable[[Recipe], int]],
    budget: int,
) -> list[Recipe]:
    """Spend the bytes that `allocate` left on more outliers; returns a recipe for every matrix.

    options, picked: the choices and what `allocate` picked of them. sizes: for each matrix a
    function recipe -> bytes. The matrix that saves most per byte gets its outliers first, as many
    as fit up to the next larger fraction among its choices; its loss in between is interpolated.
    Beyond the largest fraction the loss is unknown and taken as unchanged, so that this comes last.
    """
    picked = list(picked)
    left = budget - sum(choice.nbytes for choice in picked)
    while True:
        offers = []
        for i, (choices, now) in enumerate(zip(options, picked, strict=True)):
            more = _more_outliers(choices, now, sizes[i])
            if more and sizes[i](_mix(now, more, 1 / 64)) - now.nbytes <= left:
                offers.append((_slope(now, more), i, now, more))
        if not offers:
            return [choice.recipe for choice in picked]
        _, i, now, more = max(offers, key=lambda offer: offer[0])
        fraction = _largest_fraction(now, more, sizes[i], left)
        recipe = replace(now.recipe, outliers=fraction)
        share = (fraction - now.recipe.outliers) / (more.recipe.outliers - now.recipe.outliers)
        picked[i] = Choice(recipe, sizes[i](recipe), now.loss + share * (more.loss - now.loss))
        left -= picked[i].nbytes - now.nbytes


def _more_outliers(
    choices: Sequence[Choice], now: Choice, size: Callable[[Recipe], int]
) -> Choice | None:
    """The choice of the same type with the next larger fraction of outliers, or None.

    Beyond the largest one offered, the fraction is doubled, with the loss as it is.
    """
    larger = [
        c
        for c in choices
        if c.recipe.type == now.recipe.type
        and c.recipe.outliers > now.recipe.outliers
        and c.nbytes > now.nbytes
    ]
    if larger:
        return min(larger, key=lambda c: c.recipe.outliers)
    if not now.recipe.type.bits or now.recipe.outliers >= MAX_FILL:
        return None
    fraction = min(MAX_FILL, max(2 * now.recipe.outliers, FIRST_FILL))
    recipe = replace(now.recipe, outliers=fraction)
    return Choice(recipe, size(recipe), now.loss)


def _mix(now: Choice, more: Choice, share: float) -> Recipe:
    """The recipe of `now` with its outliers moved towards those of `more`."""
    a, b = now.recipe.outliers, more.recipe.outliers
    return replace(now.recipe, outliers=a + (b - a) * share)


def _largest_fraction(now: Choice, more: Choice, size: Callable[[Recipe], int], left: int) -> float:
    """The largest fraction of outliers, up to that of `more`, that takes `left` bytes more at most.

    By bisection, as bytes grow with the fraction.
    """
    low, high = now.recipe.outliers, more.recipe.outliers
    if more.nbytes - now.nbytes <= left:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if size(replace(now.recipe, outliers=middle)) - now.nbytes <= left:
            low = middle
        else:
            high = middle
    return low
