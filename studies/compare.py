"""Quality of llama.cpp's own types, each "pure" on every decoder linear, and of our files beside
them, as Markdown on stdout.

    tools/compare [MODEL_FOLDER] [--text FILE] [--calib FILE] [--types q4_0,iq4_nl] [--bpw 4.5,4.25]
    [--paper] [--gguf OURS.gguf ...] tools/compare MODEL_FOLDER --halves FILE      calibration text:
    the first half of FILE; evaluation text: the second tools/compare --interop     llama.cpp's
    types without, with its own and with our importance, beside our files of its types

Stock weights are quantized and decoded again by llama.cpp's code (tools/stock.py), with its
importance vector from the same calibration tokens that `gwq-export` would use; ours are decoded
from the file. Everything is then computed in float32 by transformers, with the float32 embedding
and output head in every row, so that rows differ by nothing but the decoder's linear layers and,
below 4 bits, our tuned norms. Bits per weight are of these layers, with the side-tables. Perplexity
is by llama.cpp's protocol.
"""

import argparse
import copy
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.spec import gguf_name
from gwq_export.calibration.text import draw_calibration
from gwq_export.evaluation.perplexity import PROTOCOLS, score, windows
from gwq_export.evaluation.predictors import Predictor, module_logits
from gwq_export.hf.source import Source
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies import ggml
from studies.oracle import dequantized_model, original_model
from studies.paths import DATA, REFERENCE
from studies.text_halves import halves

TYPES = "q4_0,iq4_nl,q4_k,iq4_xs,q3_k,iq3_s,iq3_xxs,q2_k,iq2_s,iq2_xs"


INTEROP = [
    {"stock": "q4_0"},
    {"stock": "iq4_nl"},
    {"type": "bridge"},
    {"type": "bridge", "outliers": 0.01},
]


def written_importance(source, samples, options):
    """{Hugging Face name: (cols,)} as it is in the file of gwq-export --imatrix."""
    with tempfile.TemporaryDirectory() as folder:
        gwq_export.export(
            source.folder,
            Path(folder, "f16.gguf"),
            type="f16",
            imatrix=Path(folder, "i.gguf"),
            samples=samples,
            **options,
        )
        tensors = gwq_export.open_gguf(Path(folder, "i.gguf")).tensors
        return {
            hf: np.ravel(tensors[f"{n}.in_sum2"].dequantize() / tensors[f"{n}.counts"].dequantize())
            for hf, n in linears(source)
        }


def linears(source):
    """[(Hugging Face name, GGUF name)] of the decoder's linear weights."""
    return [
        (hf, gguf_name(i, row))
        for i in range(source.layers)
        for row, hf in source.block(i).items()
        if row.linear
    ]


def shape(source, hf):
    """(rows, columns) of a decoder's linear weight."""
    return next(
        tuple(source.dims[d] for d in row.shape)
        for i in range(source.layers)
        for row, name in source.block(i).items()
        if name == hf
    )


def stock_model(original, source, name, importance):
    """(model with every decoder linear as ggml type `name` has it, bits per weight of these)."""
    model, nbytes, weights = copy.deepcopy(original), 0, 0
    for hf, _ in linears(source):
        weight = model.get_parameter(hf)
        weight.data = torch.from_numpy(
            np.ascontiguousarray(
                ggml.fake_quantize(name, weight.detach().numpy(), importance.get(hf))
            )
        )
        nbytes, weights = nbytes + ggml.nbytes(name, *weight.shape), weights + weight.numel()
    return model, 8 * nbytes / weights


def file_model(source, path):
    """(model with the decoder of one of our files, its types, bits per weight of its linears with
    their side-tables).
    """
    tensors, names = gwq_export.open_gguf(path).tensors, [name for _, name in linears(source)]
    nbytes = sum(
        t.nbytes for t in tensors.values() if t.name.startswith(tuple(names))
    )  # companions are called <matrix>.<what>
    kinds = "+".join(sorted({tensors[n].type.name for n in names}))
    return (
        dequantized_model(source.folder, path, ends=False),
        kinds,
        8 * nbytes / sum(np.prod(shape(source, hf)) for hf, _ in linears(source)),
    )


def at_bits(model, out, bits, **options):
    """Export within a budget, so that the decoder's linears take at most `bits` per weight,
    embedding and head Q8_0.
    """
    source = Source(Path(model))
    linear = sum(np.prod(shape(source, hf)) for hf, _ in linears(source))
    options = options | {
        "tensor_type": ["token_embd=q8_0"] + ["^output.weight=q8_0"] * (not source.tied)
    }
    plain = gwq_export.export(
        model, out, type="gwq4", preset="paper", outliers=0, **options | {"samples": 1}
    )
    size = plain["bytes"] + (bits - plain["bpw_linear"]) * linear / 8
    while True:
        found = gwq_export.export(model, out, size=int(size), **options)
        if found["bpw_linear"] <= bits:
            return found
        size -= (found["bpw_linear"] - bits) * linear / 8 + 64


def cached(predictor):
    """The same Predictor, each window computed once."""
    known = {}

    def logits(ids, keep, reuse=False):
        key = np.asarray(ids).tobytes(), keep
        if key not in known:
            known[key] = list(predictor.logits(ids, keep))
        return iter(known[key])

    return Predictor(predictor.ctx, logits)


