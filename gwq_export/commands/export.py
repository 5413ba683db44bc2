"""gwq-export: quantize a Hugging Face model into one GGUF file."""

import sys

from gwq_export.commands.console import Progress, fraction, make_parser, size


def parser():
    p = make_parser(
        "gwq-export", "Quantize a Hugging Face model by its gradients and write one GGUF file."
    )
    p.add_argument(
        "model", help="model folder (config.json, *.safetensors, tokenizer.json) or hub id org/name"
    )
    p.add_argument("--out", metavar="FILE.gguf")
    p.add_argument(
        "--base",
        metavar="FILE.gguf",
        help="take the weights from this GGUF file of the model, everything else from MODEL",
    )
    p.add_argument(
        "--type",
        help="of the decoder's linear layers: gwq4 (default), gwq3, gwq2, q8_0, q4_0, f16, bf16, f32, bridge",
    )
    p.add_argument(
        "--stock",
        metavar="TYPE",
        help="instead: llama.cpp's q4_0 or iq4_nl, scales and codes chosen by the calibration",
    )
    p.add_argument(
        "--imatrix",
        metavar="FILE.gguf",
        help="also write the gradients' importance for llama-quantize --imatrix",
    )
    p.add_argument(
        "--outliers",
        type=fraction,
        metavar="F",
        help="fraction kept in FP16 (default 0.0025; preset paper: 0.01)",
    )
    p.add_argument(
        "--saliency",
        help="which weights: loss (default), grad (GWQ's |gradient|), fisher, hessian, magnitude, ...",
    )
    p.add_argument("--preset", default="default", help="default, or paper: the published recipe")
    p.add_argument(
        "--bpw",
        type=float,
        metavar="B",
        help="bits per weight of the whole file: choose types and outliers under this budget",
    )
    p.add_argument("--size", metavar="BYTES", help="likewise by size: 640MiB, 1.2GB or bytes")
    p.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="type of the tensors whose GGUF name matches",
    )
    p.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="matrices whose GGUF name matches stay F16",
    )
    p.add_argument(
        "--calib", metavar="FILE", help="calibration text, UTF-8 (default: a bundled one)"
    )
    p.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="calibration samples (default: 32; preset paper: 1)",
    )
    p.add_argument(
        "--ctx",
        type=int,
        default=512,
        metavar="N",
        help="tokens per calibration sample (default 512)",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda: where gradients are computed"
    )
    p.add_argument("--revision", help="hub revision of the model")
    p.add_argument(
        "--tokenizer-pre",
        metavar="NAME",
        help="pre-tokenizer name to write when it is not recognised",
    )
    p.add_argument(
        "--work-dir",
        metavar="DIR",
        help="keep what is finished there: after a kill the same command goes on, to the same"
        " bytes. Takes the file's size and 4 bytes x calibration tokens x width x (blocks + 4); emptied in the end",
    )
    p.add_argument(
        "--no-norms",
        dest="norms",
        action="store_false",
        help="leave the norms as they are (else tuned below 4 bits)",
    )
    p.add_argument(
        "--progress",
        choices=Progress.STYLES,
        default="bar",
        help="on stderr: bar (default), jsonl (an object per line), none",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="calibrate; print plan, size, predicted perplexity, time, memory; no file",
    )
    p.add_argument(
        "--verify",
        action="store_true",
        help="compare the finished file with the model on held-out text",
    )
    p.add_argument(
        "--verify-text",
        metavar="FILE",
        help="text for --verify (default: what calibration left of its own)",
    )
    p.add_argument(
        "--max-kld",
        type=float,
        metavar="X",
        help="fail above this KL divergence, nats per token (default 1.0)",
    )
    p.add_argument(
        "--report", metavar="FILE.html", help="a page on sizes, errors, outliers and quality"
    )
    p.add_argument(
        "--report-only",
        action="store_true",
        help="no model: what every type would cost each matrix, to --report (.html, .json)",
    )
    p.add_argument(
        "--card", metavar="README.md", help="a Hugging Face model card with the measured figures"
    )
    return p


def command(args, progress):
    from gwq_export.pipeline.run import export

    options = {k: v for k, v in vars(args).items() if k not in ("json", "model", "out", "progress")}
    result = export(args.model, args.out, **options, progress=progress)
    progress.close()
    if args.report_only:
        return _print_sensitivities(result)
    for row in result.get("plan", []):
        kept, loss = (
            (f"{row['outliers']} outliers" if row["outliers"] else ""),
            "" if row["loss"] is None else f"{row['loss']:.2e} nats",
        )
        print(
            f"  {row['name']:28} {row['type']:5} {row['bytes']:>12} bytes  {kept:>16}  {loss}",
            file=sys.stderr,
        )
    if "predicted_ppl" in result:
        print(
            f"  calibration text: perplexity {result['calibration_ppl']:.3f}, predicted {result['predicted_ppl']:.3f}",
            file=sys.stderr,
        )
    if result.get("estimated_seconds"):
        print(
            f"  the export would take about {result['estimated_seconds']:.0f} s and {size(result['estimated_peak_rss_bytes'])} of memory",
            file=sys.stderr,
        )
    verb = "would take" if args.dry_run else "takes"
    print(
        f"{result['out']} {verb} {size(result['bytes'])}: {result['params'] / 1e6:.2f} M parameters, {result['bpw']:.3f} bits per weight"
        f" ({result['bpw_linear']:.3f} in the decoder's linear layers), {result['outlier_fraction']:.3%} outliers;"
        f" {result['seconds']:.1f} s, peak memory {size(result['peak_rss_bytes'])}",
        file=sys.stderr,
    )
    if "verify" in result:
        _print_verify(result["verify"])
    return result


def _print_verify(r):
    print(
        f"  held-out text ({r['tokens']} tokens): perplexity {r['ppl_against']:.3f} -> {r['ppl']:.3f}, KL divergence {r['kld_mean']:.5f}"
        f" ± {r['kld_error']:.5f}, same top token {r['top1_agreement']:.2%}",
        file=sys.stderr,
    )
    for t in sorted(
        (t for t in r["tensors"] if t["output_error"] is not None), key=lambda t: -t["output_error"]
    )[:3]:
        print(
            f"  {t['name']:28} {t['type']:5} output error {t['output_error']:.2%}", file=sys.stderr
        )


def _print_sensitivities(result):
    for row in result["sensitivities"]:
        best = {}
        for c in row["choices"]:
            best[c["type"]] = min(c["loss"], best.get(c["type"], c["loss"]))
        print(
            f"  {row['name']:28} "
            + "  ".join(f"{type} {loss:.2e}" for type, loss in best.items())
            + "  nats",
            file=sys.stderr,
        )
    return result
