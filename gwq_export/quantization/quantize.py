"""Encode one matrix: choose the outliers, encode the rest as tiles, put the side-table beside them.

`quantize(weight, statistics, recipe)` is a pure function of its arguments: same input, same bytes.
"""

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.ggml_types import encode_ggml, pack_codes
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.tiles import dequantize, pack_tiles
from gwq_export.format.types import ffi
from gwq_export.quantization.curvature import curvature_of
from gwq_export.quantization.deltas import corrections
from gwq_export.quantization.encoder import encode
from gwq_export.quantization.saliency import SALIENCY, select

CHUNK = 1 << 16  # weights of a ggml type converted at once


def quantize(weight, statistics, recipe, pool=ffi.NULL):
    """Encode weight (rows, cols) float32.

    statistics: {name of totals.STATISTICS: array of weight's shape, "rows": (rows,), "hessian":
    (cols, cols) or a Curvature made of it}. Returns the bytes (uint8 arrays) in the order of
    `recipe.tensors`. Raises GwqError for a weight that FP16 cannot hold.
    """
    if not recipe.encoded:
        return [_encode_ggml(recipe.type, weight)]
    check_range(weight, recipe)
    options = {"pool": pool}
    if recipe.curvature:
        options |= {
            "curvature": curvature_of(statistics),
            "row_weight": statistics["rows"],
            "feedback": recipe.feedback,
            "sweeps": recipe.sweeps,
        }
    count = recipe.outlier_count(weight.shape)
    if recipe.type.levels:
        e = encode(weight, recipe.type, recipe.levels, **options)
        parts = [pack_codes(recipe.type, e.scales, e.codes)]
        if count:
            found = corrections(
                weight, e.values, options["curvature"], options["row_weight"], count
            )
            parts += [a.view(np.uint8) for a in pack_outliers(*found, weight.shape)]
        return parts
    table, keep = recipe.levels, None
    if count:
        first = lambda: encode(weight, recipe.type, table, pool=pool).values  # noqa: E731  (a plain first quantization)
        score = SALIENCY[recipe.saliency].score(
            weight, statistics, np.random.default_rng(recipe.seed), first
        )
        keep = select(score, count)
        options["outlier"] = np.zeros(weight.shape, bool)
        options["outlier"].reshape(-1)[keep] = True
    e = encode(weight, recipe.type, table, **options)
    if keep is not None:
        row, col = np.divmod(keep, weight.shape[1])
        _clear(e, row, col, recipe.type)
    tiles = pack_tiles(recipe.type, e.table, e.row_scales, e.scales, e.codes)
    if keep is None:
        return [tiles]
    held = dequantize(recipe.type, tiles, weight.shape)[row, col]
    records, offsets = pack_outliers(
        row, col, (e.values[row, col] - held).astype(np.float16), weight.shape
    )
    return [tiles, records, offsets.view(np.uint8)]


def check_range(weight, recipe):
    """Raises GwqError when weight (rows, cols) holds one that is too large for the recipe's type."""
    if not recipe.encoded:
        _encode_ggml(recipe.type, weight)  # which refuses it
    elif not np.abs(weight).max(initial=0) < 65504:
        raise GwqError(
            "a weight is too large for FP16: give this tensor a ggml type with --tensor-type NAME=bf16"
        )


def _clear(e, row, col, type):
    """Give outliers the code of weight zero where the table has one: then their FP16 value is
    exact.
    """
    entries = e.table.reshape(-1, 1 << type.bits)
    zero = np.flatnonzero((entries == 0).all(0))
    if len(zero):
        e.codes[row, col] = zero[0]


def _encode_ggml(type, weight):
    """`encode_ggml` in runs of rows, so that its work arrays stay small."""
    if weight.ndim == 1:
        return encode_ggml(type, weight)
    rows, cols = weight.shape
    out, width, step = (
        np.empty(type.nbytes(rows, cols), np.uint8),
        type.nbytes(1, cols),
        max(1, CHUNK // cols),
    )
    for first in range(0, rows, step):
        out[first * width : (first + step) * width] = encode_ggml(
            type, weight[first : first + step]
        )
    return out
