"""The parts of a benchmark's page that show measurements: plots and tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from gwq_export.report import charts, html

Data = dict[str, Any]


def test(r: Data) -> str:
    """What a row measured, in words."""
    name = f"prompt of {r['n_prompt']}" if r["n_prompt"] else f"{r['n_gen']} tokens decoded"
    return f"{name} after {r['n_depth']}" if r["n_depth"] else name


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number in about `digits` digits, with its unit; "" for None."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return f"{text} {unit}".strip()


def milliseconds(ns: float | None) -> str:
    """Nanoseconds as milliseconds; "" for None."""
    return "" if ns is None else f"{ns / 1e6:,.0f} ms"


def rows_of(found: Data, step: str) -> list[Data]:
    """The rows of a step."""
    return [r for r in found["rows"] if r["step"] == step]


def speed(found: Data) -> str:
    """Prompts and decoding."""
    rows = rows_of(found, "speed")
    if not rows:
        return ""
    several = len({(r["model_filename"], r["backends"]) for r in rows}) > 1

    def name(r: Data) -> str:
        return f"{test(r)}, {r['backends']}" if several else test(r)

    bars = [(name(r), r["median_ts"], f"{number(r['median_ts'])} tokens/s") for r in rows]
    head = ["test", "engine", "file", "threads", "tokens/s", "lowest", "highest", "GB/s"]
    head += ["of roof", "first file is faster by", "peak memory", "MHz", "°C"]
    body = [
        [
            html.text(test(r)),
            html.text(r["backends"]),
            html.text(r["model_filename"]),
            str(r["n_threads"]),
            number(r["median_ts"]),
            number(min(r["samples_ts"])),
            number(max(r["samples_ts"])),
            number(r["gbps"]),
            html.percent(r["of_roof"]) if r["of_roof"] else "",
            "" if r["times_as_fast"] is None else f"{r['times_as_fast']:.2f} times",
            html.size(r["peak_bytes"]),
            _change(r["mhz_before"], r["mhz_after"]),
            _change(r["celsius_before"], r["celsius_after"]),
        ]
        for r in rows
    ]
    note = "Medians. The memory roof is what the machine could read at that moment."
    figure = html.figure("tokens/s", charts.bars("Tokens per second by test", bars))
    table = html.table("Prompts and decoding", head, body)
    return html.section("Speed", note, figure, table)


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{before:.0f} to {after:.0f}"


def _curve(found: Data, step: str, title: str, note: str, x: str, unit: str, kept: bool) -> str:
    """A line of tokens/s over `x` of a step's rows of the first file, and its table."""
    rows = [r for r in rows_of(found, step) if r["times_as_fast"] is None]
    if not rows:
        return ""
    points = [(r[x], r["median_ts"]) for r in rows]
    ends = f"{unit}: {points[0][0]}", f"{unit}: {points[-1][0]}"
    chart = charts.line(title, points, number, ends, from_zero=True)
    head = [unit, "tokens/s", "lowest", "highest"] + (["kept on CPUs"] if kept else [])
    body = [
        [
            str(r[x]),
            number(r["median_ts"]),
            number(min(r["samples_ts"])),
            number(max(r["samples_ts"])),
            *([", ".join(map(str, r["cpus"])) if r["cpus"] else "any"] if kept else []),
        ]
        for r in rows
    ]
    figure = html.figure("tokens/s of decoding", chart)
    return html.section(title, note, figure, html.table(title, head, body))


def threads(found: Data) -> str:
    """The thread sweep."""
    note = f"Threads in the other tests: {found['best_threads']}."
    return _curve(found, "threads", "Threads", note, "n_threads", "threads", True)


def depth(found: Data) -> str:
    """Decoding after more and more tokens."""
    note = "Decoding after so many tokens in the context."
    title = "Depth of the context"
    return _curve(found, "depth", title, note, "n_depth", "tokens before", False)


def starts(found: Data) -> str:
    """From start to first token."""
    if not found["starts"]:
        return ""
    rows = [
        [
            "cold" if s["cold"] else "warm",
            html.text(s["engine"]),
            milliseconds(s["ready_ns"]),
            milliseconds(s["start_ns"]) or html.text(s["why_not"]),
        ]
        for s in found["starts"]
    ]
    note = (
        "From the start of the process, Python and its modules included. Cold: the file was put"
        " out of the page cache before; the programs were not."
    )
    head = ["file", "engine", "ready after", "first token after"]
    return html.section("Start", note, html.table("Starts", head, rows))


def sustained(found: Data) -> str:
    """Speed, temperature, clock rate and power over time."""
    run = found["sustained"]
    if not run or not run["points"]:
        return ""
    points = run["points"]
    ends = "0 min", f"{run['seconds'] / 60:.1f} min"

    def plot(caption: str, key: str, show: Callable[[float], str], from_zero: bool) -> str:
        values = [(p["s"], p[key]) for p in points if p[key] is not None]
        if not values:
            return html.figure(caption, "<p>not told by this system</p>")
        chart = charts.line(f"{caption} over time", _thinned(values), show, ends, from_zero)
        return html.figure(caption, chart)

    figures = (
        plot("tokens/s", "tps", number, True),
        plot("temperature, °C", "celsius", lambda v: f"{v:.0f}", False),
        plot("clock rate, MHz", "mhz", lambda v: f"{v:.0f}", False),
        plot("power, W", "watts", number, True),
    )
    throttled = {None: "not told by this system", False: "no", True: "yes"}
    rows: dict[str, object] = {
        "Time": f"{run['seconds']:.0f} s, threads: {run['threads']}",
        "Slowed down by the system": "; ".join(
            [throttled[run["throttled"]], *run["throttled_why"]]
        ),
    }
    if run["kept"] is not None:
        window = run["window_s"]
        rows[f"First {window:.0f} s"] = number(run["first_tps"], "tokens/s")
        rows[f"Last {window:.0f} s"] = number(run["last_tps"], "tokens/s")
        rows["Left of the speed"] = html.percent(run["kept"])
    note = "The model decodes without a pause."
    table = html.facts("What is left", rows)
    return html.section("Sustained", note, html.grid(*figures), table)


def _thinned(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 400 points: means of neighbours."""
    size = -(-len(values) // 400)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [
        (statistics.mean(x for x, _ in part), statistics.mean(y for _, y in part)) for part in parts
    ]


def energy(found: Data) -> str:
    """The energy of a token, by each sensor."""
    runs = [(test(r), r["energy"]) for r in found["rows"] if r["step"] != "threads"]
    if found["sustained"]:
        runs.append(("sustained", found["sustained"]["energy"]))
    rows = [
        [
            html.text(name),
            html.text(e["meter"]),
            html.text(e["covers"]),
            html.text(e["method"]),
            f"{e['hz']:.1f}",
            number(e["watts"]),
            number(e["idle_watts"]),
            number(e["joules_per_token"]),
            number(e["tokens_per_joule"]),
        ]
        for name, meters in runs
        for e in meters
    ]
    if not rows:
        text = "No sensor of this device tells its power to this program: see below."
        return html.section("Energy", text)
    note = "Idle power was measured before, and is subtracted from what a token takes."
    head = ["test", "sensor", "of", "method", "readings/s", "W", "idle W", "J/token", "tokens/J"]
    return html.section("Energy", note, html.table("Energy", head, rows))
