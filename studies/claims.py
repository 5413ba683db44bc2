"""The claims of the GWQ paper's abstracts (arXiv 2411.00850), checked on a model: a Markdown table
and a reading of it.

    tools/claims [MODEL_FOLDER] [--data FOLDER] [--out docs/claims.md] [--quick]

Columns: the original (F16 export), the published recipe (preset paper) and our default, each at 4
and 3 bits. Everything goes through real files and the runtime. FOLDER holds text/wiki.test.raw,
text/c4_sample_1000.jsonl and tasks/*.jsonl; without it the bundled evaluation text is scored, and
the rows that are missing say so.
"""

import argparse
import json
import logging
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation import tasks
from gwq_export.evaluation.perplexity import PROTOCOLS, score, windows
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.machine import cpu_name
from gwq_export.native import library as native
from studies.measure import speed_ratio
from studies.paths import DATA, REFERENCE, RESULTS, SHARED

TASKS = ("piqa", "arc_easy", "winogrande", "hellaswag_2000")
TYPES = ("gwq4", "gwq3")
COLUMNS = [(preset, type) for preset in ("paper", "default") for type in TYPES]
ROOM = 1 << 29  # bytes of the original's logits that are kept
FIGURES = (
    ("bpw_linear", 1, 2),
    ("outlier_fraction", 0.01, 2),
    ("bytes", 2**20, 2),
    ("peak_rss_bytes", 2**20, 0),
    ("seconds", 1, 1),
)
UNCHECKED = {
    "MMLU, VQA, RefCOCO, Qwen-VL": "vision models are not exported, and MMLU needs models that score above chance on it",
    "better than SpQR": "its code was not run here; of its rule, the rows of the Hessian's diagonal give an idea only",
    "models of billions of parameters": "none is at hand; with one: `tools/claims FOLDER --ctx 2048`",
    "1.2 times the speed": 'the abstracts name neither kernels nor device; the row "faster" is ours on this CPU',
}
BUNDLED = (
    "The bundled model (5.2 million parameters, far from converged, near chance on the tasks) shows that the methods work and "
    "how they rank on it, and nothing about models a hundred times its size."
)
CACHED = "; this model lies in the cache, where fewer bytes gain nothing: README, Measured, has a model of 1.1 billion parameters"


def row(claim, figure, cells, note):
    """A line of the table. cells: texts of the original and of COLUMNS; none where there is nothing
    to print.
    """
    cells = [claim, figure, *(cell or "–" for cell in cells or [""] * (len(COLUMNS) + 1)), note]
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def remembered(predictor):
    """The same Predictor, each input computed once as long as there is room."""
    known, room = {}, ROOM

    def logits(ids, keep, reuse=False):
        nonlocal room
        key = np.asarray(ids, np.int32).tobytes(), keep
        found = known.get(key) or list(predictor.logits(ids, keep, reuse))
        if key not in known and room > 0:
            known[key], room = found, room - sum(part.nbytes for part in found)
        return iter(found)

    return Predictor(predictor.ctx, logits)


