"""The claims of the GWQ paper's abstracts (arXiv 2411.00850), checked on a model: a Markdown table and a reading of it.

    tools/claims [MODEL_FOLDER] [--data FOLDER] [--out docs/claims.md] [--quick]

Columns: the original (F16 export), the published recipe (preset paper) and our default, each at 4 and 3 bits. Everything
goes through real files and the runtime. FOLDER holds text/wiki.test.raw, text/c4_sample_1000.jsonl and tasks/*.jsonl;
without it the bundled evaluation text is scored, and the rows that are missing say so.
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
from measure import DATA, speed_ratio

import gwq_export
from gwq_export import GwqError, native, tasks
from gwq_export.bench import cpu_name
from gwq_export.evaluate import PROTOCOLS, score, windows
from gwq_export.predict import Predictor, runtime_logits

REFERENCE = DATA / "gwq-reference"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"  # as in tests/conftest.py
TASKS = ("piqa", "arc_easy", "winogrande", "hellaswag_2000")
TYPES = ("gwq4", "gwq3")
COLUMNS = [(preset, type) for preset in ("paper", "default") for type in TYPES]
NONE, ROOM = "–", 1 << 29  # a cell without figure; bytes of the original's logits that are kept
UNCHECKED = {
    "MMLU, VQA, RefCOCO and Qwen-VL results": "no: needs vision models, which this tool does not export, and models that score above chance",
    "lower perplexity than SpQR, head to head": "no: SpQR's code needs its own GPU kernels and models of its size; "
    "its kind of rule is the row of the Hessian diagonal",
    "results on models of billions of parameters": "no: none is at hand here; give a folder: `tools/claims MODEL --ctx 2048`",
    "1.2 times the original's speed on their GPU": "no: neither their kernels nor their device are known; our CPU figure is the row of decoding",
}


def remembered(predictor):
    """The same Predictor, each input computed once as long as there is room."""
    known, room = {}, ROOM

    def logits(ids, keep, reuse=False):
        nonlocal room
        key = np.asarray(ids, np.int32).tobytes(), keep
        if key in known:
            return iter(known[key])
        found = list(predictor.logits(ids, keep, reuse))
        room -= sum(part.nbytes for part in found)
        if room > 0:
            known[key] = found
        return iter(found)

    return Predictor(predictor.ctx, logits)


class Bench:
    """Exports of one model, and what they score. Files live in `folder`."""

    def __init__(self, args, folder):
        self.args, self.folder, self.count = args, Path(folder), 0
        self.options = {"ctx": args.ctx} | ({"calib": args.calib} if args.calib else {})

    def export(self, alone=False, **options):
        """(result of export, loaded model); alone: in a process of its own, whose peak memory is the export's."""
        print(options, file=sys.stderr, flush=True)
        self.count, options = self.count + 1, self.options | options
        out = self.folder / f"{self.count}.gguf"
        if alone:
            flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
            command = [sys.executable, "-m", "gwq_export.cli", "export", str(self.args.model), "--out", str(out), "--json", *flags]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise GwqError(done.stderr.strip().splitlines()[-1])
            result = json.loads(done.stdout.strip().splitlines()[-1])
        else:
            result = gwq_export.export(self.args.model, out, **options)
        return result, gwq_export.load(out, threads=self.args.threads)

    def divergences(self, rows, against, seeds=1, **options):
        """KL divergences (seeds,) from the original on windows `rows`, by seed of the calibration."""
        found = []
        for seed in range(seeds):
            _, model = self.export(seed=seed, **options)
            found.append(score(runtime_logits(model), rows, rows.shape[1] - 1, against)["kld_mean"])
        return np.array(found)


def some_windows(tokenizer, text, ctx, limit):
    """At most `limit` windows (n, ctx) of the text, evenly spread."""
    rows = windows(tokenizer, text, ctx, PROTOCOLS["window"])
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)]


