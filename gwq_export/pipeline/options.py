"""The options of an export, checked before any work begins."""

import re
from pathlib import Path
from typing import NamedTuple

from gwq_export.errors import GwqError
from gwq_export.files import check_output
from gwq_export.format.types import LEVELS, TYPES, TensorType, tensor_type

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
BRIDGE = "bridge"  # as --type: a ggml type with deltas behind the stock file
GGML_SWEEPS = 3  # of coordinate descent for ggml types, to which it is worth more than to tiles
EXPORT_TYPES = [name for name in TYPES if name not in ("i8", "i32")]
PRESETS = {  # name -> (samples, what it says about a recipe)
    # GWQ (arXiv 2411.00850) as its abstract describes it: the gradient of one sample picks 1 % of
    # the weights, the others are rounded to the nearest of a uniform grid
    "paper": (
        1,
        {
            "saliency": "grad",
            "outliers": 0.01,
            "table": "grid",
            "curvature": False,
            "feedback": False,
            "sweeps": 0,
        },
    ),
    "default": (32, {"saliency": "loss", "outliers": 0.0025}),
}


class Override(NamedTuple):
    """Matrices whose GGUF name matches are stored so; `flag` asked for it."""

    pattern: re.Pattern
    type: TensorType
    flag: str


def overrides_of(pairs, exclude=()):
    """Overrides of --tensor-type ("REGEX=TYPE", ...) and, after them, of --exclude (regular
    expressions: F16). Later ones win.
    """
    asked = [("--tensor-type", text, *text.rpartition("=")[::2]) for text in pairs] + [
        ("--exclude", text, text, "f16") for text in exclude
    ]
    out = []
    for flag, text, pattern, name in asked:
        if not pattern or name.lower() not in EXPORT_TYPES:
            expected = (
                f"REGEX=TYPE with TYPE one of {', '.join(EXPORT_TYPES)}"
                if flag == "--tensor-type"
                else "a regular expression"
            )
            raise GwqError(f"{flag} {text}: expected {expected}")
        try:
            out.append(Override(re.compile(pattern), tensor_type(name), flag))
        except re.error as e:
            raise GwqError(f"{flag} {text}: {pattern!r} is no regular expression ({e})") from None
    return out


def options(preset, type, outliers, saliency, samples, ctx, seed, stock=None):
    """Checked recipe and calibration size. stock: a ggml type whose codes are found under the
    curvature; with type "bridge" (then Q4_0 if not named) deltas are kept beside it.
    """
    from gwq_export.quantization.recipe import MAX_OUTLIERS, Recipe
    from gwq_export.quantization.saliency import SALIENCY

    if preset not in PRESETS:
        raise GwqError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    (usual, chosen), type = PRESETS[preset], type and type.lower()
    samples = usual if samples is None else samples
    given = {"saliency": saliency, "outliers": outliers}
    chosen = chosen | {k: v for k, v in given.items() if v is not None}
    if stock is not None or type == BRIDGE:
        type, kept = _ggml_type(type, stock, preset != "default" or saliency is not None, outliers)
        chosen |= {"sweeps": GGML_SWEEPS, "outliers": chosen["outliers"] * kept}
    elif type in LEVELS:
        chosen |= {"curvature": False}  # as ggml rounds it
    type, saliency, outliers = type or "gwq4", chosen["saliency"], chosen["outliers"]
    if type not in EXPORT_TYPES:
        raise GwqError(f"--type {type}: choose one of {', '.join([*EXPORT_TYPES, BRIDGE])}")
    if not 0 <= outliers <= MAX_OUTLIERS:
        raise GwqError(
            f"--outliers {outliers:g}: give a fraction from 0 to {MAX_OUTLIERS}, such as 0.01 for 1 %"
        )
    if saliency not in SALIENCY:
        raise GwqError(f"--saliency {saliency}: choose one of {', '.join(SALIENCY)}")
    if samples < 1 or ctx < 2:
        raise GwqError("--samples must be at least 1 and --ctx at least 2")
    if not 0 <= seed < 1 << 32:
        raise GwqError(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    return Recipe(tensor_type(type), seed=seed, **chosen), samples


def _ggml_type(type, stock, other_rule, outliers):
    """(type of the stock matrices, whether deltas are kept beside them) of --stock and --type
    bridge.
    """
    if type == BRIDGE:
        if other_rule or outliers == 0:
            raise GwqError(
                "--type bridge chooses its deltas itself: leave out --preset, --saliency and --outliers 0 (that is --stock)"
            )
    elif type is not None or other_rule or outliers is not None:
        raise GwqError(
            "--stock names the type and keeps no outliers: leave out --type, --preset, --outliers and --saliency"
        )
    if stock is not None and stock.lower() not in LEVELS:
        raise GwqError(f"--stock {stock}: choose one of {', '.join(LEVELS)}")
    return (stock or "q4_0").lower(), type == BRIDGE


def budget_bytes(bpw, size, params):
    """The byte budget of --bpw or --size ("640MiB", "1.2GB", bytes), or None. Raises GwqError."""
    if bpw is None and size is None:
        return None
    if bpw is not None and size is not None:
        raise GwqError("--bpw and --size both name the size: give one")
    if bpw is not None:
        if not 0 < bpw <= 64:
            raise GwqError(f"--bpw {bpw:g}: give bits per weight of the whole file, such as 4.5")
        return int(bpw * params / 8)
    found = re.fullmatch(r"([0-9.]+)\s*([KMG]i?)?B?", str(size), re.IGNORECASE)
    try:
        return int(float(found[1]) * UNITS[(found[2] or "").lower()])
    except (TypeError, ValueError):
        raise GwqError(
            f"--size {size}: give a number of bytes, or one with a unit, such as 640MiB or 1.2GB"
        ) from None


def check_outputs(out, dry_run, verify, report, report_only, card, imatrix, base):
    """Raises GwqError for options of what comes after the file that cannot be together, or for
    names that cannot be written.
    """
    if out is None and not report_only:
        raise GwqError("--out FILE.gguf is missing: give the name of the file to write")
    if report_only and (dry_run or verify or card):
        raise GwqError("--report-only writes no model: leave out --dry-run, --verify and --card")
    if dry_run and (verify or report or card):
        raise GwqError(
            "--dry-run writes nothing: leave out --verify, --report and --card, or use --report-only"
        )
    if imatrix and report_only:
        raise GwqError("--report-only writes no model: leave out --imatrix, or use --dry-run")
    if imatrix and Path(imatrix).absolute() == Path(out).absolute():
        raise GwqError(
            f"--imatrix {imatrix}: that is the name of the model's file; give another one"
        )
    if base and out and Path(base).resolve() == Path(out).resolve():
        raise GwqError(f"--base {base}: that is the file to be written; give --out another name")
    for path, flag in ((report, "--report"), (card, "--card")):
        if path is not None:
            check_output(path, flag)
