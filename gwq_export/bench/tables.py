"""Rows as Markdown, JSON, JSON lines or CSV."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]  # of `kernels.kernel_rows`, `models.model_rows` or `Roofs.rows`


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


def _columns(columns: dict[str, Callable[[Row], Any]], rows: Sequence[Row]) -> str:
    return table(list(columns), [[cell(r) for cell in columns.values()] for r in rows])


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
COMPARED_COLUMNS = {"first file, times as fast (quartiles)": ratio}  # where files are compared


def kernels(rows: Sequence[Row]) -> str:
    """Rows of kernels as Markdown."""
    return _columns(KERNEL_COLUMNS, rows)


def models(rows: Sequence[Row]) -> str:
    """Rows of files as Markdown."""
    compared = any(r["times_as_fast"] for r in rows)
    return _columns(MODEL_COLUMNS | COMPARED_COLUMNS if compared else MODEL_COLUMNS, rows)


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


def _csv(rows: Sequence[Row], cells: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def _json(rows: Sequence[Row], cells: Sequence[Row]) -> str:
    return json.dumps(rows, indent=2)


def _json_lines(rows: Sequence[Row], cells: Sequence[Row]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def _markdown(rows: Sequence[Row], cells: Sequence[Row]) -> str:
    text = kernels(rows) if "op" in rows[0] else models(rows)
    note = (
        "of roof: share of what the machine could read at that moment (above 100 %: from the cache)"
    )
    return f"{text}\n\n{rows[0]['cpu_info']}; {note}\n\nThe memory roof, GB/s:\n\n{roof(cells)}"


# format -> function of (rows, rows of the roof)
FORMATS: dict[str, Callable[[Sequence[Row], Sequence[Row]], str]] = {
    "md": _markdown,
    "json": _json,
    "jsonl": _json_lines,
    "csv": _csv,
}