def texts(data):
    """[(name, text, how it was made of its file)]"""
    wiki, c4 = data / "text" / "wiki.test.raw", data / "text" / "c4_sample_1000.jsonl"
    if not wiki.is_file() or not c4.is_file():
        return [("tests/data/eval.txt", (DATA / "eval.txt").read_text(encoding="utf-8"), "the bundled text")]
    documents = [json.loads(line)["text"] for line in c4.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [("WikiText-2", wiki.read_text(encoding="utf-8"), "wiki.test.raw as it is, its rows not joined anew as papers do"),
            ("C4", "\n\n".join(documents), f"{len(documents)} documents of the validation part, joined by empty lines")]  # fmt: skip


def spread(values):
    """Mean of the values with their range, if there are several."""
    return f"{values.mean():.4f}" + (f" ({values.min():.4f}-{values.max():.4f})" if len(values) > 1 else "")


def task_rows(data, limit, original, models):
    """Rows of the zero-shot tasks: mean accuracy over the tasks, and agreement with the original; and the chance level."""
    found = {name: tasks.parse((data / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8"), name, limit) for name in TASKS}
    against, results = remembered(runtime_logits(original)), []
    for column, model in models.items():
        print("tasks", column, file=sys.stderr, flush=True)
        results.append([tasks.run(model, items, name, against) for name, items in found.items()])

    def mean(result, key, error):
        return f"{np.mean([r[key] for r in result]):.1%} ± {math.hypot(*(r[error] for r in result)) / len(result):.1%}"

    chance = float(np.mean([1 / len(item.requests) for items in found.values() for item in items]))
    first = [mean(results[0], "acc_against", "acc_error_against"), *(mean(r, "acc", "acc_error") for r in results)]
    note = f"{', '.join(name.removesuffix('_2000') for name in TASKS)}, {limit} items each, no examples; guessing gives {chance:.1%}"
    rows = [["zero-shot accuracy, mean of the tasks", *first, note],
            ["the same answer as the original", "100%", *(mean(r, "agreement", "agreement_error") for r in results), "tells more than accuracy"]]  # fmt: skip
    return rows, chance


def selection(bench, rows, against, seeds, samples):
    """{label: {type: divergences}} of the paper's recipe with its outliers chosen by several rules, from 1 or more samples."""
    cases = {
        "\\|gradient\\|, the paper's": ({"saliency": "grad"}, seeds),
        "Hessian diagonal (times weight², a layer's output error)": ({"saliency": "hessian"}, seeds),
        "magnitude": ({"saliency": "magnitude"}, 1),
        "random": ({"saliency": "random"}, 1),
        f"\\|gradient\\|, {samples} samples": ({"saliency": "grad", "samples": samples}, 1),
        f"Hessian diagonal, {samples} samples": ({"saliency": "hessian", "samples": samples}, 1),
    }
    return {label: {type: bench.divergences(rows, against, n, preset="paper", type=type, **options) for type in TYPES}
            for label, (options, n) in cases.items()}  # fmt: skip


def verdict(a, b):
    """How a rule's divergences {type: (n,)} stand to another's: a phrase for each width."""
    out = []
    for type in TYPES:
        apart = a[type].max() < b[type].min() or b[type].max() < a[type].min()
        percent = 100 * (a[type].mean() / b[type].mean() - 1)
        out.append(f"{percent:+.0f} % at {type}" + ("" if apart else " (within the spread)"))
    return " and ".join(out)


def reading(found, rules, samples, quality, chance, bundled):
    """The sentences below the table, from the figures in it."""
    name, labels = next(iter(quality)), list(rules)
    ours, theirs = quality[name][len(TYPES) :], quality[name][: len(TYPES)]
    said = [
        "Perplexity on {}, over the original: preset paper {}; our default {} at {}.".format(
            name, *(", ".join(f"{100 * (q['ppl_ratio'] - 1):+.1f} %" for q in part) for part in (theirs, ours)), " and ".join(TYPES)),
        "KL divergence of our default against preset paper: {}, with {} against {} bits per weight.".format(
            *(", ".join(text) for text in ([f"{100 * (o['kld_mean'] / t['kld_mean'] - 1):+.0f} %" for o, t in zip(ours, theirs, strict=True)],
              *([f"{r['bpw_linear']:.2f}" for r in part] for part in (found[3:], found[1:3]))))),
        f"Outliers by gradient instead of Hessian diagonal change the divergence by {verdict(rules[labels[0]], rules[labels[1]])} "
        f"with one sample, {verdict(rules[labels[4]], rules[labels[5]])} with {samples}; "
        f"instead of magnitude, by {verdict(rules[labels[0]], rules[labels[2]])}; instead of random ones, by {verdict(rules[labels[0]], rules[labels[3]])}.",
        f"{samples} samples instead of one change the paper's recipe by {verdict(rules[labels[4]], rules[labels[0]])}.",
    ]  # fmt: skip
    if chance:
        said.append(f"The tasks are scored against {chance:.1%} for guessing: where the original is near that, accuracy shows no difference "
                    "between files, and only the agreement does.")  # fmt: skip
    if bundled:
        said.append("The bundled model has 5.2 million parameters, is far from converged and scores near chance: all this shows that the "
                    "methods work and how they rank on it, and says nothing about models a hundred times its size.")  # fmt: skip
    return said


def claims(args, folder):
    """The lines of the report."""
    bench, bundled, samples = Bench(args, folder), Path(args.model).resolve() == REFERENCE.resolve(), 2 if args.quick else 32
    protocol, alone = PROTOCOLS["window"], not args.quick
    original_result, original = bench.export(alone, type="f16")
    made = {(p, t): bench.export(alone, preset=p, type=t, **({"samples": 2} if args.quick and p == "default" else {})) for p, t in COLUMNS}
    found, models = [original_result, *(r for r, _ in made.values())], {key: model for key, (_, model) in made.items()}
    ctx = min(args.ctx, original.config.ctx)
    rows = [["decoder linears, bits per weight", *(f"{r['bpw_linear']:.2f}" for r in found), "with side-tables"],
            ["outliers in FP16", NONE, *(f"{r['outlier_fraction']:.2%}" for r in found[1:]), "\"top 1 %\""]]  # fmt: skip
    given, quality, reference = texts(args.data), {}, None
    for name, text, how in given:
        windowed = some_windows(original.tokenizer, text, ctx, args.windows)
        against = remembered(runtime_logits(original))
        before = score(against, windowed, protocol.scored(ctx))
        quality[name] = [score(runtime_logits(m), windowed, protocol.scored(ctx), against) for m in models.values()]
        print("scored", name, file=sys.stderr, flush=True)
        cells = [f"{q['ppl']:.2f} (x {q['ppl_ratio']:.4f} ± {q['ppl_ratio_error']:.4f})" for q in quality[name]]
        rows.append([f"{name} perplexity", f"{before['ppl']:.2f}", *cells, f"{before['tokens']} tokens in {len(windowed)} windows of {ctx}; {how}"])
        reference = reference or (windowed, against)
    first = given[0][0]
    cells = [f"{q['kld_mean']:.4f} ± {q['kld_error']:.4f}" for q in quality[first]]
    rows.append([f"KL divergence on {first}", "0", *cells, "from the original, nats per token"])
    if len(given) == 1:
        rows.append(["WikiText-2 and C4 perplexity", *[NONE] * 5, f"not measured: no texts in {args.data}"])
    chance = None
    if all((args.data / "tasks" / f"{name}.jsonl").is_file() for name in TASKS):
        more, chance = task_rows(args.data, args.limit, original, models)
        rows += more
    else:
        rows.append(["zero-shot tasks", *[NONE] * 5, f"not measured: no tasks in {args.data}"])
    rules = selection(bench, *reference, args.seeds, samples)
    for label, of in rules.items():
        seeds = f"; {len(of[TYPES[0]])} calibration seeds, mean and range" if len(of[TYPES[0]]) > 1 else ""
        rows.append([f"KL divergence, outliers by {label}", NONE, *(spread(of[t]) for t in TYPES), NONE, NONE, f"preset paper otherwise{seeds}"])
    one = [spread(bench.divergences(*reference, type=t, samples=1)) for t in TYPES]
    rows += [
        ["KL divergence, one calibration sample", NONE, *[NONE] * len(TYPES), *one, f"our default takes {samples}"],
        ["export: peak memory, MiB", *(f"{r['peak_rss_bytes'] / 2**20:.0f}" if alone else NONE for r in found), "each in a process of its own, torch included"],
        ["export: seconds", *(f"{r['seconds']:.1f}" for r in found), "with the import of torch"],
        ["file, MiB (times smaller)", *(f"{r['bytes'] / 2**20:.2f} ({found[0]['bytes'] / r['bytes']:.2f})" for r in found),
         "\"less memory\": the file is mapped and used as it is; embedding and head are Q8_0"],
        ["decode, times the original", "1", *(speed_ratio(m, original, args.rounds) for m in models.values()),
         "median, quartiles of alternating runs" + ("; this model lies in the cache, where fewer bytes gain nothing: "
         "see README, Measured, for a model of 1.1 billion parameters" if bundled else "")],
        *([claim, *[NONE] * 5, why] for claim, why in UNCHECKED.items()),
    ]  # fmt: skip
    head = ["claim or figure", "original (F16)", *(f"{'preset paper' if p == 'paper' else 'our default'}, {t}" for p, t in COLUMNS), "how, or why not"]
    lines = ["# The paper's claims, checked", "",
             f"Written by `tools/claims{' --quick' if args.quick else ''}` on `{'the bundled model' if bundled else args.model}`: what the abstracts of "
             "arXiv 2411.00850 (v1 to v4) state, as far as it can be checked here. "
             f"Calibration: {args.calib or 'the bundled text'}, samples of {args.ctx} tokens. "
             f"{cpu_name()}, {native.isa()}, {args.threads} thread{'s' * (args.threads > 1)}.", "",
             "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]  # fmt: skip
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, "", "## Reading", "", *(f"* {text}" for text in reading(found, rules, samples, quality, chance, bundled)), ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=REFERENCE, help="Hugging Face folder (default: the bundled model)")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of evaluation texts and tasks")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--ctx", type=int, default=256, help="tokens per window and calibration sample: what the model was trained on")
    parser.add_argument("--windows", type=int, default=40, help="how many windows of each text, evenly spread")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds for the comparison of outlier rules")
    parser.add_argument("--rounds", type=int, default=15, help="alternating runs for the speed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write (default: docs/claims.md; with --quick none)")
    parser.add_argument("--quick", action="store_true", help="a few windows, items and samples: seconds, and figures that say nothing")
    args = parser.parse_args()
    if args.quick:
        args.windows, args.limit, args.seeds, args.rounds, args.ctx = 2, 2, 1, 1, min(args.ctx, 128)
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = "\n".join(claims(args, folder))
        out = args.out or (None if args.quick else Path(__file__).parents[1] / "docs" / "claims.md")
        if out:
            out.write_text(text, encoding="utf-8")
    except (GwqError, OSError) as e:
        sys.exit(f"claims: error: {e}")
    print(text)


if __name__ == "__main__":
    main()
