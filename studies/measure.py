"""Quality and speed through real files and the runtime, as Markdown tables on stdout.

    studies/measure [MODEL_FOLDER] [--text FILE] [--rounds N]

Quality: perplexity by llama.cpp's protocol and KL divergence from the F32 export. Speed: decoding
in alternation with the F16 export (A B A B ...), as the median ratio with its quartiles. The tables
are those of docs/results/quality.md, "Through the files".
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import gwq_export
from gwq_export.bench.tables import table
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.predictors import runtime_logits
from gwq_export.format import types as format
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.library import isa
from studies.paths import DATA, REFERENCE

TYPES = sorted((t.name for t in format.TYPES.values() if t.bits), reverse=True)
OUTLIERS = {  # row -> options of export; the same fraction by every rule
    "none": {"outliers": 0.0},
    "random": {"saliency": "random"},
    "magnitude": {"saliency": "magnitude"},
    "\\|gradient\\|": {"saliency": "grad"},
    "loss (default)": {},
    "preset paper (1 %)": {"preset": "paper"},
}
HEAD = [
    "file",
    "MiB",
    "bits per weight (decoder linears)",
    "perplexity",
    "KL divergence",
    "same top token",
    "decode, times F16 (quartiles)",
]


def show(head, rows):
    print("\n" + table(head, rows), flush=True)


def decode_seconds(model, tokens=48):
    session = model.session(tokens + 1)
    session.forward([1])
    start = time.perf_counter()
    for token in range(tokens):
        session.forward([100 + token])
    return time.perf_counter() - start


def speed_ratio(model, baseline, rounds, tokens=48):
    """Median and quartiles, as text, of baseline time / model time over alternating runs."""
    for warm_up in (model, baseline):
        decode_seconds(warm_up, tokens)
    ratios = []
    for _ in range(rounds):
        before = decode_seconds(baseline, tokens)
        ratios.append(before / decode_seconds(model, tokens))
    median, low, high = np.quantile(ratios, [0.5, 0.25, 0.75])
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def quality(result):
    return [
        f"{result['ppl']:.2f}",
        f"{result['kld_mean']:.4f} ± {result['kld_error']:.4f}",
        f"{result['top1_agreement']:.1%}",
    ]


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", default=REFERENCE)
    p.add_argument("--text", default=DATA / "eval.txt")
    p.add_argument("--calib", help="calibration text (default: the bundled one)")
    p.add_argument(
        "--ctx",
        type=int,
        default=256,
        help="tokens per window and calibration sample (the bundled model was trained on 256)",
    )
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--threads", type=int, default=default_threads())
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(args.text).read_text(encoding="utf-8"), Path(folder))


def measure(args, text, folder):
    """Print both tables: every type, and every rule for outliers."""

    def export(name, **options):
        out = folder / f"{name}.gguf"
        print(f"{name} {options}", file=sys.stderr)
        result = gwq_export.export(args.model, out, ctx=args.ctx, calib=args.calib, **options)
        return result, gwq_export.load(out, threads=args.threads)

    _, reference = export("f32", type="f32")
    result16, f16 = export("f16", type="f16")
    against = runtime_logits(reference)
    before = evaluate(reference, text, args.ctx)
    print(
        f"\n{args.model}, {args.text}: {before['tokens']} tokens scored, windows of {args.ctx}; "
        f"float32 perplexity {before['ppl']:.2f} ± {before['ppl_error']:.2f}. "
        f"{cpu_name()}, {isa()}, {args.threads} threads."
    )

    def row(name, result, bits, model, speed):
        size = f"{result['bytes'] / 2**20:.2f}"
        return [name, size, bits, *quality(evaluate(model, text, args.ctx, against)), speed]

    rows = [row("f16", result16, "16.00 (16.00)", f16, "1")]
    for type in TYPES:
        result, model = export(type, type=type)
        bits = f"{result['bpw']:.2f} ({result['bpw_linear']:.2f})"
        rows.append(row(type, result, bits, model, speed_ratio(model, f16, args.rounds)))
    show(HEAD, rows)

    rows = []
    for name, options in OUTLIERS.items():
        cells = [name]
        for type in TYPES:
            result, model = export(f"{type}-{len(rows)}", type=type, **options)
            found = evaluate(model, text, args.ctx, against)
            cells.append(f"{result['bpw_linear']:.2f}")
            cells.append(f"{found['ppl']:.2f}")
            cells.append(f"{found['kld_mean']:.4f}")
        rows.append(cells)
    columns = [f"{type} {figure}" for type in TYPES for figure in ("bpw", "PPL", "KLD")]
    show(["FP16 outliers", *columns], rows)


if __name__ == "__main__":
    main()
