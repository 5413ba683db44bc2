"""The tables of the ablation, each a function that returns Markdown, and the points of its plot."""

import statistics as st
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import numpy as np

from gwq_export import GwqError
from gwq_export.bench.cases import Case, build
from gwq_export.bench.kernels import sample
from gwq_export.format.decoding import dequantize
from gwq_export.format.types import TYPES, tensor_type
from gwq_export.machine import cpu_name
from gwq_export.native.library import Pool, isa
from gwq_export.native.ops import Ops
from gwq_export.pipeline.tuning_steps import BITS
from gwq_export.quantization.loss_model import OFFERED
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from studies.ablation_lab import default, mean, paper

TILE_TYPES = ("gwq4", "gwq3", "gwq2")
NEXT_TYPE = {"gwq2": "gwq3", "gwq3": "gwq4", "gwq4": "q8_0"}  # the one with more bits
RULES = (
    *("random", "magnitude", "grad", "fisher", "error", "hessian", "relief"),
    *("fisher-loss", "loss"),
)
GGML_TYPES = (
    *("q4_0", "iq4_nl", "q4_k", "iq4_xs", "q3_k", "iq3_s", "iq3_xxs"),
    *("q2_k", "iq2_s", "iq2_xs"),
)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    types: tuple = TILE_TYPES
    rules: tuple = RULES
    fractions: tuple = (0.0, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02)
    budgets: tuple = (2.375, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75)
    ggml: tuple = GGML_TYPES
    offers: tuple = OFFERED["gwq4"]  # fractions of outliers that allocation chooses from
    presets: tuple = ("default", "paper")


FEW = Extent(
    rules=("random", "magnitude", "grad", "fisher", "loss"), fractions=(0.0, 0.001, 0.0025, 0.01)
)
QUICK = Extent(
    types=("gwq2",),
    rules=("random", "loss"),
    fractions=(0.0, 0.01),
    budgets=(3.0,),
    ggml=("q4_0",),
    offers=(0.0, 0.01),
    presets=("default",),
)


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def kld(row, best=False):
    """Three digits and the error of the mean in the same places."""
    places = max(0, 2 - int(np.floor(np.log10(max(row.kld, 1e-9)))))
    text = f"{row.kld:.{places}f}"
    text = f"**{text}**" if best else text
    return text if row.error is None else f"{text} ± {row.error:.{places}f}"


def percent(fraction):
    return f"{100 * fraction:g} %"


def say(lab, what):
    print(f"{time.strftime('%H:%M:%S')} {lab.name}: {what}", file=sys.stderr)


def uniform(lab, type, **changes):
    """seed -> the default preset, changed, for every linear."""
    recipe = default(type, **changes)
    return lambda seed: lab.uniform(recipe, seed)


def allocated(lab, bits, extent, fractions=None):
    """seed -> types and fractions of outliers allocated at so many bits per weight."""
    return lambda seed: lab.allocated(bits, seed, extent.offers if fractions is None else fractions)


def saliency(lab, extent):
    """Table A: which weights stay FP16, and how many."""
    return "\n".join(saliency_of(lab, extent, type) for type in extent.types)


def saliency_of(lab, extent, type):
    """A line for every rule, a column for every fraction of outliers."""
    first = extent.rules[0]
    cells = {}
    for fraction in extent.fractions:
        for rule in extent.rules if fraction else (first,):
            recipes = uniform(lab, type, outliers=fraction, saliency=rule)
            cells[rule, fraction] = lab.over_seeds(recipes)
        say(lab, f"{type}, {percent(fraction)} outliers by every rule")

    bits = [f"{percent(f)} ({cells[first, f].bpw:.2f} bits)" for f in extent.fractions]
    best = {f: min(cells[rule, f].kld for rule in extent.rules) for f in extent.fractions if f}
    rows = []
    if 0.0 in extent.fractions:
        empty = [""] * (len(extent.fractions) - 1)
        rows.append(["no outliers", kld(cells[first, 0.0]), *empty])
    for rule in extent.rules:
        line = [f"`{rule}` (default)" if rule == default(type).saliency else f"`{rule}`"]
        for f in extent.fractions:
            line.append(kld(cells[rule, f], cells[rule, f].kld == best[f]) if f else "")
        rows.append(line)
    return markdown([f"{type}: rule", *bits], rows)


