"""Turns one matrix into bytes: chooses outliers, encodes the rest, packs the side-table.

`quantize(weight, statistics, recipe)` is a pure function of its arguments: same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gwq_export.compute.linalg import product
from gwq_export.errors import GwqError
from gwq_export.format.decoding import levels, windows_at
from gwq_export.format.ggml_types import encode_ggml, pack_codes
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import TensorType, ffi
from gwq_export.quantization.curvature import curvature_of
from gwq_export.quantization.deltas import corrections
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.matrix_codes import Encoded
from gwq_export.quantization.recipe import Recipe
from gwq_export.quantization.saliency import SALIENCY, select

LARGEST_WEIGHT = 2.0**40  # of a tile type: squares and their sums are far from overflow
FP16_MAX = 65504  # bounds the weights of a ggml type with FP16 scales
# Of what makes up for drift: D is known from few tokens, and what a matrix does for errors in front
# of it, those behind it do, too.
TAKEN = 0.7
CHUNK = 1 << 16  # weights of a ggml type that are rounded at once


def quantize(
    weight: np.ndarray, statistics: Mapping[str, Any], recipe: Recipe, pool: Any = ffi.NULL
) -> list[np.ndarray]:
    """Encode a weight (rows, cols), or (n,) of an unquantized type, float32.

    statistics: what `recipe.statistics` names: arrays of the weight's shape, "rows" (rows,),
    "hessian" (cols, cols) or a Curvature made from it; and, if there are any, "outputs" (rows,
    width) and "drift" (cols, cols), D of `calibration.drift`, whose H' is "hessian" then. pool: a
    `gwq_pool *`, or NULL for one thread. Returns the bytes (uint8 arrays) of the tensors in the
    order of `recipe.tensors`. Raises GwqError for a weight that the type's FP16 numbers cannot
    hold.
    """
    if not recipe.encoded:
        return [_encode_ggml(recipe.type, weight)]
    options: dict[str, Any] = {"pool": pool}
    if recipe.curvature:
        if recipe.drift:
            weight = _for_drifted_inputs(weight, statistics)
        options |= {
            "curvature": curvature_of(statistics),
            "outputs": statistics.get("outputs") if recipe.outputs else None,
            "row_weight": statistics["rows"],
            "feedback": recipe.feedback,
            "sweeps": recipe.sweeps,
        }
    check_range(weight, recipe)
    if recipe.type.levels:
        return _quantize_ggml(weight, recipe, options)
    return _quantize_tiles(weight, statistics, recipe, options)


def _for_drifted_inputs(weight: np.ndarray, statistics: Mapping[str, Any]) -> np.ndarray:
    """The weight as `calibration.drift` would have it, W + TAKEN W D H'^-1; W where it knows none.

    Raises GwqError where H' cannot be factorized.
    """
    drift = statistics.get("drift")
    if drift is None:
        return weight
    moved = curvature_of(statistics).divide(product(weight, drift))
    return weight + np.float32(TAKEN) * moved


def _quantize_ggml(weight: np.ndarray, recipe: Recipe, options: dict[str, Any]) -> list[np.ndarray]:
    """Codes of a ggml type with levels and, where asked for, corrections beside them."""
    e = encode(weight, recipe.type, recipe.levels, **options)
    parts = [pack_codes(recipe.type, e.scales, e.codes)]
    count = recipe.outlier_count(weight.shape)
    if count:
        row, col, value = corrections(
            weight, e.values, options["curvature"], options["row_weight"], count
        )
        side_table = pack_outliers(row, col, value, weight.shape)
        parts += [array.view(np.uint8) for array in side_table]
    return parts


def _quantize_tiles(
    weight: np.ndarray, statistics: Mapping[str, Any], recipe: Recipe, options: dict[str, Any]
) -> list[np.ndarray]:
    """Tiles and, where asked for, outliers: what they add to the value of the code beneath them."""
    type = recipe.type
    count = recipe.outlier_count(weight.shape)
    if not count:
        e = encode(weight, type, recipe.levels, **options)
        return [_pack(type, e, weight.shape[1])]

    def first() -> np.ndarray:
        """The matrix after a plain quantization, for rules that ask for it."""
        return encode(weight, type, recipe.levels, pool=options["pool"]).values

    rng = np.random.default_rng(recipe.seed)
    keep = select(SALIENCY[recipe.saliency].score(weight, statistics, rng, first), count)
    outlier = np.zeros(weight.shape, bool)
    outlier.reshape(-1)[keep] = True
    e = encode(weight, type, recipe.levels, outlier=outlier, **options)
    row, col = np.divmod(keep, weight.shape[1])
    _clear(e, row, col, type)
    tiles = _pack(type, e, weight.shape[1])
    beneath = _values_at(type, e, row, col)
    added = np.ldexp(e.values[row, col] - beneath, -e.exponent).astype(np.float16)
    records, offsets = pack_outliers(row, col, added, weight.shape)
    return [tiles, records, offsets.view(np.uint8)]


def _values_at(type: TensorType, e: Encoded, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """float32: what the codes at some places stand for, as `decoding.dequantize` has it."""
    assert e.row_scales is not None  # every tile type has them
    entry = levels(type, e.table)[windows_at(type, e.codes, row, col)].astype(np.float32)
    scale = e.scales[row, col // type.sub].astype(np.float32)
    return np.ldexp(e.row_scales[row].astype(np.float32) * (scale * entry), e.exponent)


def _pack(type: TensorType, e: Encoded, cols: int) -> np.ndarray:
    assert e.row_scales is not None  # every tile type has them
    return pack_tiles(type, e.table, e.row_scales, e.scales, e.codes, e.exponent, cols)


def check_range(weight: np.ndarray, recipe: Recipe) -> None:
    """Raise GwqError when a weight of the matrix is too large for the recipe's type."""
    if not recipe.encoded:
        _encode_ggml(recipe.type, weight)  # raises
        return
    limit = LARGEST_WEIGHT if recipe.type.bits else FP16_MAX
    if not np.abs(weight).max(initial=0) < limit:  # also for a NaN
        raise GwqError(
            f"a weight is too large for {recipe.type.name}: "
            "give this tensor a ggml type with --tensor-type NAME=bf16"
        )


def _clear(e: Encoded, row: np.ndarray, col: np.ndarray, type: TensorType) -> None:
    """Give outliers a code that stands for zero, where the table has one.

    Their FP16 value is then the weight itself, and exact. There is such a code if it stands for
    zero whatever the neighbour's bits are.
    """
    by_window = levels(type, e.table).reshape(-1, 1 << type.bits)  # (neighbour's bits, code)
    zero = np.flatnonzero((by_window == 0).all(0))
    if len(zero):
        e.codes[row, col] = zero[0]


def _encode_ggml(type: TensorType, weight: np.ndarray) -> np.ndarray:
    """`encode_ggml` in runs of rows, so that its work arrays stay small."""
    if weight.ndim == 1:
        return encode_ggml(type, weight)
    rows, cols = weight.shape
    out = np.empty(type.nbytes(rows, cols), np.uint8)
    row_bytes = type.nbytes(1, cols)
    step = max(1, CHUNK // cols)
    for first in range(0, rows, step):
        run = encode_ggml(type, weight[first : first + step])
        out[first * row_bytes : (first + step) * row_bytes] = run
    return out
