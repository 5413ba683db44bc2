"""What several candidates for the codes are worth: the table in docs/results/tried.md.

    studies/candidates [MODEL] [--types gwq4,gwq3,gwq2] [--seeds 2]

Error feedback takes the best code for one column after another and never goes back. In place of
one such greedy run per row, the rows named "of N" take N of them, from other row scales, and keep
the one whose error costs least, e H e^T; "sweeps" are rounds of coordinate descent after that.
KL divergence, in brackets the ratio to the first row, of files without tuning.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from gwq_export.evaluation.reference import transformers_logits
from gwq_export.pipeline.presets import PRESETS
from gwq_export.quantization import encoder, tile_codes
from gwq_export.quantization.matrix_codes import Encoded
from gwq_export.quantization.recipe import Recipe
from studies.drift import Variant, measured_rows, table_of
from studies.paths import DATA, REFERENCE

ENCODE_ROWS = encoder._encode_rows
HEADROOMS = (tile_codes.HEADROOM, 0.78, 1.0, 0.7, 1.15)  # one candidate of each
PER_ROW = ("row_scales", "scales", "codes", "values")


def best_of(headrooms: Sequence[float]) -> Callable[..., Encoded]:
    """A function in the place of the encoder's, that keeps each row's best of several results."""

    def encode_rows(weight: np.ndarray, type: Any, levels: Any, h: Any, *rest: Any) -> Encoded:
        if h is None or not type.bits:
            return ENCODE_ROWS(weight, type, levels, h, *rest)
        made = []
        for headroom in headrooms:
            with patch.object(tile_codes, "HEADROOM", headroom):
                made.append(ENCODE_ROWS(weight, type, levels, h, *rest))
        cols = weight.shape[1]
        errors = [e.values - weight for e in made]
        costs = [np.einsum("ij,ij->i", e @ h.matrix[:cols, :cols], e) for e in errors]
        best = np.argmin(costs, 0)

        def picked(field: str) -> np.ndarray:
            out: np.ndarray = getattr(made[0], field).copy()
            for k, e in enumerate(made):
                rows = np.flatnonzero(best == k)
                out[rows] = getattr(e, field)[rows]
            return out

        return replace(made[0], **{field: picked(field) for field in PER_ROW})

    return encode_rows


def variants() -> dict[str, Variant]:
    """{name: what is changed of the default export}."""
    sweeps = PRESETS["default"].recipe.get("sweeps", Recipe.sweeps)
    patched = "gwq_export.quantization.encoder._encode_rows"
    made = {"default": Variant({}, {})}
    for n in (3, len(HEADROOMS)):
        made[f"of {n}"] = Variant({}, {patched: best_of(HEADROOMS[:n])})
    for n in (sweeps - 1, sweeps + 1, sweeps + 3):
        made[f"{n} sweeps (default: {sweeps})"] = Variant({"sweeps": n}, {})
    return made


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", nargs="?", type=Path, default=REFERENCE)
    p.add_argument("--types", default="gwq4,gwq3,gwq2")
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--text", type=Path, default=DATA / "eval.txt")
    p.add_argument("--characters", type=int, default=40000, help="of the text, from its start")
    p.add_argument("--ctx", type=int, default=256, help="tokens of an evaluation window")
    return p


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    args = parser().parse_args(argv)
    text = args.text.read_text(encoding="utf-8")[: args.characters]
    types = args.types.split(",")
    against = transformers_logits(args.model)
    rows = measured_rows(args.model, against, variants(), types, args.seeds, text, args.ctx)
    print(table_of(types, rows))


if __name__ == "__main__":
    main()
