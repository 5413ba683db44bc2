"""Which tensors a file has, and how each is stored: presets, options and the plan that follows from them."""

import re
import zlib
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from gwq_export import GwqError
from gwq_export.arch import gguf_name
from gwq_export.arrange import Arrangement, arrangement
from gwq_export.container import ALIGNMENT
from gwq_export.format import LEVELS, TYPES, TensorType, tensor_type

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
BRIDGE = "bridge"  # as --type: a stock type with deltas behind the stock file
STOCK_SWEEPS = 3  # of coordinate descent for stock types, to which it is worth more than to tiles
EXPORT_TYPES = [name for name in TYPES if name not in ("i8", "i32")]
PRESETS = {  # name -> (samples, what it says about a recipe)
    # GWQ (arXiv 2411.00850) as its abstract describes it: the gradient of one sample picks 1 % of the weights, the others are
    # rounded to the nearest of a uniform grid
    "paper": (1, {"saliency": "grad", "outliers": 0.01, "table": "grid", "curvature": False, "feedback": False, "sweeps": 0}),
    "default": (32, {"saliency": "loss", "outliers": 0.0025}),
}


@dataclass(frozen=True)
class Entry:
    """One weight of the plan: where it comes from and how it is stored."""

    name: str  # GGUF
    sources: tuple  # Hugging Face: one, or that of every expert
    shape: tuple  # in the file: (rows, columns), (n,) or (experts, rows, columns)
    recipe: object
    linear: bool  # a decoder linear
    arrange: Arrangement
    fixed: bool = False  # named by --tensor-type or --exclude: a budget leaves it alone


def plan(source, recipe, overrides=()):
    """Entries in file order. `recipe` is for the decoder's linears; overrides: those of `overrides_of`, on GGUF names.

    Embedding and head take Q8_0 beside types of codes (F16 where 32 does not divide the width), else the same type.
    """
    f32, entries = tensor_type("f32"), []

    def add(row, name, sources, matrix):
        shape = tuple(source.dims[d] for d in row.shape)
        kind, fixed = recipe.type if row.linear else _end_type(recipe.type, shape) if matrix else f32, not matrix
        if matrix:
            for override in overrides:
                if override.pattern.search(name):
                    kind, fixed = override.type, True
        if kind.bits and recipe.type.levels:
            raise GwqError(f"{name}: llama.cpp cannot load {kind.name} beside {recipe.type.name}: give it a stock type")
        kind.size(shape)  # refuses a width the type cannot hold
        seed = zlib.crc32(f"{recipe.seed}/{name}".encode())
        outliers = recipe.outliers if kind.bits or kind == recipe.type else 0.0
        chosen = replace(recipe, type=kind, outliers=outliers, seed=seed)
        arrange = arrangement(row, source.arch, source.dims, source.heads)
        entries.append(Entry(name, tuple(sources), shape, chosen, row.linear, arrange, fixed))

    embed, *positions = source.arch.first
    add(embed, embed.gguf, [embed.hf], True)
    for row in positions:
        add(row, row.gguf, [row.hf], False)
    for i in range(source.layers):
        named = {}  # GGUF name -> (row, Hugging Face names: one, or that of every expert)
        for row, hf in source.block(i).items():
            named.setdefault(gguf_name(i, row), (row, []))[1].append(hf)
        for name, (row, sources) in named.items():
            add(row, name, sources, row.linear)
    for row in source.arch.last:
        add(row, row.gguf, [row.hf], False)
    if not source.tied:
        add(embed, "output.weight", [source.arch.head], True)
    for pattern, _, flag in overrides:
        if not any(pattern.search(e.name) for e in entries if len(e.shape) > 1):
            raise GwqError(f"{flag} {pattern.pattern}: no matrix has such a name; `gwq-info` lists the names")
    return entries


def _end_type(type, shape):
    if not (type.bits or type.levels):
        return type
    return tensor_type("f16" if shape[-1] % TYPES["q8_0"].unit else "q8_0")


class Override(NamedTuple):
    """Matrices whose GGUF name matches are stored so; `flag` asked for it."""

    pattern: re.Pattern
    type: TensorType
    flag: str


