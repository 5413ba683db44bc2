"""The tables of the ablation, each a function that returns Markdown."""

import statistics as st
import sys
import time
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from gwq_export import GwqError
from gwq_export.bench.cases import Case, build
from gwq_export.bench.kernels import sample
from gwq_export.format.tiles import dequantize
from gwq_export.format.types import TYPES, tensor_type
from gwq_export.machine import cpu_name
from gwq_export.native.library import Pool, isa
from gwq_export.native.ops import Ops
from gwq_export.pipeline.norm_tuning import BITS
from gwq_export.quantization.loss_model import FRACTIONS
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from studies.ablation_lab import default, mean, paper

RULES = (
    "random",
    "magnitude",
    "grad",
    "fisher",
    "error",
    "hessian",
    "relief",
    "fisher-loss",
    "loss",
)
STOCK = ("q4_0", "iq4_nl", "q4_k", "iq4_xs", "q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    types: tuple = ("gwq4", "gwq3", "gwq2")
    rules: tuple = RULES
    fractions: tuple = (0.0, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02)
    budgets: tuple = (2.375, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75)
    stock: tuple = STOCK
    offers: tuple = FRACTIONS  # fractions of outliers that allocation chooses from
    presets: tuple = ("default", "paper")


FEW = Extent(
    rules=("random", "magnitude", "grad", "fisher", "loss"), fractions=(0.0, 0.001, 0.0025, 0.01)
)
QUICK = Extent(
    types=("gwq2",),
    rules=("random", "loss"),
    fractions=(0.0, 0.01),
    budgets=(3.0,),
    stock=("q4_0",),
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
    return lambda seed: lab.allocated(bits, seed, extent.offers if fractions is None else fractions)


def saliency(lab, extent):
    """Table A: which weights stay FP16, and how many."""
    out = []
    for type in extent.types:
        cells = {}
        for fraction in extent.fractions:
            for rule in extent.rules:
                if fraction or rule == extent.rules[0]:
                    cells[rule, fraction] = lab.over_seeds(
                        uniform(lab, type, outliers=fraction, saliency=rule)
                    )
            say(lab, f"{type}, {percent(fraction)} outliers by every rule")
        first = extent.rules[0]
        head = [
            f"{type}: rule",
            *(f"{percent(f)} ({cells[first, f].bpw:.2f} bits)" for f in extent.fractions),
        ]
        best = {f: min(cells[rule, f].kld for rule in extent.rules) for f in extent.fractions if f}
        rows = []
        if 0.0 in extent.fractions:
            rows.append(
                ["no outliers", kld(cells[first, 0.0]), *[""] * (len(extent.fractions) - 1)]
            )
        for rule in extent.rules:
            named = f"`{rule}`" + (" (default)" if rule == default(type).saliency else "")
            rows.append(
                [
                    named,
                    *(
                        kld(cells[rule, f], cells[rule, f].kld == best[f]) if f else ""
                        for f in extent.fractions
                    ),
                ]
            )
        out.append(markdown(head, rows))
    return "\n".join(out)


def spending(lab, extent):
    """Table B: the bytes of 1 % outliers, spent in other ways."""
    out, bigger = [], {"gwq2": "gwq3", "gwq3": "gwq4", "gwq4": "q8_0"}
    for type in extent.types:
        bits = lab.measure(lab.uniform(default(type, outliers=0.01), 0), 0).bpw
        ways = {
            f"{type} without outliers": uniform(lab, type, outliers=0.0),
            "+ 1 % by `grad`": uniform(lab, type, outliers=0.01, saliency="grad"),
            "+ 1 % by `loss`": uniform(lab, type, outliers=0.01),
            "types allocated to matrices, no outliers": allocated(lab, bits, extent, (0.0,)),
            "types and outliers allocated (`--bpw`)": allocated(lab, bits, extent),
            f"{bigger[type]} without outliers": uniform(lab, bigger[type], outliers=0.0),
        }
        unit = TYPES[bigger[type]].unit
        if any(e.shape[1] % unit for e in lab.linear) and not TYPES[bigger[type]].bits:
            del ways[f"{bigger[type]} without outliers"]  # its blocks do not divide a width
        rows = []
        for name, make in ways.items():
            row = lab.over_seeds(make)
            rows.append([name, f"{row.bpw:.3f}", kld(row), f"{row.ppl_ratio:.4f}"])
        out.append(
            markdown(
                [
                    f"at about {bits:.2f} bits",
                    "bits per weight",
                    "KL divergence",
                    "perplexity ratio",
                ],
                rows,
            )
        )
        say(lab, f"{type}: the bytes of 1 % spent otherwise")
    return "\n".join(out)


def steps(type):
    """{what a line of the ladder adds: (recipe, samples for its gradients)}; None: all of them."""
    plain = paper(type, outliers=0.0)
    fisher = replace(plain, curvature=True)
    trellis, usual = replace(fisher, table="trellis"), default(type)
    ladder = {
        "uniform grid, round to nearest": (plain, None),
        "+ 1 % outliers by \\|gradient\\| of one sample: preset `paper`": (paper(type), 1),
        "the same, gradient of all samples": (paper(type), None),
        "instead: scales under the Fisher factors, no outliers": (fisher, None),
        "+ non-uniform table": (replace(fisher, table="scalar"), None),
        "+ trellis table": (trellis, None),
        "+ error feedback": (replace(trellis, feedback=True), None),
        "the same without the trellis": (replace(trellis, feedback=True, table="scalar"), None),
        "+ one sweep": (replace(trellis, feedback=True, sweeps=1), None),
        "+ 0.25 % outliers by `loss`: preset `default`": (usual, None),
    }
    if not TYPES[type].history:
        del (
            ladder["+ trellis table"],
            ladder["the same without the trellis"],
        )  # without history it is the non-uniform table
    assert (
        replace(trellis, feedback=True, sweeps=1, outliers=usual.outliers, saliency=usual.saliency)
        == usual
    )
    return ladder


def ladder(lab, extent):
    """Table C: one lever at a time."""
    out = []
    for type in extent.types:
        rows, first = [], None
        for name, (recipe, samples) in steps(type).items():
            row = lab.over_seeds(lambda seed, recipe=recipe: lab.uniform(recipe, seed), samples)
            first = first or row
            rows.append([name, row])
        bits = rows[-1][1].bpw
        if bits < BITS:
            rows.append(
                ["+ norm tweaking", mean([lab.measure_norms(type, seed) for seed in lab.seeds])]
            )
        rows.append(
            [
                "instead of norm tweaking: allocation of types and outliers at the same bytes"
                if bits < BITS
                else "+ allocation of types and outliers at the same bytes",
                lab.over_seeds(allocated(lab, bits, extent)),
            ]
        )
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
    ops, fractions, rows = Ops(Pool(1)), (0.0, 0.0025, 0.01), []
    for type in extent.types:
        runs = [
            cycle(build(Case("gemv", type, shape, 1, fraction), ops, working_set)[0])
            for fraction in fractions
        ]
        times = [[] for _ in fractions]
        for _ in range(repeats):
            for calls, found in zip(runs, times, strict=True):
                found.append(sample(calls))
        usual = st.median(times[0])
        ratios = [st.median(a / b for a, b in zip(times[0], t, strict=True)) for t in times[1:]]
        rows.append(
            [type, f"{shape[0] * shape[1] / usual / 1e9:.1f}", *(f"{r:.2f}" for r in ratios)]
        )
    return (
        f"{cpu_name()}, {isa()}, one thread, {shape[0]} x {shape[1]}; medians of {repeats} alternating rounds.\n\n"
        + markdown(["type", "Gweights/s, no outliers", "speed with 0.25 %", "with 1 %"], rows)
    )


def files(lab, extent):
    """A few rows again, as real files."""
    rows = []
    for type in extent.types:
        for preset in extent.presets:
            recipe, samples = (paper(type), 1) if preset == "paper" else (default(type), None)
            ours = lab.measure(lab.uniform(recipe, 0), 0, samples).kld
            found = lab.of_file(
                type=type, preset=preset, seed=0, norms=False, **({"samples": 1} if samples else {})
            )
            rows.append(
                [f"{type}, preset `{preset}`", *(f"{value:.5f}" for value in (ours, *found))]
            )
    say(lab, "real files")
    return markdown(
        [
            "recipe",
            "here",
            "the file's weights in transformers",
            "the runtime, F32 embedding and head",
            "the runtime, as exported",
        ],
        rows,
    )


def weight_space(path, names):
    """Table D: relative RMS error on real attention matrices, without calibration."""
    import gguf
    from safetensors.numpy import load_file

    matrices = [
        np.ascontiguousarray(a, np.float32)
        for n, a in sorted(load_file(path).items())
        if any(p in n for p in names)
    ]
    total, squares = (
        sum(a.size for a in matrices),
        sum(float((a.astype(np.float64) ** 2).sum()) for a in matrices),
    )
    rows, pool = [], Pool(1)

    def row(name, nbytes, decoded):
        error = sum(
            float(((d - a).astype(np.float64) ** 2).sum())
            for d, a in zip(decoded, matrices, strict=True)
        )
        rows.append([name, f"{8 * nbytes / total:.3f}", f"{(error / squares) ** 0.5:.4f}"])

    kind = gguf.GGMLQuantizationType.Q4_0
    raw = [gguf.quants.quantize(a, kind) for a in matrices]
    row(
        "Q4_0 (gguf package)",
        sum(r.nbytes for r in raw),
        [gguf.quants.dequantize(r, kind) for r in raw],
    )
    for type in ("gwq4", "gwq3", "gwq2"):
        for table in ("grid", "scalar", "trellis")[: 3 if TYPES[type].history else 2]:
            recipe = Recipe(
                tensor_type(type), table=table, curvature=False, feedback=False, sweeps=0
            )
            parts = [quantize(a, {}, recipe, pool.ptr)[0] for a in matrices]
            row(
                f"{type}, {table}",
                sum(p.nbytes for p in parts),
                [dequantize(recipe.type, p, a.shape) for p, a in zip(parts, matrices, strict=True)],
            )
    return len(matrices), markdown(["", "bits per weight", "relative RMS error"], rows)


def curves(lab, extent):
    """{series: [(bits, KL divergence, label)]} of the plot, calibration seed 0."""
    out = {
        "default preset under a budget": [],
        "default preset, one type": [],
        "preset paper": [],
        "llama.cpp, with importance": [],
    }
    budgeted, single, plain, stocks = out.values()
    for bits in extent.budgets:
        if entries := allocated(lab, bits, extent)(0):
            row = lab.measure(entries, 0)
            budgeted.append((row.bpw, row.kld, ""))
    for type in extent.types:
        row = lab.measure(lab.uniform(default(type), 0), 0)
        single.append((row.bpw, row.kld, type))
        row = lab.measure(lab.uniform(paper(type), 0), 0, 1)
        plain.append((row.bpw, row.kld, type))
    try:
        found = {name: lab.measure_stock(name) for name in extent.stock}
    except GwqError as e:
        print(f"{e}: no ggml types in the plot", file=sys.stderr)
        found = {}
    stocks += sorted((row.bpw, row.kld, name) for name, row in found.items() if row)
    say(lab, "plot")
    return {name: sorted(points) for name, points in out.items() if points}