def quality(model, reference, rows):
    """gwq_export.evaluation.perplexity's figures of a transformers model on windows (n, ctx).

    reference: `cached` one of the original.
    """
    return score(
        module_logits(model), rows, PROTOCOLS["llama.cpp"].scored(rows.shape[1]), reference
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=REFERENCE, help="Hugging Face folder")
    parser.add_argument("--text", default=DATA / "eval.txt", help="evaluation text")
    parser.add_argument(
        "--windows", type=int, default=60, help="how many windows of it, evenly spread; 0 for all"
    )
    parser.add_argument("--types", default=TYPES, help="ggml types; '' for none")
    parser.add_argument(
        "--no-importance",
        action="store_true",
        help="ggml types without importance vector, as from a plain llama-quantize",
    )
    parser.add_argument(
        "--bpw",
        default="",
        help="our files of that many bits per weight of the decoder's linears: 4.5,4.25",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="preset paper at 4, 3 and 2 bits, and our file of as many bytes each",
    )
    parser.add_argument(
        "--interop",
        action="store_true",
        help="what we give to llama.cpp: our importance, --stock, bridge files",
    )
    parser.add_argument(
        "--gguf", nargs="+", default=[], metavar="FILE", help="our files of the same model"
    )
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument(
        "--halves",
        metavar="FILE",
        help="in the place of --text and --calib: the second and the first half of FILE",
    )
    parser.add_argument("--samples", type=int, default=96, help="calibration windows")
    parser.add_argument(
        "--ctx", type=int, default=512, help="tokens per window and calibration sample"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    try:
        if args.halves:
            args.calib, args.text = halves(args.halves)
        compare(args)
    except (GwqError, OSError) as e:
        sys.exit(f"compare: error: {e}")


def compare(args):
    source = Source(Path(args.model))
    ctx = min(args.ctx, source.integer("max_position_embeddings"))
    tokenizer = Tokenizer(to_metadata(source.folder, source.vocab))
    rows = windows(tokenizer, Path(args.text).read_text(encoding="utf-8"), ctx)
    if 0 < args.windows < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, args.windows).round().astype(int)]
    original = original_model(source.folder)
    reference = cached(module_logits(original))
    calibration = (
        None
        if args.no_importance
        else draw_calibration(tokenizer, args.calib, args.samples, ctx, args.seed)
    )
    importance = ggml.importance(original, calibration.tokens) if calibration else {}
    before = score(reference, rows, PROTOCOLS["llama.cpp"].scored(ctx))
    print(
        f"{args.model}, {args.text}: {len(rows)} windows of {ctx}, {before['tokens']} tokens scored; float32 perplexity "
        f"{before['ppl']:.2f} ± {before['ppl_error']:.2f}. Importance: "
        f"{'{} x {} tokens'.format(*calibration.tokens.shape) if calibration else 'none'} (--seed {args.seed}). "
        "Embedding and head float32.\n"
    )
    print(
        "| decoder linears | bits per weight | perplexity | KL divergence | same top token |\n|"
        + " --- |" * 5
    )
    found = []

    def row(name, model, bits, start):
        result = {"name": name, "bpw_linear": bits} | quality(model, reference, rows)
        found.append(result)
        print(
            f"| {name} | {bits:.3f} | {result['ppl']:.2f} | {result['kld_mean']:.5f} ± {result['kld_error']:.5f} | "
            f"{result['top1_agreement']:.2%} |",
            flush=True,
        )
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)

    options = {"ctx": ctx, "calib": args.calib, "seed": args.seed}
    if args.interop:
        vectors = {
            ", no imatrix": {},
            ", imatrix": importance,
            ", imatrix by gwq-export": written_importance(source, args.samples, options),
        }
    else:
        vectors = {"": importance}
    for name in filter(None, args.types.split(",")):
        start, narrow = (
            time.monotonic(),
            [hf for hf, _ in linears(source) if not ggml.fits(name, shape(source, hf)[1])],
        )
        if narrow:
            print(
                f"{name}: left out, its blocks do not divide the width of {len(narrow)} linears such as {narrow[0]}",
                file=sys.stderr,
            )
            continue
        for label, vector in vectors.items():
            row(f"{name.lower()}{label}", *stock_model(original, source, name, vector), start)

    def ours(name, path):
        start = time.monotonic()
        model, kinds, bits = file_model(source, path)
        row(f"{name} ({kinds})", model, bits, start)
        return bits

    with tempfile.TemporaryDirectory() as folder:
        out, wanted = (
            Path(folder, "ours.gguf"),
            [float(b) for b in filter(None, args.bpw.split(","))],
        )
        for kind in ("gwq4", "gwq3", "gwq2") if args.paper else ():
            gwq_export.export(args.model, out, type=kind, preset="paper", **options)
            wanted.append(ours("preset paper", out))
        for given in INTEROP if args.interop else ():
            gwq_export.export(args.model, out, samples=args.samples, **given, **options)
            ours("gwq-export " + " ".join(f"--{k} {v}" for k, v in given.items()), out)
        for bits in wanted:
            predicted = at_bits(args.model, out, bits, samples=args.samples, **options)[
                "predicted_loss"
            ]
            ours(f"gwq-export, predicted {predicted:.5f}", out)
    for path in args.gguf:
        ours(Path(path).name, path)
    if args.json:
        print(
            json.dumps(
                {
                    "model": str(args.model),
                    "text": str(args.text),
                    "reference": before,
                    "rows": found,
                }
            )
        )


if __name__ == "__main__":
    main()