class Bench:
    """Exports of one model into one file, each over the last: a loaded model keeps its own bytes."""

    def __init__(self, args, folder):
        self.args, self.out, self.options = args, Path(folder, "model.gguf"), {"ctx": args.ctx}
        if args.calib:
            self.options["calib"] = args.calib

    def export(self, alone=False, **options):
        """(result of export, loaded model); alone: in a process of its own, whose peak memory is
        the export's.
        """
        print(options, file=sys.stderr, flush=True)
        options = self.options | options
        if alone:
            flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
            command = [
                sys.executable,
                "-m",
                "gwq_export.cli",
                "export",
                str(self.args.model),
                "--out",
                str(self.out),
                "--json",
                *flags,
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise GwqError("an export failed, as said above")
            result = json.loads(done.stdout.splitlines()[-1])
        else:
            result = gwq_export.export(self.args.model, self.out, **options)
        return result, gwq_export.load(self.out, threads=self.args.threads)

    def divergences(self, rows, against, seeds=1, **options):
        """KL divergences (seeds,) from the original on windows `rows`, by seed of the calibration."""
        found = []
        for seed in range(seeds):
            _, model = self.export(seed=seed, **options)
            found.append(score(runtime_logits(model), rows, rows.shape[1] - 1, against)["kld_mean"])
        return np.array(found)


def texts(data):
    """[(name, text, how it was made of its file)]"""
    wiki, c4 = data / "text" / "wiki.test.raw", data / "text" / "c4_sample_1000.jsonl"
    if not wiki.is_file() or not c4.is_file():
        return [
            (
                "tests/data/eval.txt",
                (DATA / "eval.txt").read_text(encoding="utf-8"),
                "the bundled text",
            )
        ]
    documents = [
        json.loads(line)["text"]
        for line in c4.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    return [
        (
            "WikiText-2",
            wiki.read_text(encoding="utf-8"),
            "wiki.test.raw as it is, its rows not joined anew as papers do",
        ),
        (
            "C4",
            "\n\n".join(documents),
            f"{len(documents)} documents of the validation part, joined by empty lines",
        ),
    ]


def spread(values):
    """Mean of the values with their range, if there are several."""
    return f"{values.mean():.4f}" + (
        f" ({values.min():.4f}-{values.max():.4f})" if len(values) > 1 else ""
    )


def task_rows(data, limit, original, models):
    """Lines: mean accuracy over the zero-shot tasks, and agreement with the original."""
    if not all((data / "tasks" / f"{name}.jsonl").is_file() for name in TASKS):
        return [
            row(
                "higher zero-shot accuracy",
                "mean of the tasks",
                None,
                f"not measured: no tasks in {data}",
            )
        ]
    found = {
        name: tasks.parse(
            (data / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8"), name, limit
        )
        for name in TASKS
    }
    against = remembered(runtime_logits(original))
    results = [
        [tasks.run(model, items, name, against) for name, items in found.items()]
        for model in models
    ]
    chance = np.mean(
        [np.mean([1 / len(item.requests) for item in items]) for items in found.values()]
    )

    def mean(result, key, error):
        return f"{np.mean([r[key] for r in result]):.1%} ± {math.hypot(*(r[error] for r in result)) / len(result):.1%}"

    note = f"{', '.join(name.removesuffix('_2000') for name in TASKS)}; {limit} items each, no examples; guessing gives {chance:.1%}"
    accuracy = [
        mean(results[0], "acc_against", "acc_error_against"),
        *(mean(r, "acc", "acc_error") for r in results),
    ]
    same = ["100%", *(mean(r, "agreement", "agreement_error") for r in results)]
    return [
        row("higher zero-shot accuracy", "mean of the tasks", accuracy, note),
        row("", "the same answer as the original", same, "differences that accuracy hides"),
    ]


def selection(bench, rows, against, seeds, samples):
    """(lines of the table, {(rule, samples):

    {type: divergences}}): the paper's recipe with its outliers chosen by `rule`.
    """
    cases = {(rule, n): seeds for n in (1, samples) for rule in ("grad", "hessian")} | {
        ("magnitude", 1): 1,
        ("random", 1): 1,
    }
    names = {
        "grad": "by |gradient|",
        "hessian": "by the Hessian's diagonal x weight²",
        "magnitude": "by magnitude",
        "random": "at random",
    }
    lines, rules = [], {}
    for (rule, n), times in cases.items():
        of = {
            t: bench.divergences(
                rows, against, times, preset="paper", type=t, saliency=rule, samples=n
            )
            for t in TYPES
        }
        rules[rule, n], cells = of, ["", *(spread(of[t]) for t in TYPES), *[""] * len(TYPES)]
        drawn = f" from {n} sample{'s' * (n > 1)}" if rule in ("grad", "hessian") else ""
        note = "preset paper otherwise" + (
            f"; mean and range of {times} calibration seeds" if times > 1 else ""
        )
        claim = "" if lines else "gradients locate outliers better than the Hessian"
        lines.append(row(claim, f"KL divergence, outliers {names[rule]}{drawn}", cells, note))
    return lines, rules


def changed(a, b):
    """How far divergences {type: (n,)} are from others, as a phrase."""
    overlap = {
        t: " (ranges overlap)" if a[t].max() >= b[t].min() and b[t].max() >= a[t].min() else ""
        for t in TYPES
    }
    return " and ".join(
        f"{100 * (a[t].mean() / b[t].mean() - 1):+.0f} % at {t}{overlap[t]}" for t in TYPES
    )


def reading(bits, name, quality, rules, one, samples):
    """The sentences below the table, from its figures."""
    over = [
        f"{100 * (q['ppl_ratio'] - 1):+.1f} ± {100 * q['ppl_ratio_error']:.1f} %" for q in quality
    ]
    less = [
        f"{100 * (b['kld_mean'] / a['kld_mean'] - 1):+.0f} %"
        for a, b in zip(quality[:2], quality[2:], strict=True)
    ]
    grad, hessian, grads, hessians, magnitude, random = rules.values()  # as in `selection`
    return [
        f"Perplexity, {name}, over the original's: preset paper {over[0]} at 4 bits, {over[1]} at 3; our default {over[2]}, {over[3]}.",
        f"KL divergence of our default, over that of preset paper: {less[0]} at 4 bits and {less[1]} at 3, "
        f"at {bits[3]} and {bits[4]} bits per weight for {bits[1]} and {bits[2]}.",
        f"KL divergence with outliers by |gradient|, over that by the Hessian's diagonal: {changed(grad, hessian)} from one sample, "
        f"{changed(grads, hessians)} from {samples}. Over that by magnitude: {changed(grad, magnitude)}; over random outliers: "
        f"{changed(grad, random)}. Where this is negative, gradients choose better.",
        f"KL divergence of the paper's recipe from {samples} samples, over that from one: {changed(grads, grad)}; of our default: "
        f"{changed({t: np.array([q['kld_mean']]) for t, q in zip(TYPES, quality[2:], strict=True)}, one)}.",
    ]


def claims(args, folder):
    """The report."""
    bench, bundled = Bench(args, folder), Path(args.model).resolve() == REFERENCE.resolve()
    alone, samples, scored = not args.quick, 2 if args.quick else 32, PROTOCOLS["window"].scored
    made = [bench.export(alone, type="f16")]
    made += [
        bench.export(alone, preset=p, type=t, **({"samples": samples} if p == "default" else {}))
        for p, t in COLUMNS
    ]
    results, (original, *models) = [result for result, _ in made], [model for _, model in made]
    bits, shares, files, peaks, seconds = (
        [f"{r[key] / unit:.{places}f}" for r in results] for key, unit, places in FIGURES
    )
    rows = [
        row(
            "low-bit format",
            "bits per weight of the decoder's linears",
            bits,
            "side-tables included",
        ),
        row("top 1 % stay FP16", "% of these weights", ["", *shares[1:]], ""),
    ]
    given, measured, ctx = texts(args.data), [], min(args.ctx, original.config.ctx)
    for name, text, how in given:
        print("score", name, file=sys.stderr, flush=True)
        windowed, against = (
            windows(original.tokenizer, text, ctx, PROTOCOLS["window"]),
            remembered(runtime_logits(original)),
        )
        windowed = windowed[
            np.linspace(0, len(windowed) - 1, min(args.windows, len(windowed))).round().astype(int)
        ]  # evenly spread
        before = score(against, windowed, scored(ctx))
        found = [score(runtime_logits(m), windowed, scored(ctx), against) for m in models]
        cells = [
            f"{before['ppl']:.2f}",
            *(
                f"{q['ppl']:.2f} (x {q['ppl_ratio']:.4f} ± {q['ppl_ratio_error']:.4f})"
                for q in found
            ),
        ]
        note = f"{before['tokens']} tokens, {len(windowed)} windows of {ctx}; {how}"
        rows.append(row("" if measured else "lower perplexity", name, cells, note))
        measured.append((windowed, against, found))
    if len(given) == 1:
        rows.append(row("", "WikiText-2, C4", None, f"not measured: no texts in {args.data}"))
    windowed, against, quality = measured[0]
    cells = ["0", *(f"{q['kld_mean']:.4f} ± {q['kld_error']:.4f}" for q in quality)]
    rows.append(
        row("", f"KL divergence, {given[0][0]}", cells, "from the original, nats per token")
    )
    rows += task_rows(args.data, args.limit, original, models)
    lines, rules = selection(bench, windowed, against, args.seeds, samples)
    one = {t: bench.divergences(windowed, against, args.seeds, type=t, samples=1) for t in TYPES}
    note = f"else {samples}; the paper's recipe: see above"
    speed = ["1", *(speed_ratio(m, original, args.rounds) for m in models)]
    rows += [
        *lines,
        row(
            "one calibration set is enough",
            "KL divergence, default from 1 sample",
            ["", "", "", *map(spread, one.values())],
            note,
        ),
        row(
            "less memory",
            "file, MiB",
            files,
            "mapped and used as it is; embedding and head are Q8_0",
        ),
        row(
            "",
            "export: peak memory, MiB",
            alone and peaks,
            "a process each, torch included" if alone else "not measured by --quick",
        ),
        row("", "export: seconds", seconds, "the import of torch included"),
        row(
            "faster",
            "decoding, times the original",
            speed,
            f"median, quartiles of {args.rounds} alternating runs" + CACHED * bundled,
        ),
        *(row(claim, "not checked", None, why) for claim, why in UNCHECKED.items()),
    ]
    head = row(
        "claim",
        "figure",
        ["original (F16)", *(f"preset {preset}, {type}" for preset, type in COLUMNS)],
        "how",
    )
    intro = (
        f"What the abstracts of GWQ (arXiv 2411.00850, v1 to v4) state, on {'the bundled model' if bundled else args.model}; written "
        f"by `tools/claims{' --quick' * args.quick}`. Calibration: {args.calib or 'the bundled text'}, samples of {args.ctx} tokens. "
        f"{cpu_name()}, {native.isa()}, {args.threads} thread{'s' * (args.threads > 1)}."
    )
    said = [*reading(bits, given[0][0], quality, rules, one, samples), *[BUNDLED] * bundled]
    table = [head, "|" + " --- |" * (len(COLUMNS) + 4), *rows]
    return "\n".join(
        [
            "# The paper's claims, checked",
            "",
            intro,
            "",
            *table,
            "",
            *(f"* {text}" for text in said),
            "",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model",
        nargs="?",
        default=REFERENCE,
        help="Hugging Face folder (default: the bundled model)",
    )
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="folder of evaluation texts and tasks"
    )
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument(
        "--ctx",
        type=int,
        default=256,
        help="tokens per window and calibration sample: what the model was trained on",
    )
    parser.add_argument(
        "--windows", type=int, default=40, help="how many windows of each text, evenly spread"
    )
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument(
        "--seeds", type=int, default=3, help="calibration seeds for the comparison of outlier rules"
    )
    parser.add_argument("--rounds", type=int, default=15, help="alternating runs for the speed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="file to write (default: docs/claims.md; with --quick none)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few windows, items and samples: seconds, and figures that say nothing",
    )
    args = parser.parse_args()
    if args.quick:
        args.windows, args.limit, args.seeds, args.rounds, args.ctx = 2, 2, 1, 1, min(args.ctx, 128)
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = claims(args, folder)
        if args.out or not args.quick:
            (args.out or RESULTS / "claims.md").write_text(text, encoding="utf-8")
    except (GwqError, OSError) as e:
        sys.exit(f"claims: error: {e}")
    print(text)


if __name__ == "__main__":
    main()
