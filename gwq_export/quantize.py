"""Encode one matrix: choose the outliers, encode the rest as tiles, put the side-table beside them.

`quantize(weight, statistics, recipe)` is a pure function of its arguments: same input, same bytes.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from gwq_export import GwqError
from gwq_export.deltas import corrections
from gwq_export.encoder import curvature_of, encode
from gwq_export.format import LEVELS, TensorType, encode_stock, ffi, pack_codes
from gwq_export.saliency import SALIENCY, select
from gwq_export.side_table import outlier_bytes, pack_outliers
from gwq_export.tiles import dequantize, pack_tiles

MAX_OUTLIERS = 0.5  # fraction of a matrix; a row of a tile can hold 255 of 256
CHUNK = 1 << 16  # weights of a stock type converted at once

# What a window stands for. "grid": uniform, as in round-to-nearest. "scalar": non-uniform levels without history. "trellis":
# levels that depend on the neighbour where the type has history. Fitted by alternating encoding and least squares on
# Gaussian weights.
TABLES = {
    "grid": {"gwq4": [4 * (c - 8) for c in range(16)], "gwq3": [8 * (c - 4) for c in range(8)] * 2,
             "gwq2": [16 * (c - 2) for c in range(4)] * 4},
    "scalar": {"gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
               "gwq3": [-31, -19, -11, -4, 1, 8, 15, 26] * 2, "gwq2": [-31, -11, 4, 22] * 4},
    "trellis": {"gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
                "gwq3": [-31, -12, -1, 10, -18, -6, 4, 19, -22, -6, 4, 16, -12, -1, 9, 27],
                "gwq2": [-18, -4, 21, 6, -31, -15, 10, -3, -25, -9, 13, 1, -13, 0, 25, 10]},
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How one matrix is stored, and how its codes are found.

    outliers: fraction kept in FP16, chosen by the rule `saliency`; of stock types corrected in FP16, see `deltas`. table: a row
    of TABLES. curvature: fit scales under the Fisher matrix (else plain least squares; stock types with levels are then rounded
    plainly); feedback and sweeps: see `encoder.encode`, need curvature.
    """

    type: TensorType
    outliers: float = 0.0
    saliency: str = "loss"
    table: str = "trellis"
    curvature: bool = True
    feedback: bool = True
    sweeps: int = 1
    seed: int = 0

    @property
    def encoded(self):
        """Whether `encoder.encode` finds the codes; else the stock type's own rounding does."""
        return bool(self.type.bits or (self.type.levels and self.curvature))

    @property
    def statistics(self):
        """Names of the calibration statistics that quantizing by this recipe reads."""
        if not self.encoded:
            return ()
        wanted = SALIENCY[self.saliency].statistics if self.outliers and self.type.bits else ()
        return tuple(dict.fromkeys((*wanted, *(("hessian", "rows") if self.curvature else ()))))

    @property
    def levels(self):
        """(16,) what a window, or a stock type's code, stands for."""
        return LEVELS.get(self.type.name) or TABLES[self.table][self.type.name]

    def outlier_count(self, shape):
        """Outliers of a tensor of this shape, as many in every matrix: its size follows before any weight is read."""
        return prod(shape[:-2]) * round(self.outliers * shape[-2] * shape[-1]) if self.encoded else 0

    def tensors(self, name, shape):
        """[(tensor name, TensorType name, shape)] that `quantize` fills, matrix by matrix, companions included."""
        out = [(name, self.type.name, shape)]
        if count := self.outlier_count(shape[-2:]):
            records, offsets = outlier_bytes(*shape[-2:], count)
            out += [(f"{name}.outliers", "i8", (*shape[:-2], records)), (f"{name}.outlier_offsets", "i32", (*shape[:-2], offsets))]
        return out


def quantize(weight, statistics, recipe, pool=ffi.NULL):
    """Encode weight (rows, cols) float32.

    statistics: {name of totals.STATISTICS: array of weight's shape, "rows": (rows,), "hessian": (cols, cols) or a
    Curvature made of it}. Returns the bytes (uint8 arrays) in the order of `recipe.tensors`. Raises GwqError for a weight
    that FP16 cannot hold.
    """
    if not recipe.encoded:
        return [_encode_stock(recipe.type, weight)]
    check_range(weight, recipe)
    options = {"pool": pool}
    if recipe.curvature:
        options |= {"curvature": curvature_of(statistics), "row_weight": statistics["rows"],
                    "feedback": recipe.feedback, "sweeps": recipe.sweeps}  # fmt: skip
    count = recipe.outlier_count(weight.shape)
    if recipe.type.levels:
        e = encode(weight, recipe.type, recipe.levels, **options)
        parts = [pack_codes(recipe.type, e.scales, e.codes)]
        if count:
            found = corrections(weight, e.values, options["curvature"], options["row_weight"], count)
            parts += [a.view(np.uint8) for a in pack_outliers(*found, weight.shape)]
        return parts
    table, keep = recipe.levels, None
    if count:
        first = lambda: encode(weight, recipe.type, table, pool=pool).values  # noqa: E731  (a plain first quantization)
        score = SALIENCY[recipe.saliency].score(weight, statistics, np.random.default_rng(recipe.seed), first)
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
    records, offsets = pack_outliers(row, col, (e.values[row, col] - held).astype(np.float16), weight.shape)
    return [tiles, records, offsets.view(np.uint8)]


def check_range(weight, recipe):
    """Raises GwqError when weight (rows, cols) holds one that is too large for the recipe's type."""
    if not recipe.encoded:
        _encode_stock(recipe.type, weight)  # which refuses it
    elif not np.abs(weight).max(initial=0) < 65504:
        raise GwqError("a weight is too large for FP16: give this tensor a stock type with --tensor-type NAME=bf16")


def _clear(e, row, col, type):
    """Give outliers the code of weight zero where the table has one: then their FP16 value is exact."""
    entries = e.table.reshape(-1, 1 << type.bits)
    zero = np.flatnonzero((entries == 0).all(0))
    if len(zero):
        e.codes[row, col] = zero[0]


def _encode_stock(type, weight):
    """`encode_stock` in runs of rows, so that its work arrays stay small."""
    if weight.ndim == 1:
        return encode_stock(type, weight)
    rows, cols = weight.shape
    out, width, step = np.empty(type.nbytes(rows, cols), np.uint8), type.nbytes(1, cols), max(1, CHUNK // cols)
    for first in range(0, rows, step):
        out[first * width : (first + step) * width] = encode_stock(type, weight[first : first + step])
    return out
