"""What more, and other, calibration text is worth: docs/results/calibration.md.

    studies/calibration MODEL --row NAME=SAMPLES:FILE[,FILE] ... --on NAME=FILE ... [--add]

MODEL: a folder, or a quantized GGUF file, of which a float reference is made
(`studies/real_reference`). A row is a file that `gwq-export` writes with --samples SAMPLES and a
--calib for every FILE, a column a text on which it is compared with the model. Files are as those
of --calib: .jsonl ones have chats, which the model's template turns into text.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import gwq_export
from gwq_export import GwqError
from gwq_export.bench.tables import table
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import sample_tokens
from gwq_export.evaluation.perplexity import score
from gwq_export.evaluation.predictors import runtime_logits
from gwq_export.machine import cpu_name, default_threads
from studies.drift import opened
from studies.paths import REFERENCE, RESULTS

INTRO = """\
# Calibration text

What more of it is worth, or another one. KL divergence from the model, nats per token, of files
that `gwq-export` writes, in brackets the ratio to the first row; the evaluation texts are no
calibration texts. Differences between rows are surer than the standard error over windows, which is
given below each table.
"""
TABLE = """
## {model}

`{command}` on {cpus} CPUs of {cpu}.

{table}

Windows of {ctx} tokens, of which the second half is scored: {windows}. The standard error of one
figure is at most {error:.0%}.
"""


def named(text: str) -> tuple[str, str]:
    """("NAME", "rest") of NAME=rest. Raises argparse.ArgumentTypeError."""
    name, sign, rest = text.partition("=")
    if not (name and sign and rest):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=...")
    return name, rest


def row(text: str) -> tuple[str, int, list[Path]]:
    """(name, samples, files) of NAME=SAMPLES:FILE[,FILE]. Raises argparse.ArgumentTypeError."""
    name, rest = named(text)
    samples, sign, files = rest.partition(":")
    if not samples.isdigit() or not sign or not files:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SAMPLES:FILE[,FILE]")
    return name, int(samples), [Path(file) for file in files.split(",")]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", type=Path, default=REFERENCE)
    p.add_argument("--row", action="append", type=row, required=True)
    p.add_argument("--on", action="append", type=named, required=True)
    p.add_argument("--type", default="gwq3")
    p.add_argument("--ctx", type=int, default=256, help="tokens of a sample and of a window")
    p.add_argument("--windows", type=int, default=40, help="of each text, at most")
    p.add_argument("--out", type=Path, default=RESULTS / "calibration.md")
    p.add_argument("--add", action="store_true", help="to what the page has")
    return p


def main(argv: list[str] | None = None) -> None:
    """Measure and write. Raises GwqError."""
    args = parser().parse_args(argv)
    rows: list[list[str]] = []
    first: dict[str, float] = {}
    errors, counts = [], {}
    with tempfile.TemporaryDirectory() as work:
        model, against = opened(args.model, Path(work))
        for name, samples, files in args.row:
            path = Path(work) / "model.gguf"
            options = {"type": args.type, "samples": samples, "ctx": args.ctx, "calib": files}
            result = gwq_export.export(model, path, **options)
            ours = gwq_export.load(path)
            cells = [name, str(result["calibration_tokens"])]
            for text, file in args.on:
                read = read_calibration(ours.tokenizer, [Path(file)], "--on")
                windows = sample_tokens(read.ids, args.windows, args.ctx, 0, read.bos).numpy()
                counts[text] = f"{len(windows)} of {text}"
                found = score(runtime_logits(ours), windows, args.ctx // 2, against)
                kld = found["kld_mean"]
                errors.append(found["kld_error"] / kld)
                cells.append(f"{kld:.4g} ({kld / first.setdefault(text, kld):.2f})")
            rows.append([*cells, f"{result['seconds']:.0f}"])
            print(" | ".join(rows[-1]), flush=True)
    given = sys.argv[1:] if argv is None else argv
    section = TABLE.format(
        model=args.model.name,
        command=shlex.join(["studies/calibration", *given]),
        cpus=default_threads(),
        cpu=cpu_name(),
        table=table(
            ["calibrated on", "tokens", *(f"on {text}" for text, _ in args.on), "seconds"], rows
        ),
        ctx=args.ctx,
        windows=", ".join(counts.values()),
        error=max(errors),
    )
    before = args.out.read_text(encoding="utf-8") if args.add else INTRO
    args.out.write_text(before + section, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except GwqError as e:
        sys.exit(f"calibration: error: {e}")