def spending(lab, extent):
    """Table B: the bytes of 1 % outliers, spent in other ways."""
    out = []
    for type in extent.types:
        bigger = NEXT_TYPE[type]
        bits = lab.measure(lab.uniform(default(type, outliers=0.01), 0), 0).bpw
        ways = {
            f"{type} without outliers": uniform(lab, type, outliers=0.0),
            "+ 1 % by `grad`": uniform(lab, type, outliers=0.01, saliency="grad"),
            "+ 1 % by `loss`": uniform(lab, type, outliers=0.01),
            "types allocated to matrices, no outliers": allocated(lab, bits, extent, (0.0,)),
            "types and outliers allocated (`--bpw`)": allocated(lab, bits, extent),
            f"{bigger} without outliers": uniform(lab, bigger, outliers=0.0),
        }
        unit = TYPES[bigger].unit
        if any(e.shape[1] % unit for e in lab.linear) and not TYPES[bigger].bits:
            del ways[f"{bigger} without outliers"]  # its blocks do not divide a width
        rows = []
        for name, make in ways.items():
            row = lab.over_seeds(make)
            rows.append([name, f"{row.bpw:.3f}", kld(row), f"{row.ppl_ratio:.4f}"])
        head = [f"at about {bits:.2f} bits", "bits per weight", "KL divergence", "perplexity ratio"]
        out.append(markdown(head, rows))
        say(lab, f"{type}: the bytes of 1 % spent otherwise")
    return "\n".join(out)


def steps(type):
    """{what a line of the ladder adds: (recipe, samples for its gradients)}; None: all of them."""
    plain = paper(type, outliers=0.0)
    fisher = replace(plain, curvature=True)
    trellis = replace(fisher, table="trellis")
    swept = replace(trellis, feedback=True, sweeps=1)
    usual = default(type)
    assert replace(swept, outliers=usual.outliers, saliency=usual.saliency) == usual
    ladder = {
        "uniform grid, round to nearest": (plain, None),
        "+ 1 % outliers by \\|gradient\\| of one sample: preset `paper`": (paper(type), 1),
        "the same, gradient of all samples": (paper(type), None),
        "instead: scales under the Fisher factors, no outliers": (fisher, None),
        "+ non-uniform table": (replace(fisher, table="scalar"), None),
        "+ trellis table": (trellis, None),
        "+ error feedback": (replace(trellis, feedback=True), None),
        "the same without the trellis": (replace(trellis, feedback=True, table="scalar"), None),
        "+ one sweep": (swept, None),
        "+ 0.25 % outliers by `loss`: preset `default`": (usual, None),
    }
    if not TYPES[type].history:  # then the trellis is the non-uniform table
        del ladder["+ trellis table"]
        del ladder["the same without the trellis"]
    return ladder


def ladder(lab, extent):
    """Table C: one step at a time."""
    out = []
    for type in extent.types:
        rows = []
        for name, (recipe, samples) in steps(type).items():
            recipes = [lab.measure(lab.uniform(recipe, s), s, samples) for s in lab.seeds]
            rows.append([name, mean(recipes)])
        bits = rows[-1][1].bpw
        spent = "allocation of types and outliers at the same bytes"
        if bits < BITS:
            tuned = [lab.measure_tuned(type, seed) for seed in lab.seeds]
            rows.append(["+ tuning", mean(tuned)])
            spent = f"instead of tuning: {spent}"
        else:
            spent = f"+ {spent}"
        rows.append([spent, lab.over_seeds(allocated(lab, bits, extent))])
        first = rows[0][1]
        cells = [
            [
                name,
                f"{r.bpw:.3f}",
                kld(r),
                f"{r.kld / first.kld:.2f}",
                f"{r.ppl_ratio:.4f}",
                f"{1e6 * r.seconds / lab.weights:.2f}",
            ]
            for name, r in rows
        ]
        head = [
            type,
            "bits per weight",
            "KL divergence",
            "of the first line's",
            "perplexity ratio",
            "encoding, s per million weights",
        ]
        out.append(markdown(head, cells))
        say(lab, f"{type}: ladder")
    return "\n".join(out)


