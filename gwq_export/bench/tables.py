"""Rows as Markdown, JSON, JSON lines or CSV, printed as they are measured."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

# of `kernels.kernel_rows`, `models.model_rows`, `ops_profile.profile_rows` or `Roofs.rows`
Row: TypeAlias = dict[str, Any]


def table(head: Sequence[Any], body: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def test_name(r: Row) -> str:
    """The name that llama-bench gives a test: "pp512", "tg128" or "tg128 @ d2048"."""
    name = f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}"
    return f"{name} @ d{r['n_depth']}" if r["n_depth"] else name


def _ms(ns: float | None) -> str:
    return "" if ns is None else f"{ns / 1e6:.0f}"


def ratio(r: Row) -> str:
    """How many times as fast the first file is: median and quartiles; "" for itself."""
    if not r["times_as_fast"]:
        return ""
    return f"{r['times_as_fast']:.2f} ({r['times_as_fast_q1']:.2f}-{r['times_as_fast_q3']:.2f})"


# column -> its cell, of a row of `kernels.kernel_rows`
KERNEL_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "op": lambda r: r["op"],
    "type": lambda r: r["type"],
    "rows x columns": lambda r: f"{r['shape'][0]}x{r['shape'][1]}",
    "tokens": lambda r: r["tokens"],
    "outliers": lambda r: f"{r['outliers']:.1%}",
    "isa": lambda r: r["isa"],
    "threads": lambda r: r["threads"],
    "us": lambda r: f"{r['ns'] / 1e3:.0f}",
    "GB/s": lambda r: f"{r['gbps']:.1f}",
    "roof GB/s": lambda r: f"{r['roof_gbps']:.1f}",
    "of roof": lambda r: f"{r['of_roof']:.0%}",
    "GFLOP/s": lambda r: f"{r['gflops']:.1f}",
    "Gweights/s": lambda r: f"{r['gweights']:.1f}" if r["gweights"] else "",
}
# column -> its cell, of a row of `models.model_rows`: llama-bench's columns, then ours
MODEL_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "model": lambda r: r["model_type"],
    "size": lambda r: f"{r['model_size'] / 2**20:.2f} MiB",
    "params": lambda r: f"{r['model_n_params'] / 1e6:.2f} M",
    "backend": lambda r: r["backends"],
    "threads": lambda r: r["n_threads"],
    "test": test_name,
    "t/s": lambda r: f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
    "GB/s": lambda r: f"{r['gbps']:.1f}" if r["gbps"] else "",
    "of roof": lambda r: f"{r['of_roof']:.0%}" if r["of_roof"] else "",
    "load ms": lambda r: _ms(r["load_ns"]),
    "first token ms": lambda r: _ms(r["first_token_ns"]),
    "start to token ms": lambda r: _ms(r["start_ns"]),
    "cold ms": lambda r: _ms(r["start_cold_ns"]),
    "peak MiB": lambda r: f"{r['peak_bytes'] / 2**20:.0f}",
    "LocalScore": lambda r: f"{r['localscore']:.0f}" if r["localscore"] else "",
}
ENERGY_COLUMNS: dict[str, Callable[[Row], Any]] = {  # where power is measured
    "W": lambda r: "" if r["watts"] is None else f"{r['watts']:.2f}",
    "idle W": lambda r: "" if r["idle_watts"] is None else f"{r['idle_watts']:.2f}",
    "J/token": lambda r: "" if r["joules_per_token"] is None else f"{r['joules_per_token']:.3g}",
    "tokens/J": lambda r: "" if not r["tokens_per_joule"] else f"{r['tokens_per_joule']:.3g}",
}
# column -> its cell, of a row of `ops_profile.profile_rows`
PROFILE_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "op": lambda r: r["op"],
    "type": lambda r: r["type"] or "",
    "rows x columns": lambda r: "{}x{}".format(*r["shape"]) if r["shape"] else "",
    "calls": lambda r: r["calls"],
    "us": lambda r: f"{r['ns'] / 1e3:.1f}",
    "share": lambda r: f"{r['share']:.1%}",
    "GB/s": lambda r: f"{r['gbps']:.1f}" if r["gbps"] else "",
}
COMPARED_COLUMNS = {"first file, times as fast (quartiles)": ratio}  # where files are compared


def roof(cells: Sequence[Row]) -> str:
    """Rates of reading, GB/s, as Markdown.

    A line for each thread count and prefetch distance, a column for each number of streams.
    """
    streams = dict.fromkeys(c["streams"] for c in cells)
    names = ["1 stream" if s == 1 else f"{s} streams" for s in streams]
    lines: dict[tuple[int, int], list[str]] = {}
    for c in cells:
        lines.setdefault((c["threads"], c["ahead"]), []).append(f"{c['gbps']:.1f}")
    head = ["threads", "prefetch bytes ahead", *names]
    return table(head, [[*key, *rates] for key, rates in lines.items()])


def comparison(rows: Sequence[Row]) -> str:
    """Rows of `compare.compare` as Markdown tables, one for each pair."""
    parts: dict[tuple[str, ...], list[list[Any]]] = {}
    for r in rows:
        of = ("result", "file", "engine")
        sides = tuple(", ".join(r[f"{side}_{what}"] for what in of) for side in ("first", "second"))
        spread = "one run each" if r["q1"] is None else f"{r['q1']:.3f}-{r['q3']:.3f}"
        parts.setdefault(sides, []).append(
            [
                r["what"],
                f"{r['unit']}{' (less is better)' if r['less_is_better'] else ''}",
                f"{r['first']:.4g}",
                f"{r['second']:.4g}",
                f"{r['ratio']:.3f}",
                spread,
                "{} x {}".format(*r["runs"]),
            ]
        )
    head = ["test", "unit", "first", "second", "second / first", "quartiles", "runs"]
    return "\n\n".join(
        f"first: {sides[0]}\nsecond: {sides[1]}\n\n{table(head, lines)}"
        for sides, lines in parts.items()
    )


def _span(rows: Sequence[Row], name: str, unit: str) -> str:
    before, after = rows[0][f"{name}_before"], rows[-1][f"{name}_after"]
    return "" if before is None or after is None else f"{before:.0f} to {after:.0f} {unit}"


def conditions(rows: Sequence[Row], missing: Sequence[dict[str, str]]) -> list[str]:
    """Under which conditions rows of `models` were measured, and what was not measured: lines.

    missing: of `Watch.missing`.
    """
    last = rows[-1]
    throttled = {r["throttled"] for r in rows}
    why = dict.fromkeys(why for r in rows for why in r["throttled_why"])
    told = [
        f"governor {last['governor']}" if last["governor"] else "",
        f"power mode {last['power_mode']}" if last["power_mode"] else "",
        _span(rows, "mhz", "MHz"),
        _span(rows, "celsius", "°C"),
        f"throttled ({', '.join(why)})" if True in throttled else "",
        "not throttled" if throttled == {False} else "",
    ]
    lines = [f"Conditions: {'; '.join(filter(None, told))}."] if any(told) else []
    for e in last["energy"]:
        idle = "not known" if e["idle_watts"] is None else f"{e['idle_watts']:.2f} W"
        lines.append(
            f"Energy by {e['meter']}, of {e['covers']}: {e['method']}, {e['hz']:.1f} times a second"
            f"; idle {idle}, which is subtracted."
        )
    if cold := dict.fromkeys(r["why_not_cold"] for r in rows if r["why_not_cold"]):
        lines.append(f"No cold start: {'; '.join(cold)}.")
    if missing:
        whys: dict[str, list[str]] = {}
        for m in missing:
            whys.setdefault(m["why"], []).append(m["sensor"])
        told = [f"{', '.join(sensors)} ({why})" for why, sensors in whys.items()]
        lines.append(f"Not measured here: {'; '.join(told)}.")
    return lines


def _machine(row: Row) -> str:
    """The device that a row was measured on, or the CPU."""
    return str(row.get("gpu_info") or row["cpu_info"])


class Printer:
    """Prints rows of `kernels`, `models` or `ops_profile` in one of FORMATS.

    compared: whether files are compared; metered: whether power is measured. write: prints a line.
    JSON is one list, and comes at the
    end; of every other format, `row` prints what it is given.
    """

    FORMATS = ("md", "json", "jsonl", "csv")

    def __init__(
        self, format: str, compared: bool, write: Callable[[str], None], metered: bool = False
    ) -> None:
        self.compared = compared
        self.metered = metered
        self.write = write
        self._row = getattr(self, f"_{format}")
        self._format = format
        self._rows: list[Row] = []

    def row(self, row: Row) -> None:
        """Print a row."""
        self._rows.append(row)
        self._row(row)

    def end(self, cells: Sequence[Row], missing: Sequence[dict[str, str]] = ()) -> None:
        """Print what comes after the rows. cells: rows of the roof, where it was measured.

        missing: sensors, see `conditions`.
        """
        if self._format == "json":
            self.write(json.dumps(self._rows, indent=2))
        if self._format == "md" and not cells:
            self.write(f"\n{self._rows[0]['isa']}, {_machine(self._rows[0])}")
        elif self._format == "md":
            note = "of roof: share of what the machine could read at that moment"
            self.write(f"\n{_machine(self._rows[0])}; {note} (above 100 %: from the cache)")
            if "throttled" in self._rows[0]:
                for line in conditions(self._rows, missing):
                    self.write(f"\n{line}")
            self.write(f"\nThe memory roof, GB/s:\n\n{roof(cells)}")

    def _md(self, row: Row) -> None:
        columns = MODEL_COLUMNS
        if "op" in row:
            columns = PROFILE_COLUMNS if "calls" in row else KERNEL_COLUMNS
        if self.metered:
            columns = columns | ENERGY_COLUMNS
        if self.compared:
            columns = columns | COMPARED_COLUMNS
        lines = table(list(columns), [[cell(row) for cell in columns.values()]]).split("\n")
        self._head_and(lines[:2], lines[2])

    def _csv(self, row: Row) -> None:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        head, _, line = out.getvalue().rstrip("\n").partition("\n")
        self._head_and([head], line)

    def _jsonl(self, row: Row) -> None:
        self.write(json.dumps(row))

    def _json(self, row: Row) -> None:
        pass

    def _head_and(self, head: Sequence[str], line: str) -> None:
        """Print a row, and before the first one the head."""
        if len(self._rows) == 1:
            self.write("\n".join(head))
        self.write(line)
