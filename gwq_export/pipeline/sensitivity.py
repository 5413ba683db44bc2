"""What every way to store every matrix would cost, and the plan that fits a budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.text import Calibration
from gwq_export.compute.results import Memory
from gwq_export.errors import about
from gwq_export.format.types import TYPES
from gwq_export.hf.source import Source
from gwq_export.native.library import Pool
from gwq_export.pipeline.budget import Reach, check_budget
from gwq_export.pipeline.estimate import Estimate
from gwq_export.pipeline.plan import TensorPlan, file_bytes
from gwq_export.pipeline.statistics_store import StatisticsStore
from gwq_export.quantization.allocate import Choice, allocate, fill, frontier
from gwq_export.quantization.curvature import Curvatures
from gwq_export.quantization.loss_model import Sample, choices, offered
from gwq_export.quantization.saliency import SALIENCY

OFFER = np.dtype([("type", "U8"), ("outliers", "f8"), ("nbytes", "i8"), ("loss", "f8")])
Offers = dict[str, list[Choice]]  # GGUF name -> choices


def sensitivities(
    source: Source,
    plans: Sequence[TensorPlan],
    calibration: Calibration,
    free: bool,
    fraction: float | None,
    device: str,
    progress: Callable[[str, int, int], None],
    work: Memory | None = None,
    estimate: Estimate | None = None,
    kept: StatisticsStore | None = None,
) -> Offers:
    """The choices of every matrix, with their bytes and predicted losses.

    free: all there is to choose, where a plan is not fixed; else what the plan says. fraction: of
    outliers; None offers those of `loss_model.OFFERED`. work: results of an earlier run are taken
    from there. estimate: looks on. kept: takes the statistics of every matrix.
    """
    work = work or Memory()
    pool = Pool()
    curvatures = Curvatures(calibration.tokens.numel())
    chosen = [p for p in plans if len(p.shape) > 1 and (p.recipe.encoded or (free and not p.fixed))]
    plan_of = {hf: p for p in chosen for hf in p.sources}
    rows = {}  # of OFFER, by matrix
    for hf in plan_of:
        if (done := work.get(hf)) and (kept is None or hf in kept):
            rows[hf] = done[0]
    wanted = {s for p in chosen for s in SALIENCY[p.recipe.saliency].statistics}
    wanted |= {s for p in chosen for s in p.recipe.statistics}
    items = gradients(
        source,
        calibration,
        sorted({"hessian", "rows"} | wanted),
        [hf for hf, p in plan_of.items() if not p.linear],
        device,
        progress,
        work,
        lambda name: name not in plan_of or name in rows,
        sampled_labels=True,
    )
    for name, weight, statistics in estimate.watch(items) if estimate else items:
        plan = plan_of.get(name)
        if plan is None:
            continue
        if kept is not None:
            kept.put(name, statistics)
        statistics = curvatures.put(statistics, calibration.reached.get(name))
        if estimate and plan.recipe.statistics:
            estimate.sample(plan, partial(np.asarray, weight), statistics)
        is_free = free and not plan.fixed
        offers = _offers(plan, weight, statistics, is_free, fraction, pool)
        table = [(c.recipe.type.name, c.recipe.outliers, c.nbytes, c.loss) for c in offers]
        rows[name] = np.array(table, OFFER)
        work.save(name, rows[name])
    return {p.name: _together(p, [rows[hf] for hf in p.sources]) for p in chosen}


def _offers(
    plan: TensorPlan,
    weight: np.ndarray,
    statistics: dict[str, Any],
    is_free: bool,
    fraction: float | None,
    pool: Pool,
) -> list[Choice]:
    """Choices of one matrix, (rows, cols) as in the checkpoint."""
    recipe = plan.recipe
    sample = Sample(
        plan.arrange.weight(weight),
        plan.arrange.statistics(statistics),
        recipe.saliency,
        recipe.seed,
        pool.ptr,
    )
    types: dict[str, tuple[float, ...]] = {recipe.type.name: (recipe.outliers,)}
    if is_free:
        types = offered(sample.shape[1], fraction)
    with about(plan.name):
        size = partial(file_bytes, plan.name, plan.shape)
        return choices(sample, recipe, size, types)


def _together(plan: TensorPlan, matrices: Sequence[np.ndarray]) -> list[Choice]:
    """Choices of a tensor from the rows of OFFER of each of its matrices.

    All experts share one recipe, and their losses add up.
    """
    losses: dict[tuple[str, float, int], list[float]] = {}
    for offers in matrices:
        for type, outliers, nbytes, loss in offers.tolist():
            losses.setdefault((type, outliers, nbytes), []).append(loss)
    return [
        Choice(replace(plan.recipe, type=TYPES[type], outliers=outliers), nbytes, sum(loss))
        for (type, outliers, nbytes), loss in losses.items()
        if len(loss) == len(matrices)
    ]


def loss_of(plan: TensorPlan, offers: Sequence[Choice]) -> float:
    """Predicted loss of a plan's recipe: an offer's, or between the offers around its outliers."""
    outliers = plan.recipe.outliers
    alike = sorted((c.recipe.outliers, c.loss) for c in offers if c.recipe.type == plan.recipe.type)
    for (a, low), (b, high) in pairwise(alike):
        if a <= outliers < b:
            return low + (high - low) * (outliers - a) / (b - a)
    return alike[-1][1]


def predictions(
    plans: Sequence[TensorPlan], offers: Offers, calibration: Calibration
) -> dict[str, Any]:
    """What the offers say of the plans: the loss they add, perplexities, and the plan itself."""
    losses = {p.name: loss_of(p, offers[p.name]) for p in plans if p.name in offers}
    added = sum(losses.values())
    rows = [
        {
            "name": p.name,
            "type": p.recipe.type.name,
            "outliers": p.outliers,
            "bytes": p.stored_bytes,
            "loss": losses.get(p.name),
        }
        for p in plans
    ]
    return {
        "predicted_loss": added,
        "calibration_ppl": math.exp(calibration.loss),
        "predicted_ppl": math.exp(calibration.loss + added),
        "plan": rows,
    }


def fit(
    plans: Sequence[TensorPlan],
    offers: Offers,
    budget: int,
    size: Callable[[Sequence[TensorPlan]], int],
) -> list[TensorPlan]:
    """Plans of least predicted loss whose file, size(plans) bytes, fits the budget.

    Raises GwqError when none does, and when the model in F16 would be smaller.
    """
    chosen = [p for p in plans if p.name in offers and not p.fixed]
    names = [p.name for p in chosen]

    def with_recipes(recipes: Sequence[Any]) -> list[TensorPlan]:
        recipe_of = dict(zip(names, recipes, strict=True))
        return [replace(p, recipe=recipe_of.get(p.name, p.recipe)) for p in plans]

    options = [offers[n] for n in names]
    fronts = [frontier(o) for o in options]
    sizes = [partial(file_bytes, p.name, p.shape) for p in chosen]
    smallest = size(with_recipes([o[0].recipe for o in fronts]))
    largest = size(with_recipes([o[-1].recipe for o in fronts]))
    check_budget(budget, Reach(smallest, largest, sum(p.weights for p in plans)))
    overhead = smallest - sum(o[0].nbytes for o in fronts)
    room = budget - overhead
    while True:  # the header's own alignment may take what was left
        picked = allocate(options, room)
        assert picked is not None  # the smallest choices fit into the budget
        recipes = fill(options, picked, sizes, room)
        fitted = with_recipes(recipes)
        excess = size(fitted) - budget
        if excess <= 0:
            return fitted
        room -= excess
