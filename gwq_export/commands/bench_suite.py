"""gwq-bench --suite, --minutes, --compare, --page and --record: what is done with files."""

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gwq_export.commands.console import Progress
from gwq_export.errors import GwqError
from gwq_export.files import as_json, check_output, save


def measure(
    args: argparse.Namespace, threads: list[int | None] | None, progress: Progress
) -> dict[str, Any]:
    """Run --suite or --minutes, into a JSON file and a page. Raises GwqError.

    threads: counts to try; None: those that the device suggests.
    """
    from gwq_export.bench import suite
    from gwq_export.report.benchmark import page

    out = Path(args.out or _name(args.file))
    html = out.with_suffix(".html")
    if html == out:
        raise GwqError(f"--out {out}: give a name that ends in .json; the page gets .html")
    check_output(out, "--out")
    check_output(html, "--out")
    written = False

    def say(text: str) -> None:
        progress.close()
        print(text, file=sys.stderr, flush=True)

    def write(found: dict[str, Any]) -> None:
        nonlocal written
        save(out, as_json(found).decode(), "--out")
        save(html, page(found), "--out")
        written = True

    name = args.suite or "sustained"
    try:
        found = suite.run_suite(
            *(name, args.file, args.against, args.device, threads, args.minutes),
            *(progress, say, write),
        )
    except KeyboardInterrupt:
        if written:
            say(f"what was measured is in {out} and {html}")
        raise
    progress.close()
    print(_summary(found, out, html), flush=True)
    return found


def _name(file: str) -> str:
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"edge-{Path(file).stem}-{now}.json"


def _summary(found: dict[str, Any], out: Path, html: Path) -> str:
    """What a suite found, in some lines."""
    from gwq_export.bench import tables

    rows = [r for r in found["rows"] if r["step"] != "threads"]
    head = ["test", "engine", "threads", "tokens/s", "of roof", "J/token"]
    body = [
        [
            tables.test_name(r),
            r["backends"],
            r["n_threads"],
            f"{r['median_ts']:.2f}",
            f"{r['of_roof']:.0%}" if r["of_roof"] else "",
            f"{r['joules_per_token']:.3g}" if r["joules_per_token"] else "",
        ]
        for r in rows
    ]
    lines = [tables.table(head, body)] if rows else []
    if rows:
        lines += tables.conditions(rows, found["sensors"]["missing"])
    sustained = found["sustained"]
    if sustained and sustained["kept"] is not None:
        window = f"{sustained['window_s']:.0f} s"
        lines.append(
            f"Without a pause: {sustained['first_tps']:.2f} tokens/s in the first {window},"
            f" {sustained['last_tps']:.2f} in the last, {sustained['kept']:.0%} of it."
        )
    failed = [f"{s['title']} ({s['why']})" for s in found["steps"] if s["state"] == "failed"]
    if failed:
        lines.append(f"Failed: {'; '.join(failed)}.")
    return "\n\n".join([*lines, f"{out} has everything, {html} shows it."])


def compare_results(args: argparse.Namespace) -> dict[str, Any]:
    """Print what --compare asks for. Raises GwqError."""
    from gwq_export.bench import compare, document, tables

    names = [Path(path).stem for path in args.compare]
    if len(set(names)) < len(names):
        names = list(args.compare)
    rows = compare.compare(
        [(name, document.read(path)) for name, path in zip(names, args.compare, strict=True)]
    )
    if args.o == "json":
        print(json.dumps(rows, indent=2))
    else:
        print(tables.comparison(rows))
    return {"rows": rows}


def write_page(args: argparse.Namespace) -> dict[str, Any]:
    """Write what --page asks for. Raises GwqError."""
    from gwq_export.bench import document
    from gwq_export.report.benchmark import page

    html = Path(args.page).with_suffix(".html")
    if html == Path(args.page):
        raise GwqError(f"--page {args.page}: give the JSON file; the page gets .html")
    save(html, page(document.read(args.page)), "--page")
    print(f"{html} shows it.", flush=True)
    return {"page": str(html)}


def record_pass(args: argparse.Namespace) -> dict[str, Any]:
    """Write what --record asks for. Raises GwqError."""
    from gwq_export.bench.record import record

    prompts = None if args.p == [None] else args.p
    depths = None if args.depth == [0] else args.depth
    found = record(args.file, args.record, prompts, args.n, depths)
    lengths = ", ".join(map(str, found["prompts"]))
    print(
        f"{found['record']}: {found['bytes']} bytes, for a context of {found['ctx']} tokens and "
        + (f"prompts of {lengths}." if lengths else "no prompts (-p)."),
        flush=True,
    )
    return found