def overrides_of(pairs, exclude=()):
    """Overrides of --tensor-type ("REGEX=TYPE", ...) and, after them, of --exclude (regular expressions: F16). Later ones win."""
    asked = [("--tensor-type", text, *text.rpartition("=")[::2]) for text in pairs] + [("--exclude", text, text, "f16") for text in exclude]
    out = []
    for flag, text, pattern, name in asked:
        if not pattern or name.lower() not in EXPORT_TYPES:
            expected = f"REGEX=TYPE with TYPE one of {', '.join(EXPORT_TYPES)}" if flag == "--tensor-type" else "a regular expression"
            raise GwqError(f"{flag} {text}: expected {expected}")
        try:
            out.append(Override(re.compile(pattern), tensor_type(name), flag))
        except re.error as e:
            raise GwqError(f"{flag} {text}: {pattern!r} is no regular expression ({e})") from None
    return out


def options(preset, type, outliers, saliency, samples, ctx, seed, stock=None):
    """Checked recipe and calibration size. stock: a stock type whose codes are found under the curvature; with type "bridge"
    (then Q4_0 if not named) deltas are kept beside it."""
    from gwq_export.quantize import MAX_OUTLIERS, Recipe
    from gwq_export.saliency import SALIENCY

    if preset not in PRESETS:
        raise GwqError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    (usual, chosen), type = PRESETS[preset], type and type.lower()
    samples = usual if samples is None else samples
    given = {"saliency": saliency, "outliers": outliers}
    chosen = chosen | {k: v for k, v in given.items() if v is not None}
    if stock is not None or type == BRIDGE:
        type, kept = _stock_type(type, stock, preset != "default" or saliency is not None, outliers)
        chosen |= {"sweeps": STOCK_SWEEPS, "outliers": chosen["outliers"] * kept}
    elif type in LEVELS:
        chosen |= {"curvature": False}  # as ggml rounds it
    type, saliency, outliers = type or "gwq4", chosen["saliency"], chosen["outliers"]
    if type not in EXPORT_TYPES:
        raise GwqError(f"--type {type}: choose one of {', '.join([*EXPORT_TYPES, BRIDGE])}")
    if not 0 <= outliers <= MAX_OUTLIERS:
        raise GwqError(f"--outliers {outliers:g}: give a fraction from 0 to {MAX_OUTLIERS}, such as 0.01 for 1 %")
    if saliency not in SALIENCY:
        raise GwqError(f"--saliency {saliency}: choose one of {', '.join(SALIENCY)}")
    if samples < 1 or ctx < 2:
        raise GwqError("--samples must be at least 1 and --ctx at least 2")
    if not 0 <= seed < 1 << 32:
        raise GwqError(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    return Recipe(tensor_type(type), seed=seed, **chosen), samples


def _stock_type(type, stock, other_rule, outliers):
    """(type of the stock matrices, whether deltas are kept beside them) of --stock and --type bridge."""
    if type == BRIDGE:
        if other_rule or outliers == 0:
            raise GwqError("--type bridge chooses its deltas itself: leave out --preset, --saliency and --outliers 0 (that is --stock)")
    elif type is not None or other_rule or outliers is not None:
        raise GwqError("--stock names the type and keeps no outliers: leave out --type, --preset, --outliers and --saliency")
    if stock is not None and stock.lower() not in LEVELS:
        raise GwqError(f"--stock {stock}: choose one of {', '.join(LEVELS)}")
    return (stock or "q4_0").lower(), type == BRIDGE


def file_bytes(name, shape, recipe):
    """Bytes that the tensors of a matrix take in a file, with their descriptions in the header and up to the alignment."""
    total = 0
    for part, kind, dims in recipe.tensors(name, shape):
        total += -(-TYPES[kind].size(dims) // ALIGNMENT) * ALIGNMENT + 24 + len(part.encode()) + 8 * len(dims)
    return total


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
        raise GwqError(f"--size {size}: give a number of bytes, or one with a unit, such as 640MiB or 1.2GB") from None


def weights(entry):
    return prod(entry.shape)


def sizes(entries, nbytes):
    """The size fields of the result."""
    params = sum(map(weights, entries))
    linear = [e for e in entries if e.linear]
    stored = sum(stored_bytes(e) for e in linear)
    tiles = [e for e in entries if e.recipe.encoded]
    kept = sum(e.recipe.outlier_count(e.shape) for e in tiles)
    return {
        "bytes": nbytes,
        "params": params,
        "bpw": 8 * nbytes / params,
        "bpw_linear": 8 * stored / sum(map(weights, linear)),
        "outlier_fraction": kept / sum(map(weights, tiles)) if tiles else 0.0,
    }


def stored_bytes(entry):
    return sum(TYPES[kind].size(shape) for _, kind, shape in entry.recipe.tensors(entry.name, entry.shape))
