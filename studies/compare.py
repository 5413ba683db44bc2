"""Quality of ggml types, each on every linear layer of the decoder, and of our files beside them.

    studies/compare [MODEL_FOLDER] [--text FILE] [--calib FILE] [--types q4_0,iq4_nl]
                    [--bpw 4.5,4.25] [--paper] [--gguf OURS.gguf ...]
    studies/compare MODEL_FOLDER --halves FILE    calibration text: the first half of FILE;
                                                  evaluation text: the second
    studies/compare --interop                     ggml types without, with llama.cpp's and with our
                                                  importance, beside our files of these types

Tables are Markdown on stdout: those of docs/results/quality.md and docs/llama.cpp.md, and, where a
budget chose our types, the predicted losses of docs/method.md. ggml types are quantized and decoded
again by llama.cpp's code (studies/ggml.py), with its importance vector from the same calibration
tokens that `gwq-export` would use; ours are decoded from the file. Everything is then computed in
float32 by transformers, with the float32 embedding and output head in every row, so that rows
differ by nothing but the decoder's linear layers and, below 4 bits, our tuned norms. Bits per
weight are of these layers, with the side-tables. Perplexity is by llama.cpp's protocol.
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
from gwq_export.bench.tables import table
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import draw_calibration
from gwq_export.evaluation.perplexity import PROTOCOLS, score, windows
from gwq_export.evaluation.predictors import Predictor, module_logits
from gwq_export.hf.source import Source
from gwq_export.machine import cpu_name
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies import ggml
from studies.oracle import dequantized_model, original_model
from studies.paths import DATA, REFERENCE
from studies.text_halves import halves

TYPES = "q4_0,iq4_nl,q4_k,iq4_xs,q3_k,iq3_s,iq3_xxs,q2_k,iq2_s,iq2_xs"
PROTOCOL = PROTOCOLS["llama.cpp"]
INTEROP = [  # options of export
    {"stock": "q4_0"},
    {"stock": "iq4_nl"},
    {"type": "bridge"},
    {"type": "bridge", "outliers": 0.01},
]
HEAD = "| decoder linears | bits per weight | perplexity | KL divergence | same top token |"
PREDICTED = ["bits per weight (decoder linears)", "predicted loss", "measured KL divergence"]


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
    blocks = [source.block(i) for i in range(source.layers)]
    row = next(row for block in blocks for row, name in block.items() if name == hf)
    return tuple(source.dims[d] for d in row.shape)


def linear_weights(source):
    """How many weights the decoder's linear layers have."""
    return sum(np.prod(shape(source, hf)) for hf, _ in linears(source))


