"""The README's tables, as Markdown on stdout.

    tools/measure [MODEL_FOLDER] [--text FILE] [--rounds N]

Quality: perplexity by llama.cpp's protocol and KL divergence from the F32 export, through real
files and the runtime. Speed: decoding in alternation with the F16 export (A B A B ...), as the
median ratio with its quartiles.
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
    """(median, lower quartile, upper quartile) of baseline time / model time over alternating runs."""
    decode_seconds(model, tokens), decode_seconds(baseline, tokens)
    ratios = []
    for _ in range(rounds):
        b, m = decode_seconds(baseline, tokens), decode_seconds(model, tokens)
        ratios.append(b / m)
    q = np.quantile(ratios, [0.5, 0.25, 0.75])
    return f"{q[0]:.2f} ({q[1]:.2f}-{q[2]:.2f})"


def quality(result):
    return [
        f"{result['ppl']:.2f}",
        f"{result['kld_mean']:.4f} ± {result['kld_error']:.4f}",
        f"{result['top1_agreement']:.1%}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=REFERENCE)
    parser.add_argument("--text", default=DATA / "eval.txt")
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument(
        "--ctx",
        type=int,
        default=256,
        help="tokens per window and calibration sample (the bundled model was trained on 256)",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(args.text).read_text(encoding="utf-8"), Path(folder))


def measure(args, text, folder):

    def export(name, **options):
        out = folder / f"{name}.gguf"
        print(f"{name} {options}", file=sys.stderr)
        return gwq_export.export(
            args.model, out, ctx=args.ctx, calib=args.calib, **options
        ), gwq_export.load(out, threads=args.threads)

    _, reference = export("f32", type="f32")
    result16, f16 = export("f16", type="f16")
    against = runtime_logits(reference)
    before = evaluate(reference, text, args.ctx)
    print(
        f"\n{args.model}, {args.text}: {before['tokens']} tokens scored, windows of {args.ctx}; float32 perplexity "
        f"{before['ppl']:.2f} ± {before['ppl_error']:.2f}. {cpu_name()}, {isa()}, {args.threads} threads."
    )

    head = [
        "file",
        "MiB",
        "bits per weight (decoder linears)",
        "perplexity",
        "KL divergence",
        "same top token",
        "decode, times F16 (quartiles)",
    ]
    rows = [
        [
            "f16",
            f"{result16['bytes'] / 2**20:.2f}",
            "16.00 (16.00)",
            *quality(evaluate(f16, text, args.ctx, against)),
            "1",
        ]
    ]
    for type in TYPES:
        result, model = export(type, type=type)
        rows.append(
            [
                type,
                f"{result['bytes'] / 2**20:.2f}",
                f"{result['bpw']:.2f} ({result['bpw_linear']:.2f})",
                *quality(evaluate(model, text, args.ctx, against)),
                speed_ratio(model, f16, args.rounds),
            ]
        )
    show(head, rows)

    rows = []
    for name, options in OUTLIERS.items():
        row = [name]
        for type in TYPES:
            result, model = export(f"{type}-{len(rows)}", type=type, **options)
            found = evaluate(model, text, args.ctx, against)
            row += [
                f"{result['bpw_linear']:.2f}",
                f"{found['ppl']:.2f}",
                f"{found['kld_mean']:.4f}",
            ]
        rows.append(row)
    show(["FP16 outliers", *(f"{t} {what}" for t in TYPES for what in ("bpw", "PPL", "KLD"))], rows)


if __name__ == "__main__":
    main()
