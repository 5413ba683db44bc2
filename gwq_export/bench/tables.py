"""Rows as Markdown, JSON, JSON lines or CSV."""

import csv
import io
import json


def table(head, body):
    return "\n".join(
        "| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *body]
    )


def test_name(r):
    """ "pp512" or "tg128", as llama-bench calls them."""
    return f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}"


def ratio(r):
    return (
        f"{r['times_as_fast']:.2f} ({r['times_as_fast_q1']:.2f}-{r['times_as_fast_q3']:.2f})"
        if r["times_as_fast"]
        else ""
    )


def kernels(rows):
    head = [
        "op",
        "type",
        "rows x columns",
        "tokens",
        "outliers",
        "isa",
        "threads",
        "us",
        "GB/s",
        "roof GB/s",
        "of roof",
        "GFLOP/s",
        "Gweights/s",
    ]
    body = [
        [
            r["op"],
            r["type"],
            f"{r['shape'][0]}x{r['shape'][1]}",
            r["tokens"],
            f"{r['outliers']:.1%}",
            r["isa"],
            r["threads"],
            f"{r['ns'] / 1e3:.0f}",
            f"{r['gbps']:.1f}",
            f"{r['roof_gbps']:.1f}",
            f"{r['of_roof']:.0%}",
            f"{r['gflops']:.1f}",
            f"{r['gweights']:.1f}" if r["gweights"] else "",
        ]
        for r in rows
    ]
    return table(head, body)


def models(rows):
    """llama-bench's columns and ours; the last one only where files are compared."""
    head = [
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "test",
        "t/s",
        "GB/s",
        "of roof",
        "load ms",
        "first token ms",
        "peak MiB",
    ]
    body = [
        [
            r["model_type"],
            f"{r['model_size'] / 2**20:.2f} MiB",
            f"{r['model_n_params'] / 1e6:.2f} M",
            r["backends"],
            r["n_threads"],
            test_name(r),
            f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
            f"{r['gbps']:.1f}" if r["gbps"] else "",
            f"{r['of_roof']:.0%}" if r["of_roof"] else "",
            f"{r['load_ns'] / 1e6:.0f}",
            f"{r['first_token_ns'] / 1e6:.0f}",
            f"{r['peak_bytes'] / 2**20:.0f}",
        ]
        for r in rows
    ]
    if any(r["times_as_fast"] for r in rows):
        head.append("first file, times as fast (quartiles)")
        for line, r in zip(body, rows, strict=True):
            line.append(ratio(r))
    return table(head, body)


def roof(cells):
    """A line for each thread count and distance, a column for each number of streams; medians in
    GB/s.
    """
    streams, lines = list(dict.fromkeys(c["streams"] for c in cells)), {}
    for c in cells:
        lines.setdefault((c["threads"], c["ahead"]), []).append(f"{c['gbps']:.1f}")
    head = ["threads", "prefetch bytes ahead", *(f"{s} stream{'s' * (s > 1)}" for s in streams)]
    return table(head, [[*key, *rates] for key, rates in lines.items()])


def _csv(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def _markdown(rows, cells):
    text = kernels(rows) if "op" in rows[0] else models(rows)
    note = (
        "of roof: share of what the machine could read at that moment (above 100 %: from the cache)"
    )
    return f"{text}\n\n{rows[0]['cpu_info']}; {note}\n\nThe memory roof, GB/s:\n\n{roof(cells)}"


FORMATS = {
    "md": _markdown,
    "json": lambda rows, cells: json.dumps(rows, indent=2),
    "jsonl": lambda rows, cells: "\n".join(json.dumps(row) for row in rows),
    "csv": lambda rows, cells: _csv(rows),
}
