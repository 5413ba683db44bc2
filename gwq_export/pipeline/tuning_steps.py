"""How long a file is tuned, and on which text.

The steps take text that calibration has not used: the codes fit what they were chosen on, so their
errors there look smaller than they are. What `--verify` would use stays out, and the windows that
judge are never in a step.
"""

from collections.abc import Iterable

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.pipeline.plan import TensorPlan

# Bits per weight of the decoder's linears from which on nothing is tuned unless steps are asked
# for: the loss is small there.
BITS = 4
TOKENS = 1024  # of a step
JUDGES = 2048  # tokens that judge, at most a quarter of all
WINDOWS = 4  # at least: with fewer, too few are left to judge
# Calibration tokens per step: so many that tuning takes less than a quarter of an export. SmolLM2
# of 135 million weights, `--type gwq2`, 32 samples of 512 tokens, two cores of AMD EPYC (Zen 4):
# 62 of 274 seconds for two steps.
PER_STEP = 7168
# Forward passes that a calibration takes the time of, and so does a step: backward counts as two,
# and runs the block again.
PASSES = 4


def default_steps(calibration_tokens: int) -> int:
    """Steps of an export that calibrates on so many tokens, where none were asked for."""
    return calibration_tokens // PER_STEP


def worthwhile(plans: Iterable[TensorPlan], bits: float, asked: int | None) -> bool:
    """Whether a file is tuned whose decoder linears take `bits` per weight.

    asked: steps that the user wants, None for the default.
    """
    coded = [p for p in plans if can_be_tuned(p)]
    if asked is not None:
        return bool(asked and coded)
    return bits < BITS and any(p.recipe.curvature for p in coded)


def can_be_tuned(plan: TensorPlan) -> bool:
    """Whether a tensor of the file has numbers beside its codes that are tuned."""
    return plan.linear and bool(plan.recipe.type.bits)


def is_norm(name: str) -> bool:
    """Whether a tensor of the file belongs to a norm, whose gains are tuned."""
    return name.endswith(("norm.weight", "norm.bias"))


def check_steps(plans: Iterable[TensorPlan], steps: int | None) -> None:
    """Raise GwqError for steps that no file can take."""
    if steps is not None and steps < 0:
        raise GwqError(f"--tune {steps}: give a number of steps, or 0 for none")
    if steps and not any(map(can_be_tuned, plans)):
        raise GwqError(
            f"--tune {steps}: no matrix of this file has scales and tables to tune: use a type such"
            " as gwq3, or leave out --tune"
        )


def windows_wanted(steps: int, ctx: int) -> int:
    """Windows of ctx tokens that so many steps take, with those that judge."""
    return steps * max(1, TOKENS // ctx) + max(1, JUDGES // ctx)


def divided(windows: int, ctx: int, steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(numbers of the windows of each step, of those that judge); no window does both.

    With too few windows for all steps, they come again.
    """
    judges = max(1, min(JUDGES // ctx, windows // 4))
    rest = np.arange(judges, windows)
    count = min(max(1, TOKENS // ctx), len(rest))
    of_step = [
        np.take(rest, np.arange(k * count, (k + 1) * count), mode="wrap") for k in range(steps)
    ]
    return of_step, np.arange(judges)


def share(windows: int, ctx: int, steps: int, calibration_tokens: int) -> float:
    """Time of the tuning as a share of that of a calibration."""
    of_step, judges = divided(windows, ctx, steps)
    in_steps = ctx * sum(map(len, of_step))
    passes = PASSES * in_steps + 2 * ctx * len(judges) + windows * ctx
    return passes / (PASSES * calibration_tokens)
