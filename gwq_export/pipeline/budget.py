"""Which sizes a budget can reach: known from shapes alone, so before anything is calibrated."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from gwq_export.errors import GwqError
from gwq_export.format.types import TYPES
from gwq_export.pipeline.plan import TensorPlan, file_bytes
from gwq_export.quantization.loss_model import offered
from gwq_export.quantization.recipe import Recipe

Size = Callable[[Sequence[TensorPlan]], int]  # bytes of the file of these plans


class Reach(NamedTuple):
    """The smallest and the largest file that choices of types and outliers give, in bytes."""

    smallest: int
    largest: int
    weights: int  # of the model


def within_reach(plans: Sequence[TensorPlan], fraction: float | None, size: Size) -> Reach:
    """What a budget for these plans can reach.

    fraction: of outliers, None where that is chosen too.
    """
    smallest = [replace(p, recipe=min(_ways(p, fraction), key=_size_of(p))) for p in plans]
    largest = [replace(p, recipe=max(_ways(p, fraction), key=_size_of(p))) for p in plans]
    return Reach(size(smallest), size(largest), sum(p.weights for p in plans))


def _size_of(plan: TensorPlan) -> Callable[[Recipe], int]:
    return partial(file_bytes, plan.name, plan.shape)


def _ways(plan: TensorPlan, fraction: float | None) -> list[Recipe]:
    """What a budget may choose for a tensor: only what it is, where it is left alone."""
    if plan.fixed or len(plan.shape) == 1:
        return [plan.recipe]
    cols = plan.shape[-1]
    return [
        replace(plan.recipe, type=TYPES[name], outliers=outliers)
        for name, fractions in offered(cols, fraction).items()
        if TYPES[name].bits or cols % TYPES[name].unit == 0
        for outliers in fractions
    ]


def check_budget(budget: int, reach: Reach) -> None:
    """Raise GwqError for a budget below the smallest file or far above the largest."""
    smallest, largest, weights = reach
    if budget < smallest:
        raise GwqError(
            f"the budget of {budget} bytes is too small: the smallest file takes {smallest}"
            f" ({8 * smallest / weights:.2f} bits per weight); give a larger --size or --bpw"
        )
    if budget * 0.995 > largest:
        raise GwqError(
            f"the budget of {budget} bytes is larger than the model in F16 ({largest} bytes,"
            f" {8 * largest / weights:.2f} bits per weight): use --type f16"
        )
