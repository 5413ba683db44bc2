"""gwq-export: quantize a Hugging Face model into one GGUF file."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gwq_export.commands.arguments import Parser, add_common
from gwq_export.commands.console import Progress
from gwq_export.errors import GwqError
from gwq_export.machine import size
from gwq_export.pipeline.flags import add_arguments
from gwq_export.pipeline.options import ExportOptions, StrPath


def parser() -> Parser:
    """The command's arguments; most are rows of `pipeline.options`."""
    p = Parser(
        "gwq-export",
        "Quantize a Hugging Face model by its gradients and write one GGUF file.",
        [
            "gwq-export MODEL --out model.gguf --size 640MiB",
            "gwq-export MODEL --out model.gguf --type gwq3 --calib my.txt --verify",
            "gwq-export MODEL --out model.gguf --bpw 3.7 --dry-run",
            "gwq-export MODEL --out model.gguf --size 4GiB --work-dir work",
        ],
        memory="use fewer --samples or a smaller --ctx",
    )
    p.add_model(
        "model",
        "MODEL",
        help="model folder (config.json, *.safetensors, tokenizer.json), hub id org/name, or a GGUF"
        " file (of one in parts, the first)",
        required=False,
    )
    group = p.add_argument_group("Output")
    group.add_argument("-o", "--out", metavar="FILE.gguf", help="the file to write")
    group = add_arguments(p)["The run"]
    group.add_argument(
        "--progress",
        choices=Progress.STYLES,
        default="bar",
        help="on stderr: bar (default), jsonl (an object per line), none",
    )
    add_common(group)
    return p


def command(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Export; returns what --json prints. Raises GwqError."""
    if args.model is None:
        raise GwqError(
            "MODEL is missing: give a model folder or a hub id"
            + (
                f", from which --base takes all but the weights; or gwq-export {args.base} without"
                " --base"
                if args.base
                else ""
            )
        )
    from gwq_export.pipeline.run import export

    options = ExportOptions(**{f.name: getattr(args, f.name) for f in fields(ExportOptions)})
    result = export(args.model, args.out, options, progress)
    progress.close()
    if options.report_only:
        _print_sensitivities(result)
    else:
        _print_result(result, options)
    return result


FAR = 0.3  # nats per token: a quarter or more of the top tokens are others


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_result(result: dict[str, Any], options: ExportOptions) -> None:
    _print_plan(result.get("plan", []), options.dry_run)
    if "predicted_ppl" in result:
        _say(
            f"  calibration text: perplexity {result['calibration_ppl']:.3f}, predicted"
            f" {result['predicted_ppl']:.3f}"
        )
    if result.get("estimated_seconds"):
        _say(
            f"  the export would take about {result['estimated_seconds']:.0f} s and"
            f" {size(result['estimated_peak_rss_bytes'])} of memory"
        )
    verb = "would take" if options.dry_run else "takes"
    time = f"{result['seconds']:.1f} s"
    if "verify" in result:
        time += f" ({result['verify']['seconds']:.1f} s of it for verification)"
    _say(
        f"{result['out']} {verb} {size(result['bytes'])}: {result['params'] / 1e6:.2f} M"
        f" parameters, {result['bpw']:.3f} bits per weight ({result['bpw_linear']:.3f} in the"
        f" decoder's linear layers), {result['outlier_fraction']:.3%} outliers;"
        f" {time}, peak memory {size(result['peak_rss_bytes'])}"
    )
    text = options.verify_text or "calibration's own text, held out"
    if "verify" in result:
        _print_verify(result["verify"], text)
    _print_warning(result, text)


def _print_plan(plan: Sequence[dict[str, Any]], whole: bool) -> None:
    """Every tensor of a plan, or how much of the file each type takes."""
    if whole:
        for row in plan:
            outliers = f"{row['outliers']} outliers" if row["outliers"] else ""
            loss = "" if row["loss"] is None else f"{row['loss']:.2e} nats"
            _say(
                f"  {row['name']:28} {row['type']:5} {row['bytes']:>12} bytes  {outliers:>16}"
                f"  {loss}"
            )
        return
    matrices = [row for row in plan if row["loss"] is not None]
    for name in sorted({row["type"] for row in matrices}):
        rows = [row for row in matrices if row["type"] == name]
        nbytes = size(sum(row["bytes"] for row in rows))
        noun = "matrix" if len(rows) == 1 else "matrices"
        _say(f"  {name:6} {len(rows):4} {noun:8}  {nbytes:>11}")


def _print_verify(r: dict[str, Any], text: StrPath) -> None:
    _say(
        f"  {text} ({r['tokens']} tokens): perplexity {r['ppl_against']:.3f} ->"
        f" {r['ppl']:.3f}, KL divergence {r['kld_mean']:.5f} ± {r['kld_error']:.5f}, same top token"
        f" {r['top1_agreement']:.2%}; on another text the figures differ"
    )
    measured = [t for t in r["tensors"] if t["output_error"] is not None]
    for t in sorted(measured, key=lambda t: -t["output_error"])[:3]:
        _say(f"  {t['name']:28} {t['type']:5} output error {t['output_error']:.2%}")


def _print_warning(result: dict[str, Any], text: StrPath) -> None:
    """Say in the last line that a file is far from its model, as well as that is known."""
    known = [
        (result.get("verify", {}).get("kld_mean"), f"on {text}"),
        (result.get("tuned_kld", (None, None))[1], "on text held out of calibration and tuning"),
        (result.get("predicted_loss"), "predicted"),
    ]
    kld, where = next(((kld, where) for kld, where in known if kld is not None), (0.0, ""))
    if kld > FAR:
        _say(
            f"warning: its predictions are far from the model's, {kld:.2f} nats per token"
            f" ({where}):"
            " give it more bits with --bpw or --size"
        )


def _print_sensitivities(result: dict[str, Any]) -> None:
    for row in result["sensitivities"]:
        best: dict[str, float] = {}  # type -> the least loss of its choices
        for c in row["choices"]:
            best[c["type"]] = min(c["loss"], best.get(c["type"], c["loss"]))
        losses = "  ".join(f"{type} {loss:.2e}" for type, loss in best.items())
        _say(f"  {row['name']:28} {losses}  nats")
