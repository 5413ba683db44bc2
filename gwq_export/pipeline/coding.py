"""One matrix: read from the checkpoint, coded, decoded again."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.hf.source import Source
from gwq_export.native.library import Pool
from gwq_export.native.matrix import Matrix
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.quantization.quantize import quantize


def read(source: Source, hf: str) -> np.ndarray:
    """A tensor of the checkpoint, float32."""
    return source.tensor(hf).numpy()


def encode(
    pool: Pool, plan: TensorPlan, weight: np.ndarray, statistics: dict[str, Any]
) -> list[np.ndarray]:
    """The bytes of a plan's tensors, or of an expert's part of them, from its matrix.

    weight and statistics: in the checkpoint's layout. Raises GwqError, naming the tensor.
    """
    try:
        return quantize(
            plan.arrange.weight(weight),
            plan.arrange.statistics(statistics),
            plan.recipe,
            pool.ptr,
        )
    except GwqError as e:
        raise GwqError(f"{plan.name}: {e}") from None


def decode(pool: Pool, plan: TensorPlan, parts: Sequence[np.ndarray]) -> np.ndarray:
    """What `encode` made of a matrix, float32, in the checkpoint's layout.

    Of a bridge file what every program reads, without the corrections beside it.
    """
    data, *table = parts
    side = (table[0], table[1].view(np.int32)) if table and plan.recipe.type.bits else None
    matrix = Matrix(plan.name, plan.recipe.type, plan.shape[-2:], data, side)
    return plan.arrange.inverse(matrix.dequantize(pool))
