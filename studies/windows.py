"""What wider windows would be worth at 2 and 3 bits: the table in docs/results/tried.md.

    studies/windows [--rings 2000] [--restarts 3]

Rings of codes for Gaussian numbers, without scales, calibration or feedback, by an exact search
(Viterbi, closed) and tables fitted to numbers that are not those of the figures: the least that a
window of L bits, a table of 2^L entries, can lose. The format has L = 4 (docs/format.md).
"""

import argparse

import numpy as np

from gwq_export.bench.tables import table as markdown

RINGS = {2: 16, 3: 8}  # bits of a code -> codes of a ring
WINDOWS = {2: (2, 3, 4, 5, 6), 3: (3, 4, 5, 6)}  # bits of a code -> bits of a window
ROUNDS = 30  # of fitting a table


def search(x: np.ndarray, table: np.ndarray, bits: int) -> np.ndarray:
    """The windows of rings of targets x (rings, codes) that lose least, int (rings, codes).

    table: (2^L,). A window is its code and, above it, the last L - bits bits that went before, of
    which the ring's end goes before its start: a shortest path through states that are those bits,
    searched once for each state in which it may begin, and must end.
    """
    rings, count = x.shape
    states = len(table) >> bits
    window = np.arange(len(table))
    before, after = window >> bits, window & (states - 1)
    into = np.stack([np.flatnonzero(after == s) for s in range(states)])  # (states, windows)
    error = np.square(x[:, :, None] - table)  # (rings, codes, windows)
    best, found = np.full(rings, np.inf), np.empty((rings, count), int)
    rows = np.arange(rings)
    for start in range(states):
        cost = np.full((rings, states), np.inf)
        cost[:, start] = 0
        came = np.empty((count, rings, states), int)  # the window by which a state was reached
        for k in range(count):
            total = cost[:, before[into]] + error[:, k][:, into]
            pick = total.argmin(2)
            came[k] = into[np.arange(states), pick]
            cost = np.take_along_axis(total, pick[:, :, None], 2)[:, :, 0]
        better = cost[:, start] < best
        best[better] = cost[better, start]
        state = np.full(rings, start)
        for k in reversed(range(count)):
            here = came[k, rows, state]
            found[better, k] = here[better]
            state = before[here]
    return found


def fitted(rng: np.random.Generator, x: np.ndarray, bits: int, width: int) -> np.ndarray:
    """A table (2^width,) for x: from random entries, in turn windows and the means of theirs."""
    table = rng.standard_normal(1 << width)
    for _ in range(ROUNDS):
        found = search(x, table, bits)
        seen = np.bincount(found.ravel(), minlength=len(table))
        sums = np.bincount(found.ravel(), x.ravel(), len(table))
        table = np.where(seen > 0, sums / np.maximum(seen, 1), table)
    return table


def loss(bits: int, width: int, rings: int, restarts: int) -> float:
    """Mean squared error of numbers with variance 1, by the best of some tables."""
    rng = np.random.default_rng(0)
    fit = rng.standard_normal((rings, RINGS[bits]))
    judge = rng.standard_normal((2 * rings, RINGS[bits]))

    def error(x: np.ndarray, table: np.ndarray) -> float:
        return float(np.square(x - table[search(x, table, bits)]).mean())

    tables = [fitted(rng, fit, bits, width) for _ in range(restarts)]
    return error(judge, min(tables, key=lambda t: error(fit, t)))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rings", type=int, default=2000, help="that tables are fitted to")
    p.add_argument("--restarts", type=int, default=3, help="tables tried for each window")
    return p


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parser().parse_args(argv)
    rows = []
    for bits, widths in WINDOWS.items():
        losses = {width: loss(bits, width, args.rings, args.restarts) for width in widths}
        for width, value in losses.items():
            rows.append([bits, width, 1 << width, f"{value:.4f}", f"{value / losses[4]:.2f}"])
    head = ["bits of a code", "of a window", "table", "mean squared error", "of L = 4"]
    print(markdown(head, [[str(cell) for cell in row] for row in rows]))


if __name__ == "__main__":
    main()
