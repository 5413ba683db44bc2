"""Exports, measurements and lines of the table of the paper's claims."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation import tasks
from gwq_export.evaluation.perplexity import PROTOCOLS, score, windows
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from studies.paths import DATA

TASKS = ("piqa", "arc_easy", "winogrande", "hellaswag_2000")
TYPES = ("gwq4", "gwq3")
COLUMNS = [(preset, type) for preset in ("paper", "default") for type in TYPES]
ROOM = 1 << 29  # bytes of the original's logits that are kept
RULES = {  # rule for outliers -> its words in the table
    "grad": "by |gradient|",
    "hessian": "by the Hessian's diagonal x weight²",
    "magnitude": "by magnitude",
    "random": "at random",
}
CALIBRATED = ("grad", "hessian")  # those that depend on the calibration samples


def row(claim, figure, cells, note):
    """A line of the table.

    cells: texts of the original and of COLUMNS; none where there is nothing to print.
    """
    cells = cells or [""] * (len(COLUMNS) + 1)
    cells = [claim, figure, *(cell or "–" for cell in cells), note]
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def spread(values):
    """Mean of the values with their range, if there are several."""
    if len(values) == 1:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f} ({values.min():.4f}-{values.max():.4f})"


def remembered(predictor):
    """The same Predictor, each input computed once as long as there is room."""
    known = {}
    room = ROOM

    def logits(ids, keep, reuse=False):
        nonlocal room
        key = np.asarray(ids, np.int32).tobytes(), keep
        found = known.get(key) or list(predictor.logits(ids, keep, reuse))
        if key not in known and room > 0:
            known[key] = found
            room -= sum(part.nbytes for part in found)
        return iter(found)

    return Predictor(predictor.ctx, logits)


class Bench:
    """Exports of one model into one file, each over the last; loaded models keep their bytes."""

    def __init__(self, args, folder):
        self.args = args
        self.out = Path(folder, "model.gguf")
        self.options = {"ctx": args.ctx}
        if args.calib:
            self.options["calib"] = args.calib

    def export(self, alone=False, **options):
        """(result of export, loaded model).

        alone: in a process of its own, whose peak memory is the export's.
        """
        print(options, file=sys.stderr, flush=True)
        options = self.options | options
        if alone:
            result = self._export_alone(options)
        else:
            result = gwq_export.export(self.args.model, self.out, **options)
        return result, gwq_export.load(self.out, threads=self.args.threads)

    def _export_alone(self, options):
        command = [sys.executable, "-m", "gwq_export.cli", "export", str(self.args.model)]
        command += ["--out", str(self.out), "--json"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise GwqError("an export failed, as said above")
        return json.loads(done.stdout.splitlines()[-1])

    def divergences(self, rows, against, seeds=1, **options):
        """KL divergences (seeds,) from the original on windows `rows`, by calibration seed."""
        found = []
        for seed in range(seeds):
            _, model = self.export(seed=seed, **options)
            found.append(score(runtime_logits(model), rows, rows.shape[1] - 1, against)["kld_mean"])
        return np.array(found)


def texts(data):
    """[(name, text, how it was made of its file)]"""
    wiki = data / "text" / "wiki.test.raw"
    c4 = data / "text" / "c4_sample_1000.jsonl"
    if not wiki.is_file() or not c4.is_file():
        bundled = (DATA / "eval.txt").read_text(encoding="utf-8")
        return [("tests/data/eval.txt", bundled, "the bundled text")]
    lines = c4.read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines if line.strip()]
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


def scored_text(original, models, text, ctx, count):
    """(windows, Predictor of the original, its figures, [figures of a model]) of a text.

    count: how many windows, evenly spread.
    """
    protocol = PROTOCOLS["window"]
    rows = windows(original.tokenizer, text, ctx, protocol)
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    against = remembered(runtime_logits(original))
    before = score(against, rows, protocol.scored(ctx))
    found = [score(runtime_logits(m), rows, protocol.scored(ctx), against) for m in models]
    return rows, against, before, found


def task_rows(data, limit, original, models):
    """Lines: mean accuracy over the zero-shot tasks, and agreement with the original."""
    files = {name: data / "tasks" / f"{name}.jsonl" for name in TASKS}
    if not all(file.is_file() for file in files.values()):
        note = f"not measured: no tasks in {data}"
        return [row("higher zero-shot accuracy", "mean of the tasks", None, note)]
    items = {
        name: tasks.parse(file.read_text(encoding="utf-8"), name, limit)
        for name, file in files.items()
    }
    against = remembered(runtime_logits(original))
    results = [
        [tasks.run(model, found, name, against) for name, found in items.items()]
        for model in models
    ]
    guesses = [np.mean([1 / len(item.requests) for item in found]) for found in items.values()]

    def mean(result, key, error):
        value = np.mean([r[key] for r in result])
        return f"{value:.1%} ± {math.hypot(*(r[error] for r in result)) / len(result):.1%}"

    names = ", ".join(name.removesuffix("_2000") for name in TASKS)
    note = f"{names}; {limit} items each, no examples; guessing gives {np.mean(guesses):.1%}"
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
    """The paper's recipe with its outliers chosen by several rules.

    Returns (lines of the table, {(rule, samples): {type: divergences}}).
    """
    cases = {(rule, n): seeds for n in (1, samples) for rule in CALIBRATED}
    cases |= {("magnitude", 1): 1, ("random", 1): 1}
    lines = []
    found = {}
    for (rule, n), times in cases.items():
        options = {"preset": "paper", "saliency": rule, "samples": n}
        by_type = {t: bench.divergences(rows, against, times, type=t, **options) for t in TYPES}
        found[rule, n] = by_type
        figure = f"KL divergence, outliers {RULES[rule]}"
        if rule in CALIBRATED:
            figure += " from 1 sample" if n == 1 else f" from {n} samples"
        note = "preset paper otherwise"
        if times > 1:
            note += f"; mean and range of {times} calibration seeds"
        claim = "" if lines else "gradients locate outliers better than the Hessian"
        cells = ["", *(spread(by_type[t]) for t in TYPES), *[""] * len(TYPES)]
        lines.append(row(claim, figure, cells, note))
    return lines, found


def changed(a, b):
    """How far divergences {type: (n,)} are from others, as a phrase."""

    def phrase(type):
        these, those = a[type], b[type]
        overlap = these.max() >= those.min() and those.max() >= these.min()
        percent = f"{100 * (these.mean() / those.mean() - 1):+.0f} % at {type}"
        return f"{percent} (ranges overlap)" if overlap else percent

    return " and ".join(map(phrase, TYPES))


def reading(bits, name, quality, rules, one, samples):
    """The sentences below the table, from its figures.

    bits: bits per weight of the original and of COLUMNS, as texts. name: of the text. quality:
    figures of COLUMNS on it. rules: of `selection`. one: {type: divergences} of our default from
    one sample.
    """
    over = [
        f"{100 * (q['ppl_ratio'] - 1):+.1f} ± {100 * q['ppl_ratio_error']:.1f} %" for q in quality
    ]
    less = [
        f"{100 * (b['kld_mean'] / a['kld_mean'] - 1):+.0f} %"
        for a, b in zip(quality[:2], quality[2:], strict=True)
    ]
    ours = {t: np.array([q["kld_mean"]]) for t, q in zip(TYPES, quality[2:], strict=True)}
    # in the order of `selection`
    grad, hessian, many_grad, many_hessian, magnitude, random = rules.values()
    return [
        f"Perplexity, {name}, over the original's: preset paper {over[0]} at 4 bits, {over[1]} at "
        f"3; our default {over[2]}, {over[3]}.",
        f"KL divergence of our default, over that of preset paper: {less[0]} at 4 bits and "
        f"{less[1]} at 3, at {bits[3]} and {bits[4]} bits per weight for {bits[1]} and {bits[2]}.",
        "KL divergence with outliers by |gradient|, over that by the Hessian's diagonal: "
        f"{changed(grad, hessian)} from one sample, {changed(many_grad, many_hessian)} from "
        f"{samples}. Over that by magnitude: {changed(grad, magnitude)}; over random outliers: "
        f"{changed(grad, random)}. Where this is negative, gradients choose better.",
        f"KL divergence of the paper's recipe from {samples} samples, over that from one: "
        f"{changed(many_grad, grad)}; of our default: {changed(ours, one)}.",
    ]
