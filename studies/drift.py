"""What feedback between rows and codes for drifted inputs are worth: docs/results/drift.md.

    studies/drift [--seeds 3]                     the bundled model, a new page
    studies/drift MODEL --rows 'neither|default' --add    another one's table at the page's end

MODEL: a folder, or a quantized GGUF file, of which a float reference is made
(`studies/real_reference`). Every row is a file that `gwq-export` writes, run by the runtime; files
of one type have the same size.
"""

import argparse
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import gwq_export
from gwq_export.bench.tables import table
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.evaluation.reference import transformers_logits
from gwq_export.machine import cpu_name, default_threads
from gwq_export.pipeline.presets import PRESETS
from studies import real_reference
from studies.paths import DATA, REFERENCE, RESULTS
from studies.real_scores import float_model

TAKEN = "gwq_export.quantization.quantize.TAKEN"
WINDOWS = "gwq_export.pipeline.job.DRIFT_WINDOWS"


class Variant(NamedTuple):
    """recipe: fields of the default preset's that change. patched: {constant: value}."""

    recipe: dict[str, bool]
    patched: dict[str, float]


VARIANTS = {
    "neither (`--fast`)": Variant({"outputs": False, "drift": False}, {}),
    "feedback between rows": Variant({"drift": False}, {}),
    "drift": Variant({"outputs": False}, {}),
    "both (default)": Variant({}, {}),
    "both, half of the correction": Variant({}, {TAKEN: 0.5}),
    "both, all of the correction": Variant({}, {TAKEN: 1.0}),
    "both, drift on all windows": Variant({}, {WINDOWS: 1.0}),
}
INTRO = """\
# Feedback between rows, and drift

What the two are that `--fast` leaves out says [method.md](../method.md#error-feedback). KL
divergence from the model, nats per token, of files that `gwq-export --type TYPE --tune 0` writes,
without tuning, which would hide some of it, and in brackets the ratio to the first row. The
evaluation text is no calibration text, and its windows are the same in all rows: differences
between rows are surer than the standard error over windows, which is given below each table.
Seconds are those of whatever else the machine did meanwhile, too.
"""
TABLE = """
## {model}

`{command}` on {cpus} CPUs of {cpu}; calibration seeds: {seeds}.

{table}

The first {characters} characters of {text} in windows of {ctx} tokens; the standard error of one
file is at most {error:.0%}.
"""


def opened(model: Path, work: Path) -> tuple[Path, Predictor]:
    """(what is exported, what it predicts): a folder as it is, a file's float reference."""
    if model.is_dir():
        return model, transformers_logits(model)
    reference = work / "reference.gguf"
    real_reference.write(model, reference, 0)
    return reference, runtime_logits(float_model(reference))


def measured(
    model: Path, against: Predictor, type: str, variant: Variant, seed: int, text: str, ctx: int
) -> tuple[float, float, float]:
    """(KL divergence, its standard error, seconds of the export) of one file."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        stack.enter_context(patch.dict(PRESETS["default"].recipe, variant.recipe))
        for name, value in variant.patched.items():
            stack.enter_context(patch(name, value))
        path = Path(work) / "model.gguf"
        result = gwq_export.export(model, path, type=type, seed=seed, tune=0)
        found = evaluate(gwq_export.load(path), text, ctx, against)
        return found["kld_mean"], found["kld_error"], result["seconds"]


class Rows(NamedTuple):
    """cells: of the table's rows. error: the largest standard error, as a fraction."""

    cells: list[list[str]]
    error: float


def measured_rows(
    model: Path,
    against: Predictor,
    variants: Mapping[str, Variant],
    types: Sequence[str],
    seeds: int,
    text: str,
    ctx: int,
) -> Rows:
    """A row for each variant, printed as it comes, each type's ratio being to the first row."""
    rows: list[list[str]] = []
    first: dict[str, float] = {}
    errors = []
    for name, variant in variants.items():
        row, times = [name], []
        for type in types:
            runs = [
                measured(model, against, type, variant, seed, text, ctx) for seed in range(seeds)
            ]
            kld = statistics.mean(run[0] for run in runs)
            errors += [run[1] / run[0] for run in runs]
            times += [run[2] for run in runs]
            row.append(f"{kld:.4g} ({kld / first.setdefault(type, kld):.2f})")
        rows.append([*row, f"{statistics.median(times):.0f}"])
        print(" | ".join(rows[-1]), flush=True)
    return Rows(rows, max(errors))


def table_of(types: Sequence[str], rows: Rows) -> str:
    """The rows as Markdown."""
    return table(["", *types, "seconds of an export, median"], rows.cells)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", type=Path, default=REFERENCE)
    p.add_argument("--types", default="gwq4,gwq3,gwq2")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    p.add_argument("--text", type=Path, default=DATA / "eval.txt")
    p.add_argument("--characters", type=int, default=40000, help="of the text, from its start")
    p.add_argument("--ctx", type=int, default=256, help="tokens of an evaluation window")
    p.add_argument("--out", type=Path, default=RESULTS / "drift.md")
    p.add_argument("--add", action="store_true", help="to what the page has")
    return p


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    args = parser().parse_args(argv)
    types = args.types.split(",")
    text = args.text.read_text(encoding="utf-8")[: args.characters]
    kept = {name: v for name, v in VARIANTS.items() if re.search(args.rows, name)}
    with tempfile.TemporaryDirectory() as work:
        model, against = opened(args.model, Path(work))
        rows = measured_rows(model, against, kept, types, args.seeds, text, args.ctx)
    given = sys.argv[1:] if argv is None else argv
    section = TABLE.format(
        model=args.model.name,
        command=shlex.join(["studies/drift", *(Path(a).name for a in given)]),
        cpus=default_threads(),
        cpu=cpu_name(),
        seeds=args.seeds,
        table=table_of(types, rows),
        ctx=args.ctx,
        text=args.text.name,
        characters=args.characters,
        error=rows.error,
    )
    before = args.out.read_text(encoding="utf-8") if args.add else INTRO
    args.out.write_text(before + section, encoding="utf-8")


if __name__ == "__main__":
    main()
