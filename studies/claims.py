"""The claims of the GWQ paper's abstracts (arXiv 2411.00850), checked on a model.

    studies/claims [MODEL_FOLDER] [--data FOLDER] [--out FILE] [--quick]

Writes docs/results/claims.md, a table and a reading of it, and prints it. Columns: the original
(F16 export), the published recipe (preset paper) and our default, each at 4 and 3 bits. Everything
goes through real files and the runtime. --data FOLDER holds text/wiki.test.raw,
text/c4_sample_1000.jsonl and tasks/*.jsonl; without it the bundled evaluation text is scored, and
the rows that are missing say so.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from gwq_export import GwqError
from gwq_export.machine import cpu_name
from gwq_export.native import library as native
from studies.claims_rows import (
    COLUMNS,
    TYPES,
    Bench,
    reading,
    row,
    scored_text,
    selection,
    spread,
    task_rows,
    texts,
)
from studies.measure import speed_ratio
from studies.paths import REFERENCE, RESULTS, SHARED

FIGURES = (  # of an export's result: (key, unit, decimal places)
    ("bpw_linear", 1, 2),
    ("outlier_fraction", 0.01, 2),
    ("bytes", 2**20, 2),
    ("peak_rss_bytes", 2**20, 0),
    ("seconds", 1, 1),
)
UNCHECKED = {  # claim -> why not
    "MMLU, VQA, RefCOCO, Qwen-VL": "vision models are not exported, and MMLU needs models that "
    "score above chance on it",
    "better than SpQR": "its code was not run here; of its rule, the rows of the Hessian's "
    "diagonal give an idea only",
    "models of billions of parameters": "none is at hand; with one: "
    "`studies/claims FOLDER --ctx 2048`",
    "1.2 times the speed": 'the abstracts name neither kernels nor device; the row "faster" is '
    "ours on this CPU",
}
BUNDLED = (
    "The bundled model (5.2 million parameters, far from converged, near chance on the tasks) "
    "shows that the methods work and how they rank on it, and nothing about models a hundred times "
    "its size."
)
CACHED = (
    "; this model lies in the cache, where fewer bytes gain nothing: [speed.md](speed.md) has a "
    "model of 1.1 billion parameters"
)


def text_rows(args, original, models):
    """(lines, name of the first text, its windows, Predictor of the original, figures of models).

    Lines: perplexity on every text, KL divergence on the first.
    """
    given = texts(args.data)
    ctx = min(args.ctx, original.config.ctx)
    lines = []
    measured = []
    for name, text, how in given:
        print("score", name, file=sys.stderr, flush=True)
        rows, against, before, found = scored_text(original, models, text, ctx, args.windows)
        cells = [f"{before['ppl']:.2f}"]
        for q in found:
            ratio = f"{q['ppl_ratio']:.4f} ± {q['ppl_ratio_error']:.4f}"
            cells.append(f"{q['ppl']:.2f} (x {ratio})")
        note = f"{before['tokens']} tokens, {len(rows)} windows of {ctx}; {how}"
        lines.append(row("" if lines else "lower perplexity", name, cells, note))
        measured.append((rows, against, found))
    if len(given) == 1:
        lines.append(row("", "WikiText-2, C4", None, f"not measured: no texts in {args.data}"))
    first = given[0][0]
    cells = ["0", *(f"{q['kld_mean']:.4f} ± {q['kld_error']:.4f}" for q in measured[0][2])]
    note = "from the original, nats per token"
    lines.append(row("", f"KL divergence, {first}", cells, note))
    return lines, first, *measured[0]


def cost_rows(args, results, speed, alone, bundled):
    """Lines: size, memory and time of the exports, speed of decoding."""
    _, _, files, peaks, seconds = figures(results)
    peak_note = "a process each, torch included" if alone else "not measured by --quick"
    speed_note = f"median, quartiles of {args.rounds} alternating runs"
    if bundled:
        speed_note += CACHED
    mapped = "mapped and used as it is; embedding and head are Q8_0"
    return [
        row("less memory", "file, MiB", files, mapped),
        row("", "export: peak memory, MiB", peaks if alone else None, peak_note),
        row("", "export: seconds", seconds, "the import of torch included"),
        row("faster", "decoding, times the original", speed, speed_note),
    ]


def figures(results):
    """[texts of the original and of COLUMNS] for each of FIGURES."""
    return [[f"{r[key] / unit:.{places}f}" for r in results] for key, unit, places in FIGURES]


def claims(args, folder):
    """The page."""
    bench = Bench(args, folder)
    bundled = Path(args.model).resolve() == REFERENCE.resolve()
    alone = not args.quick
    samples = 2 if args.quick else 32

    made = [bench.export(alone, type="f16")]
    for preset, type in COLUMNS:
        options = {"samples": samples} if preset == "default" else {}
        made.append(bench.export(alone, preset=preset, type=type, **options))
    results = [result for result, _ in made]
    original, *models = [model for _, model in made]
    bits, shares, *_ = figures(results)

    bits_figure = "bits per weight of the decoder's linears"
    perplexity, name, rows, against, quality = text_rows(args, original, models)
    by_task = task_rows(args.data, args.limit, original, models)
    by_rule, rules = selection(bench, rows, against, args.seeds, samples)
    one = {t: bench.divergences(rows, against, args.seeds, type=t, samples=1) for t in TYPES}
    one_note = f"else {samples}; the paper's recipe: see above"
    one_cells = ["", "", "", *map(spread, one.values())]
    speed = ["1", *(speed_ratio(m, original, args.rounds) for m in models)]

    head = ["original (F16)", *(f"preset {preset}, {type}" for preset, type in COLUMNS)]
    table = [
        row("claim", "figure", head, "how"),
        "|" + " --- |" * (len(COLUMNS) + 4),
        row("low-bit format", bits_figure, bits, "side-tables included"),
        row("top 1 % stay FP16", "% of these weights", ["", *shares[1:]], ""),
        *perplexity,
        *by_task,
        *by_rule,
        row(
            "one calibration set is enough",
            "KL divergence, default from 1 sample",
            one_cells,
            one_note,
        ),
        *cost_rows(args, results, speed, alone, bundled),
        *(row(claim, "not checked", None, why) for claim, why in UNCHECKED.items()),
    ]
    said = reading(bits, name, quality, rules, one, samples)
    if bundled:
        said.append(BUNDLED)
    readings = [f"* {text}" for text in said]
    lines = ["# The paper's claims, checked", "", intro(args, bundled), "", *table, ""]
    return "\n".join([*lines, *readings, ""])


def intro(args, bundled):
    command = "studies/claims --quick" if args.quick else "studies/claims"
    threads = "1 thread" if args.threads == 1 else f"{args.threads} threads"
    return (
        "What the abstracts of GWQ (arXiv 2411.00850, v1 to v4) state, on "
        f"{'the bundled model' if bundled else args.model}; written by `{command}`. Calibration: "
        f"{args.calib or 'the bundled text'}, samples of {args.ctx} tokens. "
        f"{cpu_name()}, {native.isa()}, {threads}."
    )


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "model",
        nargs="?",
        default=REFERENCE,
        help="Hugging Face folder (default: the bundled model)",
    )
    p.add_argument("--data", type=Path, default=SHARED, help="folder of evaluation texts and tasks")
    p.add_argument("--calib", help="calibration text (default: the bundled one)")
    p.add_argument(
        "--ctx",
        type=int,
        default=256,
        help="tokens per window and calibration sample: what the model was trained on",
    )
    p.add_argument(
        "--windows", type=int, default=40, help="how many windows of each text, evenly spread"
    )
    p.add_argument("--limit", type=int, default=100, help="items of each task")
    p.add_argument(
        "--seeds", type=int, default=3, help="calibration seeds for the comparison of outlier rules"
    )
    p.add_argument("--rounds", type=int, default=15, help="alternating runs for the speed")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument(
        "--out",
        type=Path,
        help="file to write (default: docs/results/claims.md; with --quick none)",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="a few windows, items and samples: seconds, and figures that say nothing",
    )
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    if args.quick:
        args.windows = 2
        args.limit = 2
        args.seeds = 1
        args.rounds = 1
        args.ctx = min(args.ctx, 128)
    out = args.out or (None if args.quick else RESULTS / "claims.md")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = claims(args, folder)
        if out:
            out.write_text(text, encoding="utf-8")
    except (GwqError, OSError) as e:
        sys.exit(f"claims: error: {e}")
    print(text)


if __name__ == "__main__":
    main()
