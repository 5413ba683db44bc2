"""Kernels of two checkouts, timed in alternation: what `compare_checkouts --kernels` prints."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from gwq_export.bench.cases import Case
from gwq_export.bench.contender import Stopped
from gwq_export.bench.roof import WORKING_SET
from gwq_export.bench.tables import table
from studies.paths import ROOT

LEAST = 0.98  # a ratio below says that this checkout is slower

# A process of a checkout, by its own package: older ones have no module of this study.
WORKER = """
import json, sys
from functools import partial
from inspect import signature
from itertools import cycle
from gwq_export.bench.cases import OPS, Case, build
from gwq_export.bench.kernels import sample
from gwq_export.native.library import Pool, isa
from gwq_export.native.ops import Ops

ops = Ops(Pool(int(sys.argv[1])))
print(json.dumps({"isa": isa(), "ops": list(OPS)}), flush=True)
for line in sys.stdin:
    case = json.loads(line)
    if case:  # a new one; {}: the same again
        case["shape"] = tuple(case["shape"])
        made = build(Case(**case), ops, int(sys.argv[2]))[0]
        # calls of older checkouts hold their Ops
        calls = cycle(partial(call, ops) if signature(call).parameters else call for call in made)
        next(calls)()
    print(json.dumps({"seconds": sample(calls)}), flush=True)
"""


def varied(
    cases: Iterable[Case], tokens: Sequence[int] | None, outliers: Sequence[float] | None
) -> list[Case]:
    """The cases with other numbers of tokens and shares of outliers, where they are of matrices.

    None: their own. A case that comes out several times is taken once.
    """
    made: dict[Case, None] = {}
    for case in cases:
        matrix = case.op in ("gemv", "gemm")
        tile = matrix and case.type.startswith("gwq")
        for n in tokens if matrix and tokens else [case.tokens]:
            op = ("gemm" if n > 1 else "gemv") if matrix else case.op
            for share in outliers if tile and outliers is not None else [case.outliers]:
                made[dataclasses.replace(case, op=op, tokens=n, outliers=share)] = None
    return list(made)


def ratios(
    pair: tuple[Stopped, Stopped], case: Case, rounds: int
) -> tuple[float, float, list[float]]:
    """Median seconds of a call of both, and in every round the second's over the first's."""
    for process in pair:
        process.ask(dataclasses.asdict(case))
    seconds: tuple[list[float], list[float]] = ([], [])
    for k in range(rounds):
        for i in (0, 1) if k % 2 else (1, 0):
            seconds[i].append(pair[i].ask({})["seconds"])
    each = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), each


def compare_kernels(
    other: Path,
    cases: Sequence[Case],
    threads: int,
    rounds: int,
    working_set: int = WORKING_SET,
) -> int:
    """Print a row for each case that both know; returns how many ratios are below LEAST.

    The ratio is that of the rates, this checkout's over the other's: the median of `rounds`
    neighbouring samples with their quartiles. Raises GwqError.
    """
    arguments = ["-c", WORKER, str(threads), str(working_set)]
    made: list[Stopped] = []
    try:
        for checkout in (ROOT, other):
            made.append(Stopped(arguments, f"the kernels of {checkout}", checkout))
        return _rows((made[0], made[1]), cases, threads, rounds)
    finally:
        for process in made:
            process.close()


def _rows(pair: tuple[Stopped, Stopped], cases: Sequence[Case], threads: int, rounds: int) -> int:
    head = ["op", "type", "rows x columns", "tokens", "outliers", "isa", "threads", "us"]
    head += ["the other's us", "times as fast", "quartiles"]
    print(table(head, []), flush=True)
    isas = "/".join(dict.fromkeys(p.facts["isa"] for p in pair))
    slower = 0
    for case in cases:
        if not all(case.op in p.facts["ops"] for p in pair):
            continue  # of one of them only
        ours, theirs, each = ratios(pair, case, rounds)
        low, median, high = statistics.quantiles(each, n=4)
        slower += median < LEAST
        cells = [case.op, case.type, "{}x{}".format(*case.shape), case.tokens]
        cells += [f"{case.outliers:.2%}", isas, threads, f"{1e6 * ours:.0f}", f"{1e6 * theirs:.0f}"]
        cells += [f"{median:.3f}", f"{low:.3f}-{high:.3f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return slower
