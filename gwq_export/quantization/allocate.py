"""The best choice for every matrix under a byte budget: a knapsack over predicted losses."""

from dataclasses import dataclass, replace
from itertools import pairwise

MOST = 0.25  # outliers that are added to fill a budget


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix: its bytes in the file and the loss it adds, nats per token."""

    recipe: object
    nbytes: int
    loss: float


def frontier(options):
    """Choices by ascending bytes, those that another one beats left out."""
    kept = []
    for c in sorted(options, key=lambda c: (c.nbytes, c.loss)):
        if not kept or c.loss < kept[-1].loss:
            kept.append(c)
    return kept


def hull(options):
    """Those of a frontier at which the loss saved per byte falls: no mix of two others beats them."""
    out = []
    for c in options:
        while len(out) > 1 and _slope(out[-2], out[-1]) <= _slope(out[-1], c):
            out.pop()
        out.append(c)
    return out


def _slope(a, b):
    """Loss saved per byte."""
    return (a.loss - b.loss) / max(b.nbytes - a.nbytes, 1e-9)


def allocate(options, budget):
    """One of each matrix's options, of least loss within `budget` bytes; or None.

    Greedy along the convex hulls, which is optimal up to the last step (Shoham and Gersho, 1988),
    then whatever still fits.
    """
    options, picked = [frontier(o) for o in options], [0] * len(options)
    left = budget - sum(o[0].nbytes for o in options)
    if left < 0:
        return None
    steps = []
    for i, o in enumerate(options):
        corners = hull(o)
        steps += [(_slope(a, b), i, a, b) for a, b in pairwise(corners)]
    stopped = set()
    for _, i, a, b in sorted(steps, key=lambda s: -s[0]):
        if i in stopped or b.nbytes - a.nbytes > left:
            stopped.add(i)  # its later steps start from this one
            continue
        left -= b.nbytes - a.nbytes
        picked[i] = options[i].index(b)
    while True:  # what is left buys the best single change
        best = None
        for i, o in enumerate(options):
            now = o[picked[i]]
            for k in range(picked[i] + 1, len(o)):
                if o[k].nbytes - now.nbytes <= left and o[k].loss < now.loss:
                    gain = now.loss - o[k].loss
                    if best is None or gain > best[0]:
                        best = gain, i, k
        if best is None:
            return [o[k] for o, k in zip(options, picked, strict=True)]
        _, i, k = best
        left -= options[i][k].nbytes - options[i][picked[i]].nbytes
        picked[i] = k


def fill(options, picked, sizes, budget):
    """Recipes of the picked choices, some with more outliers where bytes are left: those that save
    most per byte first.

    sizes: for each matrix a function recipe -> bytes.
    """
    left, picked = budget - sum(c.nbytes for c in picked), list(picked)
    while True:
        offers = []
        for m, (o, now) in enumerate(zip(options, picked, strict=True)):
            more = [
                c
                for c in o
                if c.recipe.type == now.recipe.type
                and c.recipe.outliers > now.recipe.outliers
                and c.nbytes > now.nbytes
            ]
            more = min(more, key=lambda c: c.recipe.outliers, default=None)
            if (
                not more and now.recipe.type.bits and now.recipe.outliers < MOST
            ):  # beyond what was asked for: no loss known
                recipe = replace(
                    now.recipe, outliers=min(MOST, max(2 * now.recipe.outliers, 0.001))
                )
                more = Choice(recipe, sizes[m](recipe), now.loss)
            if (
                more
                and sizes[m](
                    replace(now.recipe, outliers=_next(now.recipe.outliers, more.recipe.outliers))
                )
                - now.nbytes
                <= left
            ):
                offers.append((_slope(now, more), m, now, more))
        if not offers:
            return [c.recipe for c in picked]
        _, m, now, more = max(offers, key=lambda offer: offer[0])
        low, high = now.recipe.outliers, more.recipe.outliers
        if more.nbytes - now.nbytes <= left:
            low = high
        for _ in range(24 * (low < high)):  # bisection: bytes grow with the fraction
            middle = (low + high) / 2
            if sizes[m](replace(now.recipe, outliers=middle)) - now.nbytes <= left:
                low = middle
            else:
                high = middle
        recipe = replace(now.recipe, outliers=low)
        share = (low - now.recipe.outliers) / (more.recipe.outliers - now.recipe.outliers)
        picked[m] = Choice(recipe, sizes[m](recipe), now.loss + share * (more.loss - now.loss))
        left -= picked[m].nbytes - now.nbytes


def _next(a, b):
    """A fraction a little above a: a step that fits nothing is not worth a try."""
    return a + (b - a) / 64
