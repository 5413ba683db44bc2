"""What feedback between rows and codes for drifted inputs are worth: docs/results/drift.md.

    studies/drift [MODEL] [--types gwq4,gwq3,gwq2] [--seeds 3] [--text FILE] [--out FILE.md]

Every row is a file that `gwq-export` writes from the model's folder, by default the bundled one,
run by the runtime; files of one type have the same size.
"""

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import gwq_export
from gwq_export.bench.tables import table
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.reference import transformers_logits
from gwq_export.machine import cpu_name, default_threads
from gwq_export.pipeline.presets import PRESETS
from studies.paths import DATA, REFERENCE, RESULTS

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

What the two are that `--fast` leaves out says [method.md](../method.md#error-feedback). `{command}`
wrote this on {cpus} CPUs of {cpu}.

KL divergence from the model, nats per token, of files that `gwq-export --type TYPE --tune 0`
writes, without tuning, which would hide some of it: the mean over {seeds} calibration seeds and, in
brackets, the ratio to the first row. The evaluation text ({text}, windows of {ctx} tokens) is no
calibration text; its windows are the same in all rows. The standard error over windows of one file
is {error:.0%} of a figure, but differences between rows are surer than that.
"""


def measured(folder: Path, type: str, variant: Variant, seed: int, text: str, ctx: int) -> Any:
    """(KL divergence, its standard error, seconds of the export) of one file."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        stack.enter_context(patch.dict(PRESETS["default"].recipe, variant.recipe))
        for name, value in variant.patched.items():
            stack.enter_context(patch(name, value))
        path = Path(work) / "model.gguf"
        result = gwq_export.export(folder, path, type=type, seed=seed, tune=0)
        found = evaluate(gwq_export.load(path), text, ctx, transformers_logits(folder))
        return found["kld_mean"], found["kld_error"], result["seconds"]


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=REFERENCE)
    parser.add_argument("--types", default="gwq4,gwq3,gwq2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", type=Path, default=DATA / "eval.txt")
    parser.add_argument("--characters", type=int, default=60000, help="of the text, from its start")
    parser.add_argument("--ctx", type=int, default=256, help="tokens of an evaluation window")
    parser.add_argument("--out", type=Path, default=RESULTS / "drift.md")
    args = parser.parse_args(argv)
    types = args.types.split(",")
    text = args.text.read_text(encoding="utf-8")[: args.characters]
    rows: list[list[str]] = []
    first: dict[str, float] = {}
    errors = []
    for name, variant in VARIANTS.items():
        row, times = [name], []
        for type in types:
            runs = [
                measured(args.model, type, variant, seed, text, args.ctx)
                for seed in range(args.seeds)
            ]
            kld = statistics.mean(run[0] for run in runs)
            errors += [run[1] / run[0] for run in runs]
            times += [run[2] for run in runs]
            row.append(f"{kld:.4g} ({kld / first.setdefault(type, kld):.2f})")
        rows.append([*row, f"{statistics.median(times):.0f}"])
        print(" | ".join(rows[-1]), flush=True)
    page = INTRO.format(
        command=f"studies/drift {args.model.name} --seeds {args.seeds}",
        cpus=default_threads(),
        cpu=cpu_name(),
        seeds=args.seeds,
        text=args.text.name,
        ctx=args.ctx,
        error=max(errors),
    )
    header = [args.model.name, *types, "seconds of an export, median"]
    args.out.write_text(f"{page}\n{table(header, rows)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
