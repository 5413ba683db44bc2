"""Results of several runs, devices, versions or engines, as ratios with their spread."""

import statistics
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from gwq_export.bench.runs import quartiles
from gwq_export.bench.tables import test_name
from gwq_export.errors import GwqError

# (what was measured, its unit): values of the runs
Figures: TypeAlias = dict[tuple[str, str], list[float]]
# the unit tells which way is better
LESS_IS_BETTER = ("ms", "MiB", "J/token")


def contenders(found: dict[str, Any]) -> dict[tuple[str, str], Figures]:
    """{(file, engine): figures} of a document; the figures of the suite's own are with the first.

    Engines are told apart by their names, not by instruction sets.
    """
    parts: dict[tuple[str, str], Figures] = {}
    for r in found["rows"]:
        engine = "gwq" if r["backends"].startswith("gwq-") else r["backends"]
        figures = parts.setdefault((f"{r['model_filename']} ({r['model_type']})", engine), {})
        name = (
            f"{test_name(r)}, {r['n_threads']} threads" if r["step"] == "threads" else test_name(r)
        )
        figures[name, "tokens/s"] = r["samples_ts"]
        if r["step"] == "speed":
            if r["joules_per_token"]:
                figures[name, "J/token"] = [r["joules_per_token"]]
            if r["n_gen"]:
                figures["peak memory", "MiB"] = [r["peak_bytes"] / 2**20]
    own = (f"{found['model']['file']} ({found['model']['type']})", "gwq")
    first = parts.setdefault(own, {})
    for cold in (True, False):
        times = [
            s["start_ns"] / 1e6 for s in found["starts"] if s["cold"] == cold and s["start_ns"]
        ]
        if times:
            first[f"start to first token, {'cold' if cold else 'warm'}", "ms"] = times
    if (sustained := found["sustained"]) and sustained["points"]:
        first["sustained", "tokens/s"] = [p["tps"] for p in sustained["points"]]
    return {key: figures for key, figures in parts.items() if figures}


def pairs(
    first: dict[tuple[str, str], Figures], second: dict[tuple[str, str], Figures]
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Who is compared with whom: the same file and engine; then the same file; then what is left,
    if that is one on each side.
    """
    found: list[tuple[tuple[str, str], tuple[str, str]]] = []
    mine, others = list(first), list(second)

    def take(a: tuple[str, str], b: tuple[str, str]) -> None:
        found.append((a, b))
        mine.remove(a)
        others.remove(b)

    for a in list(mine):
        if a in others:
            take(a, a)
    for a in list(mine):
        of_file = [b for b in others if b[0] == a[0]]
        if of_file:
            take(a, of_file[0])
    if len(mine) == len(others) == 1:
        take(mine[0], others[0])
    return found


def ratio(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """[median, lower quartile, upper quartile] of second / first, each run by each run."""
    return quartiles(np.divide.outer(second, first).ravel().tolist())


def compare(documents: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """[{"what", "unit", "first", "second", "ratio", "q1", "q3", "runs", ...}]: every document
    beside the first one, or of one alone the other engines beside ours.

    documents: [(name, document)]. first and second: medians; ratio: second / first, with quartiles
    that are None where there is one run of each. Raises GwqError where nothing can be compared.
    """
    rows = []
    (name, base), *rest = documents
    parts = contenders(base)
    if rest:
        for other, found in rest:
            theirs = contenders(found)
            for a, b in pairs(parts, theirs):
                rows += _rows(name, a, parts[a], other, b, theirs[b])
    else:
        mine, *others = parts
        for b in others:
            rows += _rows(name, mine, parts[mine], name, b, parts[b])
    if not rows:
        raise GwqError(
            "--compare: these results have no test in common: measure the same file, or give two"
            " results of --suite edge"
        )
    return rows


def _rows(
    name: str,
    a: tuple[str, str],
    first: Figures,
    other: str,
    b: tuple[str, str],
    second: Figures,
) -> list[dict[str, Any]]:
    rows = []
    for (what, unit), values in first.items():
        others = second.get((what, unit))
        if not others:
            continue
        middle, q1, q3 = ratio(values, others)
        alone = len(values) * len(others) == 1
        rows.append(
            {
                "what": what,
                "unit": unit,
                "less_is_better": unit in LESS_IS_BETTER,
                "first_result": name,
                "first_file": a[0],
                "first_engine": a[1],
                "second_result": other,
                "second_file": b[0],
                "second_engine": b[1],
                "first": statistics.median(values),
                "second": statistics.median(others),
                "ratio": middle,
                "q1": None if alone else q1,
                "q3": None if alone else q3,
                "runs": [len(values), len(others)],
            }
        )
    return rows
