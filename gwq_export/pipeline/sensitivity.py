"""What every way to store every matrix would cost, and the plan that fits a budget."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np

from gwq_export.calibration.gradients import gradients
from gwq_export.compute.results import Memory
from gwq_export.errors import GwqError, about
from gwq_export.format.types import TYPES
from gwq_export.native.library import Pool
from gwq_export.pipeline.plan import file_bytes
from gwq_export.quantization.allocate import Choice, allocate, fill, frontier
from gwq_export.quantization.curvature import Curvatures
from gwq_export.quantization.loss_model import FRACTIONS, KINDS, Sample, choices
from gwq_export.quantization.saliency import SALIENCY

OFFER = np.dtype([("type", "U8"), ("outliers", "f8"), ("nbytes", "i8"), ("loss", "f8")])


def sensitivities(
    source, entries, calibration, free, fraction, device, progress, work=None, estimate=None
):
    """{entry name: [allocate.Choice]} of the matrices: all there is to choose when `free`, else
    what the plan says.

    fraction: of outliers, None to choose among allocate.FRACTIONS. work: a workdir.Memory or
    Workdir. estimate: an estimate.Estimate that looks on.
    """
    chosen = [
        e for e in entries if len(e.shape) > 1 and (e.recipe.encoded or (free and not e.fixed))
    ]
    open_entries = {hf: e for e in chosen for hf in e.sources}
    rules = {s for e in open_entries.values() for s in SALIENCY[e.recipe.saliency].statistics}
    statistics = sorted({"hessian", "rows"} | rules)
    ends = [hf for hf, e in open_entries.items() if not e.linear]
    work, pool, curvatures = work or Memory(), Pool(), Curvatures(calibration.tokens.numel())
    rows = {hf: kept[0] for hf in open_entries if (kept := work.get(hf))}  # of OFFER, by matrix
    finished = lambda name: name not in open_entries or name in rows  # noqa: E731
    items = gradients(
        source, calibration, statistics, ends, device, progress, work, finished, sampled_labels=True
    )
    for name, weight, found in estimate.watch(items) if estimate else items:
        if entry := open_entries.get(name):
            found = curvatures.put(found, calibration.reached.get(name))
            if estimate and entry.recipe.statistics:
                estimate.sample(entry, lambda: weight, found)  # noqa: B023  (called at once)
            found = entry.arrange.statistics(found)
            sample = Sample(
                entry.arrange.weight(weight),
                found,
                entry.recipe.saliency,
                entry.recipe.seed,
                pool.ptr,
            )
            kinds, fractions = (entry.recipe.type.name,), (entry.recipe.outliers,)
            if free and not entry.fixed:
                kinds = KINDS
                if fraction is None:
                    fractions = FRACTIONS
            with about(entry.name):
                offers = choices(
                    sample,
                    entry.recipe,
                    partial(file_bytes, entry.name, entry.shape),
                    kinds,
                    fractions,
                )
            rows[name] = np.array(
                [(c.recipe.type.name, c.recipe.outliers, c.nbytes, c.loss) for c in offers], OFFER
            )
            work.save(name, rows[name])
    return {e.name: _together(e, [rows[hf] for hf in e.sources]) for e in chosen}


def _together(entry, matrices):
    """Choices of an entry from the rows of OFFER of each of its matrices: one recipe for all, whose
    losses add up.
    """
    losses = {}
    for offers in matrices:
        for type, outliers, nbytes, loss in offers.tolist():
            losses.setdefault((type, outliers, nbytes), []).append(loss)
    recipe_of = lambda type, outliers: replace(entry.recipe, type=TYPES[type], outliers=outliers)  # noqa: E731
    return [
        Choice(recipe_of(*how), nbytes, sum(loss))
        for (*how, nbytes), loss in losses.items()
        if len(loss) == len(matrices)
    ]


def loss_of(entry, offers):
    """Predicted loss of an entry's recipe: that of the offer, or between the two offers around its
    outliers.
    """
    alike = sorted(
        (c.recipe.outliers, c.loss) for c in offers if c.recipe.type == entry.recipe.type
    )
    for (a, low), (b, high) in pairwise(alike):
        if a <= entry.recipe.outliers < b:
            return low + (high - low) * (entry.recipe.outliers - a) / (b - a)
    return alike[-1][1]


def fit(entries, offers, budget, size):
    """Entries of least predicted loss whose file, size(entries) bytes, fits the budget.

    Raises GwqError when none does.
    """
    names = [e.name for e in entries if e.name in offers and not e.fixed]

    def with_recipes(recipes):
        return [replace(e, recipe=recipes[e.name]) if e.name in recipes else e for e in entries]

    options, chosen = [offers[n] for n in names], [e for e in entries if e.name in names]
    fronts = [frontier(o) for o in options]
    sizes = [partial(file_bytes, e.name, e.shape) for e in chosen]
    least = size(with_recipes({n: o[0].recipe for n, o in zip(names, fronts, strict=True)}))
    most = size(with_recipes({n: o[-1].recipe for n, o in zip(names, fronts, strict=True)}))
    overhead = least - sum(o[0].nbytes for o in fronts)
    if budget < least:
        raise GwqError(
            f"the budget of {budget} bytes is too small: the smallest file takes {least}; give a larger --size or --bpw"
        )
    if budget * 0.995 > most:
        raise GwqError(
            f"the budget of {budget} bytes is larger than the model in F16 ({most} bytes): use --type f16"
        )
    room = budget - overhead
    while True:  # the header's own alignment may take what was left
        recipes = dict(zip(names, fill(options, allocate(options, room), sizes, room), strict=True))
        if (took := size(with_recipes(recipes))) <= budget:
            return with_recipes(recipes)
        room -= took - budget