def written_importance(source, samples, options):
    """{Hugging Face name: (cols,)} as it is in the file of gwq-export --imatrix."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "i.gguf")
        out = Path(folder, "f16.gguf")
        gwq_export.export(source.folder, out, type="f16", imatrix=path, samples=samples, **options)
        tensors = gwq_export.open_gguf(path).tensors
        return {
            hf: np.ravel(tensors[f"{n}.in_sum2"].dequantize() / tensors[f"{n}.counts"].dequantize())
            for hf, n in linears(source)
        }


def ggml_model(original, source, name, importance):
    """(model with every decoder linear as ggml type `name` has it, bits per weight of these)."""
    model = copy.deepcopy(original)
    nbytes = weights = 0
    for hf, _ in linears(source):
        weight = model.get_parameter(hf)
        decoded = ggml.fake_quantize(name, weight.detach().numpy(), importance.get(hf))
        weight.data = torch.from_numpy(np.ascontiguousarray(decoded))
        nbytes += ggml.nbytes(name, *weight.shape)
        weights += weight.numel()
    return model, 8 * nbytes / weights


def file_model(source, path):
    """(model with the decoder of one of our files, its types, bits per weight of its linears).

    Side-tables count.
    """
    tensors = gwq_export.open_gguf(path).tensors
    names = tuple(name for _, name in linears(source))
    # companions are called <matrix>.<what>
    nbytes = sum(t.nbytes for t in tensors.values() if t.name.startswith(names))
    types = "+".join(sorted({tensors[n].type.name for n in names}))
    model = dequantized_model(source.folder, path, ends=False)
    return model, types, 8 * nbytes / linear_weights(source)


def at_bits(model, out, bits, **options):
    """Export within a budget: the decoder's linears take at most `bits` per weight.

    Embedding and head are Q8_0. Returns the result of the export.
    """
    source = Source(Path(model))
    linear = linear_weights(source)
    ends = ["token_embd=q8_0"] if source.tied else ["token_embd=q8_0", "^output.weight=q8_0"]
    options = options | {"tensor_type": ends}
    quick = options | {"samples": 1}
    plain = gwq_export.export(model, out, type="gwq4", preset="paper", outliers=0, **quick)
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
    return score(module_logits(model), rows, PROTOCOL.scored(rows.shape[1]), reference)


def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", default=REFERENCE, help="Hugging Face folder")
    p.add_argument("--text", default=DATA / "eval.txt", help="evaluation text")
    p.add_argument(
        "--windows", type=int, default=60, help="how many windows of it, evenly spread; 0 for all"
    )
    p.add_argument("--types", default=TYPES, help="ggml types; '' for none")
    p.add_argument(
        "--no-importance",
        action="store_true",
        help="ggml types without importance vector, as from a plain llama-quantize",
    )
    p.add_argument(
        "--bpw",
        default="",
        help="our files of that many bits per weight of the decoder's linears: 4.5,4.25",
    )
    p.add_argument(
        "--paper",
        action="store_true",
        help="preset paper at 4, 3 and 2 bits, and our file of as many bytes each",
    )
    p.add_argument(
        "--interop",
        action="store_true",
        help="what we give to llama.cpp: our importance, --stock, bridge files",
    )
    p.add_argument(
        "--gguf", nargs="+", default=[], metavar="FILE", help="our files of the same model"
    )
    p.add_argument("--calib", help="calibration text (default: the bundled one)")
    p.add_argument(
        "--halves",
        metavar="FILE",
        help="in the place of --text and --calib: the second and the first half of FILE",
    )
    p.add_argument("--samples", type=int, default=96, help="calibration samples")
    p.add_argument("--ctx", type=int, default=512, help="tokens per window and calibration sample")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    try:
        if args.halves:
            args.calib, args.text = halves(args.halves)
        Comparison(args).run()
    except (GwqError, OSError) as e:
        sys.exit(f"compare: error: {e}")


class Comparison:
    """One model and text; prints a row for every way to store the decoder's linears."""

    def __init__(self, args):
        self.args = args
        self.source = Source(Path(args.model))
        self.ctx = min(args.ctx, self.source.integer("max_position_embeddings"))
        self.tokenizer = Tokenizer(to_metadata(self.source.folder, self.source.vocab))
        text = Path(args.text).read_text(encoding="utf-8")
        self.rows = windows(self.tokenizer, text, self.ctx)
        if 0 < args.windows < len(self.rows):
            chosen = np.linspace(0, len(self.rows) - 1, args.windows).round().astype(int)
            self.rows = self.rows[chosen]
        self.original = original_model(self.source.folder)
        self.reference = cached(module_logits(self.original))
        self.options = {"ctx": self.ctx, "calib": args.calib, "seed": args.seed}
        self.found = []

    def run(self):
        args = self.args
        before = score(self.reference, self.rows, PROTOCOL.scored(self.ctx))
        importance, drawn = self.importance()
        print(
            f"{args.model}, {args.text}: {len(self.rows)} windows of {self.ctx}, "
            f"{before['tokens']} tokens scored; float32 perplexity {before['ppl']:.2f} "
            f"± {before['ppl_error']:.2f}. Importance: {drawn} (--seed {args.seed}). "
            f"Embedding and head float32. {cpu_name()}.\n"
        )
        print(HEAD + "\n|" + " --- |" * 5)
        vectors = {"": importance}
        if args.interop:
            vectors = {
                ", no imatrix": {},
                ", imatrix": importance,
                ", imatrix by gwq-export": written_importance(
                    self.source, args.samples, self.options
                ),
            }
        for name in filter(None, args.types.split(",")):
            self.ggml_rows(name, vectors)
        with tempfile.TemporaryDirectory() as folder:
            self.our_rows(Path(folder, "ours.gguf"))
        for path in args.gguf:
            self.our_row(f"**{Path(path).name}**", path)
        self.predictions()
        if args.json:
            result = {"model": str(args.model), "text": str(args.text)}
            print(json.dumps(result | {"reference": before, "rows": self.found}))

    def importance(self):
        """({Hugging Face name: (cols,)} as llama.cpp measures it, of how many tokens as text)."""
        args = self.args
        if args.no_importance:
            return {}, "none"
        text = read_calibration(self.tokenizer, [args.calib] if args.calib else [])
        calibration = draw_calibration(text, args.samples, self.ctx, args.seed)
        samples, ctx = calibration.tokens.shape
        return ggml.importance(self.original, calibration.tokens), f"{samples} x {ctx} tokens"

    def row(self, name, model, bits, start):
        """Print a row and keep it for --json; returns what is kept. name: Markdown."""
        result = quality(model, self.reference, self.rows)
        kept = {"name": name.replace("**", ""), "bpw_linear": bits} | result
        self.found.append(kept)
        print(
            f"| {name} | {bits:.3f} | {result['ppl']:.2f} | {result['kld_mean']:.5f} "
            f"± {result['kld_error']:.5f} | {result['top1_agreement']:.2%} |",
            flush=True,
        )
        print(f"{kept['name']}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        return kept

    def ggml_rows(self, name, vectors):
        """Rows of a ggml type. vectors: {what a row's name ends with: importance}."""
        start = time.monotonic()
        names = [hf for hf, _ in linears(self.source)]
        narrow = [hf for hf in names if not ggml.fits(name, shape(self.source, hf)[1])]
        if narrow:
            print(
                f"{name}: left out, its blocks do not divide the width of {len(narrow)} linears "
                f"such as {narrow[0]}",
                file=sys.stderr,
            )
            return
        for label, vector in vectors.items():
            model, bits = ggml_model(self.original, self.source, name, vector)
            self.row(f"{name.lower()}{label}", model, bits, start)

    def our_row(self, name, path):
        """The row of one of our files, its types behind its name; returns what `row` keeps."""
        start = time.monotonic()
        model, types, bits = file_model(self.source, path)
        return self.row(f"{name} ({types})", model, bits, start)

    def our_rows(self, out):
        """Rows of files made here, each written over the last."""
        args = self.args
        wanted = [float(bits) for bits in filter(None, args.bpw.split(","))]
        for type in ("gwq4", "gwq3", "gwq2") if args.paper else ():
            gwq_export.export(args.model, out, type=type, preset="paper", **self.options)
            wanted.append(self.our_row("preset paper", out)["bpw_linear"])
        for given in INTEROP if args.interop else ():
            gwq_export.export(args.model, out, samples=args.samples, **given, **self.options)
            flags = " ".join(f"--{k} {v}" for k, v in given.items())
            self.our_row(f"**gwq-export {flags}**", out)
        for bits in wanted:
            made = at_bits(args.model, out, bits, samples=args.samples, **self.options)
            kept = self.our_row("**gwq-export**", out)
            kept["predicted_loss"] = made["predicted_loss"]

    def predictions(self):
        """Print what was predicted of our files, where a budget chose their types."""
        lines = [
            [f"{r['bpw_linear']:.3f}", f"{r['predicted_loss']:.5f}", f"{r['kld_mean']:.5f}"]
            for r in self.found
            if "predicted_loss" in r
        ]
        if lines:
            print("\n" + table(PREDICTED, lines), flush=True)


if __name__ == "__main__":
    main()