def kernels(extent, shape=(2048, 2048), working_set=96 << 20, repeats=15):
    """Decode speed by outliers, in alternation: matrix times vector, one thread, out of memory."""
    ops = Ops(Pool(1))
    fractions = (0.0, 0.0025, 0.01)
    rows = []
    for type in extent.types:
        cases = [Case("gemv", type, shape, 1, fraction) for fraction in fractions]
        built = [build(case, ops, working_set)[0] for case in cases]
        runs = [cycle(partial(call, ops) for call in calls) for calls in built]
        times = [[] for _ in fractions]
        for _ in range(repeats):
            for calls, found in zip(runs, times, strict=True):
                found.append(sample(calls))
        speed = shape[0] * shape[1] / st.median(times[0]) / 1e9
        ratios = [st.median(a / b for a, b in zip(times[0], t, strict=True)) for t in times[1:]]
        rows.append([type, f"{speed:.1f}", *(f"{r:.2f}" for r in ratios)])
    head = ["type", "Gweights/s, no outliers", "speed with 0.25 %", "with 1 %"]
    return (
        f"{cpu_name()}, {isa()}, one thread, {shape[0]} x {shape[1]}; medians of {repeats} "
        f"alternating rounds.\n\n{markdown(head, rows)}"
    )


def files(lab, extent):
    """A few rows again, as real files."""
    rows = []
    for type in extent.types:
        for preset in extent.presets:
            recipe, samples = (paper(type), 1) if preset == "paper" else (default(type), None)
            here = lab.measure(lab.uniform(recipe, 0), 0, samples).kld
            options = {"samples": samples} if samples else {}
            found = lab.of_file(type=type, preset=preset, seed=0, tune=0, **options)
            cells = [f"{value:.5f}" for value in (here, *found)]
            rows.append([f"{type}, preset `{preset}`", *cells])
    say(lab, "real files")
    head = [
        "recipe",
        "here",
        "the file's weights in transformers",
        "the runtime, F32 embedding and head",
        "the runtime, as exported",
    ]
    return markdown(head, rows)


def weight_space(path, names):
    """(number of matrices, table D): relative RMS error on real matrices, without calibration.

    path: a safetensors file. names: parts of names, one of which a matrix must have.
    """
    import gguf
    from safetensors.numpy import load_file

    named = [a for n, a in sorted(load_file(path).items()) if any(part in n for part in names)]
    matrices = [np.ascontiguousarray(a, np.float32) for a in named]
    total = sum(a.size for a in matrices)
    squares = sum(float((a.astype(np.float64) ** 2).sum()) for a in matrices)
    pool = Pool(1)
    rows = []

    def row(name, nbytes, decoded):
        error = sum(
            float(((d - a).astype(np.float64) ** 2).sum())
            for d, a in zip(decoded, matrices, strict=True)
        )
        rows.append([name, f"{8 * nbytes / total:.3f}", f"{(error / squares) ** 0.5:.4f}"])

    kind = gguf.GGMLQuantizationType.Q4_0
    raw = [gguf.quants.quantize(a, kind) for a in matrices]
    decoded = [gguf.quants.dequantize(r, kind) for r in raw]
    row("Q4_0 (gguf package)", sum(r.nbytes for r in raw), decoded)
    for type in TILE_TYPES:
        tables = ("grid", "scalar", "trellis") if TYPES[type].history else ("grid", "scalar")
        for table in tables:
            recipe = Recipe(
                tensor_type(type), table=table, curvature=False, feedback=False, sweeps=0
            )
            parts = [quantize(a, {}, recipe, pool.ptr)[0] for a in matrices]
            decoded = [
                dequantize(recipe.type, p, a.shape) for p, a in zip(parts, matrices, strict=True)
            ]
            row(f"{type}, {table}", sum(p.nbytes for p in parts), decoded)
    return len(matrices), markdown(["", "bits per weight", "relative RMS error"], rows)


def curves(lab, extent):
    """{series: [(bits, KL divergence, label)]} of the plot, calibration seed 0."""
    budgeted = []
    one_type = []
    plain = []
    for bits in extent.budgets:
        if entries := allocated(lab, bits, extent)(0):
            row = lab.measure(entries, 0)
            budgeted.append((row.bpw, row.kld, ""))
    for type in extent.types:
        row = lab.measure(lab.uniform(default(type), 0), 0)
        one_type.append((row.bpw, row.kld, type))
        row = lab.measure(lab.uniform(paper(type), 0), 0, 1)
        plain.append((row.bpw, row.kld, type))
    try:
        found = {name: lab.measure_ggml(name) for name in extent.ggml}
    except GwqError as e:
        print(f"{e}: no ggml types in the plot", file=sys.stderr)
        found = {}
    out = {
        "default preset under a budget": budgeted,
        "default preset, one type": one_type,
        "preset paper": plain,
        "llama.cpp, with importance": [(r.bpw, r.kld, name) for name, r in found.items() if r],
    }
    say(lab, "plot")
    return {name: sorted(points) for name, points in out.items() if points}
