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
    """The name that llama-bench gives a test: "pp512" or "tg128"."""
    return f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}"


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
    "load ms": lambda r: f"{r['load_ns'] / 1e6:.0f}",
    "first token ms": lambda r: f"{r['first_token_ns'] / 1e6:.0f}",
    "peak MiB": lambda r: f"{r['peak_bytes'] / 2**20:.0f}",
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


def _machine(row: Row) -> str:
    """The device that a row was measured on, or the CPU."""
    return str(row.get("gpu_info") or row["cpu_info"])


class Printer:
    """Prints rows of `kernels`, `models` or `ops_profile` in one of FORMATS.

    compared: whether files are compared. write: prints a line. JSON is one list, and comes at the
    end; of every other format, `row` prints what it is given.
    """

    FORMATS = ("md", "json", "jsonl", "csv")

    def __init__(self, format: str, compared: bool, write: Callable[[str], None]) -> None:
        self.compared = compared
        self.write = write
        self._row = getattr(self, f"_{format}")
        self._format = format
        self._rows: list[Row] = []

    def row(self, row: Row) -> None:
        """Print a row."""
        self._rows.append(row)
        self._row(row)

    def end(self, cells: Sequence[Row]) -> None:
        """Print what comes after the rows. cells: rows of the roof, where it was measured."""
        if self._format == "json":
            self.write(json.dumps(self._rows, indent=2))
        if self._format == "md" and not cells:
            self.write(f"\n{self._rows[0]['isa']}, {_machine(self._rows[0])}")
        elif self._format == "md":
            note = "of roof: share of what the machine could read at that moment"
            self.write(f"\n{_machine(self._rows[0])}; {note} (above 100 %: from the cache)")
            self.write(f"\nThe memory roof, GB/s:\n\n{roof(cells)}")

    def _md(self, row: Row) -> None:
        columns = MODEL_COLUMNS
        if "op" in row:
            columns = PROFILE_COLUMNS if "calls" in row else KERNEL_COLUMNS
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
