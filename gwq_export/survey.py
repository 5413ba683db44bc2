"""What every way to store every matrix would cost, and the plan that fits a budget."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

from gwq_export import GwqError
from gwq_export.allocate import FRACTIONS, KINDS, Sample, allocate, choices, fill, frontier
from gwq_export.calibrate import gradients
from gwq_export.encoder import Curvatures
from gwq_export.native import Pool
from gwq_export.plan import file_bytes
from gwq_export.saliency import SALIENCY


def survey(source, entries, calibration, free, fraction, device, progress):
    """{entry name: [allocate.Choice]} of the matrices: all there is to choose when `free`, else what the plan says.

    fraction: of outliers, None to choose among allocate.FRACTIONS.
    """
    chosen = [e for e in entries if len(e.shape) > 1 and (e.recipe.type.bits or (free and not e.fixed))]
    open_entries = {hf: e for e in chosen for hf in e.sources}
    rules = {s for e in open_entries.values() for s in SALIENCY[e.recipe.saliency].statistics}
    statistics = sorted({"hessian", "rows"} | rules)
    ends = [hf for hf, e in open_entries.items() if not e.linear]
    pool, curvatures, offers = Pool(), Curvatures(calibration.tokens.numel()), {}
    for name, weight, found in gradients(source, calibration, statistics, ends, device, progress):
        if entry := open_entries.get(name):
            found = entry.arrange.statistics(curvatures.put(found, calibration.reached.get(name)))
            sample = Sample(entry.arrange.weight(weight), found, entry.recipe.saliency, entry.recipe.seed, pool.ptr)
            kinds, fractions = (entry.recipe.type.name,), (entry.recipe.outliers,)
            if free and not entry.fixed:
                kinds = KINDS
                if fraction is None:
                    fractions = FRACTIONS
            found = choices(sample, entry.recipe, partial(file_bytes, entry.name, entry.shape), kinds, fractions)
            offers[entry.name] = together(offers[entry.name], found) if entry.name in offers else found
    return offers


def together(first, second):
    """Choices of a tensor from those of its matrices so far and of another one: one recipe for all, whose losses add up."""
    losses = {c.recipe: c.loss for c in second}
    return [replace(c, loss=c.loss + losses[c.recipe]) for c in first if c.recipe in losses]


def loss_of(entry, offers):
    """Predicted loss of an entry's recipe: that of the offer, or between the two offers around its outliers."""
    alike = sorted((c.recipe.outliers, c.loss) for c in offers if c.recipe.type == entry.recipe.type)
    for (a, low), (b, high) in pairwise(alike):
        if a <= entry.recipe.outliers < b:
            return low + (high - low) * (entry.recipe.outliers - a) / (b - a)
    return alike[-1][1]


def fit(entries, offers, budget, size):
    """Entries of least predicted loss whose file, size(entries) bytes, fits the budget. Raises GwqError when none does."""
    names = [e.name for e in entries if len(offers.get(e.name, ())) > 1]

    def with_recipes(recipes):
        return [replace(e, recipe=recipes[e.name]) if e.name in recipes else e for e in entries]

    options, chosen = [offers[n] for n in names], [e for e in entries if e.name in names]
    fronts = [frontier(o) for o in options]
    sizes = [partial(file_bytes, e.name, e.shape) for e in chosen]
    least = size(with_recipes({n: o[0].recipe for n, o in zip(names, fronts, strict=True)}))
    most = size(with_recipes({n: o[-1].recipe for n, o in zip(names, fronts, strict=True)}))
    overhead = least - sum(o[0].nbytes for o in fronts)
    if budget < least:
        raise GwqError(f"the budget of {budget} bytes is too small: the smallest file takes {least}; give a larger --size or --bpw")
    if budget * 0.995 > most:
        raise GwqError(f"the budget of {budget} bytes is larger than the model in F16 ({most} bytes): use --type f16")
    room = budget - overhead
    while True:  # the header's own alignment may take what was left
        recipes = dict(zip(names, fill(options, allocate(options, room), sizes, room), strict=True))
        if (took := size(with_recipes(recipes))) <= budget:
            return with_recipes(recipes)
        room -= took - budget
