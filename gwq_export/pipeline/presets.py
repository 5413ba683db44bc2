"""What the options of an export ask of every matrix: presets, types by name, the byte budget."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from gwq_export.errors import GwqError
from gwq_export.format.types import LEVELS, TYPES, TensorType, tensor_type
from gwq_export.pipeline.options import DEFAULT_BPW, ExportOptions
from gwq_export.quantization.recipe import MAX_OUTLIERS, Recipe
from gwq_export.quantization.saliency import SALIENCY

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
BRIDGE = "bridge"  # as --type: a ggml type, with FP16 deltas behind the ordinary file
GGML_SWEEPS = 3  # of coordinate descent for ggml types, to which it is worth more than to tiles
EXPORT_TYPES = [name for name in TYPES if name not in ("i8", "i32")]


@dataclass(frozen=True)
class Preset:
    """samples: of calibration. recipe: fields of a Recipe that differ from its defaults."""

    samples: int
    recipe: dict[str, Any]


PRESETS = {
    # GWQ (arXiv 2411.00850) as its abstract describes it: the gradient of one sample picks 1 % of
    # the weights, the others are rounded to the nearest of a uniform grid.
    "paper": Preset(
        samples=1,
        recipe={
            "saliency": "grad",
            "outliers": 0.01,
            "table": "grid",
            "curvature": False,
            "feedback": False,
            "sweeps": 0,
        },
    ),
    "default": Preset(
        samples=32,
        recipe={"saliency": "loss", "outliers": 0.0025, "outputs": True, "drift": True},
    ),
}
FAST = {"outputs": False, "drift": False}  # with --fast, whatever the preset has


class Override(NamedTuple):
    """Matrices whose GGUF name matches `pattern` are stored as `type`; `flag` asked for it."""

    pattern: re.Pattern
    type: TensorType
    flag: str


def overrides_of(options: ExportOptions) -> list[Override]:
    """Overrides of --tensor-type and, after them, of --exclude (F16). Later ones win.

    Raises GwqError for an expression or a type that is none.
    """
    types = f"REGEX=TYPE with TYPE one of {', '.join(EXPORT_TYPES)}"
    asked = []
    for text in options.tensor_type:
        pattern, _, name = text.rpartition("=")
        asked.append(("--tensor-type", text, pattern, name, types))
    for text in options.exclude:
        asked.append(("--exclude", text, text, "f16", "a regular expression"))
    overrides = []
    for flag, text, pattern, name, expected in asked:
        if not pattern or name.lower() not in EXPORT_TYPES:
            raise GwqError(f"{flag} {text}: expected {expected}")
        try:
            overrides.append(Override(re.compile(pattern), tensor_type(name), flag))
        except re.error as e:
            raise GwqError(f"{flag} {text}: {pattern!r} is no regular expression ({e})") from None
    return overrides


def recipe_of(options: ExportOptions) -> tuple[Recipe, int]:
    """(Recipe of the decoder's linears, calibration samples). Raises GwqError.

    With --stock, codes of a ggml type are found under the curvature; with --type bridge (over Q4_0
    unless --stock names another) FP16 deltas are kept beside them.
    """
    if options.preset not in PRESETS:
        raise GwqError(f"--preset {options.preset}: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[options.preset]
    samples = preset.samples if options.samples is None else options.samples
    given = {"saliency": options.saliency, "outliers": options.outliers}
    chosen = preset.recipe | {k: v for k, v in given.items() if v is not None}
    if options.fast:
        chosen |= FAST
    type = options.type and options.type.lower()
    if options.stock is not None or type == BRIDGE:
        if type != BRIDGE:
            chosen |= {"outliers": 0.0}
        type = _ggml_type(options, type)
        chosen |= {"sweeps": GGML_SWEEPS}
    elif type in LEVELS:
        chosen |= {"curvature": False}  # as ggml rounds it
    type = type or "gwq4"
    if type not in EXPORT_TYPES:
        raise GwqError(f"--type {type}: choose one of {', '.join([*EXPORT_TYPES, BRIDGE])}")
    if not 0 <= chosen["outliers"] <= MAX_OUTLIERS:
        raise GwqError(
            f"--outliers {chosen['outliers']:g}: give a fraction from 0 to {MAX_OUTLIERS}, such as"
            " 0.01 for 1 %"
        )
    if chosen["saliency"] not in SALIENCY:
        raise GwqError(f"--saliency {chosen['saliency']}: choose one of {', '.join(SALIENCY)}")
    if samples < 1 or (options.ctx is not None and options.ctx < 2):
        raise GwqError("--samples must be at least 1 and --ctx at least 2")
    if not 0 <= options.seed < 1 << 32:
        raise GwqError(f"--seed {options.seed}: give a number from 0 to {2**32 - 1}")
    return Recipe(tensor_type(type), seed=options.seed, **chosen), samples


def _ggml_type(options: ExportOptions, type: str | None) -> str:
    """The ggml type of --stock and --type bridge. Raises GwqError for what does not go with it."""
    other_rule = options.preset != "default" or options.saliency is not None
    if type == BRIDGE:
        if other_rule or options.outliers == 0:
            raise GwqError(
                "--type bridge chooses its deltas itself: leave out --preset, --saliency and"
                " --outliers 0 (that is --stock)"
            )
    elif type is not None or other_rule or options.outliers is not None:
        raise GwqError(
            "--stock names the type and keeps no outliers: leave out --type, --preset, --outliers"
            " and --saliency"
        )
    if options.stock is not None and options.stock.lower() not in LEVELS:
        raise GwqError(f"--stock {options.stock}: choose one of {', '.join(LEVELS)}")
    return (options.stock or "q4_0").lower()


def budget_bytes(options: ExportOptions, params: int) -> int | None:
    """The byte budget of --bpw or --size ("640MiB", "1.2GB", bytes), or None. Raises GwqError.

    params: weights of the model. Where nothing names a size or a type, DEFAULT_BPW does.
    """
    size = options.size
    bpw = DEFAULT_BPW if options.plain else options.bpw
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
        if found is None:
            raise ValueError
        return int(float(found[1]) * UNITS[(found[2] or "").lower()])
    except ValueError:
        raise GwqError(
            f"--size {size}: give a number of bytes, or one with a unit, such as 640MiB or 1.2GB"
        ) from None
