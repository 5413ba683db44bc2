"""Encode one matrix: choose the outliers, fit a scale per block of 64 to the rest, round.

`quantize(weight, statistics, recipe)` is a pure function of its arguments: same input, same bytes.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gwq_export import GwqError
from gwq_export.format import BLOCK, TILE, TensorType, encode_stock, outlier_bytes, pack_outliers, pack_tiles

MAX_OUTLIERS = 0.5  # fraction of a matrix; a row of a tile can hold 255 of 256
CHUNK = 1 << 16  # weights worked on at once by a thread: its arrays stay in the L2 cache


@dataclass(frozen=True)
class Rule:
    """A saliency rule: `score(weight, statistics, rng)` -> array of the weight's shape; larger stays FP16."""

    statistics: tuple  # names of calibrate.STATISTICS that it reads
    score: callable


SALIENCY = {
    "grad": Rule(("abs",), lambda w, s, rng: s["abs"]),  # mean over samples of |g|: GWQ, arXiv 2411.00850
    "grad-mean": Rule(("mean",), lambda w, s, rng: np.abs(s["mean"])),  # |mean g|: cancels near a minimum
    "fisher": Rule(("square",), lambda w, s, rng: s["square"]),  # mean g^2: the diagonal of the empirical Fisher matrix
    "magnitude": Rule((), lambda w, s, rng: np.abs(w)),  # control: no calibration
    "random": Rule((), lambda w, s, rng: rng.random(w.shape, dtype=np.float32)),  # control
}


@dataclass(frozen=True)
class Recipe:
    """How one matrix is stored. outliers: fraction kept in FP16; weighted: fit scales by Fisher, else unweighted."""

    type: TensorType
    outliers: float = 0.0
    saliency: str = "grad"
    weighted: bool = True
    seed: int = 0

    @property
    def statistics(self):
        """Names of the calibration statistics that quantizing by this recipe reads."""
        if not self.type.bits:
            return ()
        wanted = SALIENCY[self.saliency].statistics if self.outliers else ()
        return tuple(dict.fromkeys((*wanted, *(("square",) if self.weighted else ()))))

    def outlier_count(self, shape):
        """Outliers of a matrix of this shape: its size follows before any weight is read."""
        return round(self.outliers * shape[0] * shape[1]) if self.type.bits else 0

    def tensors(self, name, shape):
        """[(tensor name, TensorType name, shape)] that `quantize` fills, companions included."""
        out = [(name, self.type.name, shape)]
        if count := self.outlier_count(shape):
            records, offsets = outlier_bytes(*shape, count)
            out += [(f"{name}.outliers", "i8", (records,)), (f"{name}.outlier_offsets", "i32", (offsets,))]
        return out


def quantize(weight, statistics, recipe):
    """Encode weight (rows, cols) float32; statistics maps names to arrays of the same shape.

    Returns the bytes (uint8 arrays) in the order of `recipe.tensors`. Raises GwqError for a weight that FP16 cannot
    hold as an outlier.
    """
    if not recipe.type.bits:
        return [_encode_stock(recipe.type, weight)]
    rng = np.random.default_rng(recipe.seed)
    importance = statistics["square"] if recipe.weighted else None
    count = recipe.outlier_count(weight.shape)
    keep = None
    if count:
        keep = select(SALIENCY[recipe.saliency].score(weight, statistics, rng), count)
    scales, codes = encode_tiles(weight, keep, importance, recipe.type)
    out = [pack_tiles(recipe.type, scales, codes)]
    if count:
        row, col = np.divmod(keep, weight.shape[1])
        with np.errstate(over="ignore"):
            value = weight[row, col].astype(np.float16)
        if not np.isfinite(value).all():
            raise GwqError("an outlier weight is too large for FP16: export with --outliers 0")
        records, offsets = pack_outliers(row, col, value, weight.shape)
        out += [records, offsets.view(np.uint8)]
    return out


def _encode_stock(type, weight):
    """`encode_stock` in runs of rows, so that its work arrays stay small."""
    if weight.ndim == 1:
        return encode_stock(type, weight)
    rows, cols = weight.shape
    out, width, step = np.empty(type.nbytes(rows, cols), np.uint8), type.nbytes(1, cols), max(1, CHUNK // cols)
    for first in range(0, rows, step):
        out[first * width : (first + step) * width] = encode_stock(type, weight[first : first + step])
    return out


def select(score, count):
    """Flat indices, ascending, of the `count` largest scores, at most 255 in one row of a tile."""
    rows, cols = score.shape
    tiles = -(-cols // TILE)
    flat = score.astype(np.float32).reshape(-1)  # a copy: scores are struck out below
    while True:
        taken = np.sort(np.argpartition(-flat, count - 1)[:count])
        slot = taken // cols * tiles + taken % cols // TILE
        full = np.flatnonzero(np.bincount(slot, minlength=rows * tiles) > 255)
        if not len(full):
            return taken
        for f in full:  # such a row gives up its smallest scores; the next best elsewhere take their place
            inside = taken[slot == f]
            flat[inside[np.argsort(-flat[inside], kind="stable")[255:]]] = -np.inf


def _factors(bits):
    """Scales tried for a block, relative to the one that maps its largest weight to the end of the grid."""
    low = {2: 0.45, 3: 0.65}.get(bits, 0.75)
    return np.linspace(low, 1.15, 15)


def encode_tiles(weight, keep, importance, type):
    """Scales (rows, ceil(cols/64)) float16 and codes (rows, cols) uint8.

    keep: flat indices of outliers or None; they get the zero code and do not count in the fit.
    importance: weights of the squared error, of weight's shape, or None.
    """
    rows, cols = weight.shape
    blocks = -(-cols // BLOCK)
    mask = None
    if keep is not None:
        mask = np.zeros(weight.shape, bool)
        mask.reshape(-1)[keep] = True
    scales, codes = np.empty((rows, blocks), np.float16), np.empty((rows, cols), np.uint8)
    step = max(1, CHUNK // (blocks * BLOCK))

    def work(first):
        part = slice(first, min(rows, first + step))
        n = part.stop - part.start
        w = np.zeros((n, blocks * BLOCK), np.float32)
        w[:, :cols] = weight[part]
        used = np.zeros(w.shape, bool)
        used[:, :cols] = True if mask is None else ~mask[part]
        w[~used] = 0
        h = None
        if importance is not None:
            h = np.zeros_like(w)
            h[:, :cols] = importance[part]
            h = h.reshape(-1, BLOCK)
        d, q = fit_blocks(w.reshape(-1, BLOCK), used.reshape(-1, BLOCK), h, type.bits)
        scales[part] = d.reshape(n, blocks)
        codes[part] = (q.reshape(n, -1)[:, :cols] + type.zero).astype(np.uint8)

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, range(0, rows, step)))
    return scales, codes


def _error_weights(used, importance):
    """Weights of the squared error, float32 (n, 64), 0 where not used.

    Importance (Fisher) is a noisy estimate, so half of every weight's share is its block's mean; a block without any
    gradient counts all its weights alike.
    """
    if importance is None:
        return used.astype(np.float32)
    h = np.where(used, importance, 0).astype(np.float64)
    mean = h.sum(1, keepdims=True) / np.maximum(used.sum(1, keepdims=True), 1)
    mean[mean == 0] = 1
    return np.where(used, (h + mean) / mean, 0).astype(np.float32)


def fit_blocks(w, used, importance, bits):
    """Best scale d (n,) float16 and codes q (n, 64) in -2^(bits-1) .. 2^(bits-1)-1 for blocks w (n, 64).

    Minimises sum h * (w - d*q)^2 over a grid of first scales of either sign, each refined by least squares; h follows
    from importance (n, 64) or None. used (n, 64) bool: False for outliers and padding, where w is 0.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    h = _error_weights(used, importance)
    hw = h * w
    extreme = w[np.arange(len(w)), np.abs(w).argmax(1)]
    best_gain, best = np.zeros(len(w), np.float32), np.zeros(len(w), np.float32)
    q, t = np.empty_like(w), np.empty_like(w)
    for end in (low, high):  # the largest weight at either end of the grid: the scale's sign follows
        for factor in _factors(bits):
            d = extreme * np.float32(factor / end)
            inverse = np.divide(1, d, out=np.zeros_like(d), where=np.abs(d) > 1e-30)
            np.multiply(w, inverse[:, None], out=q)
            np.rint(q, out=q)
            np.clip(q, low, high, out=q)
            cross = np.multiply(hw, q, out=t).sum(1)
            np.multiply(q, q, out=t)
            power = np.multiply(t, h, out=t).sum(1)
            gain = np.divide(cross * cross, power, out=np.zeros_like(d), where=power > 0)
            better = gain > best_gain
            best_gain[better] = gain[better]
            best[better] = (cross[better] / power[better]).astype(np.float32)
    d = np.clip(best, -65504, 65504).astype(np.float16)
    inverse = np.divide(1, d.astype(np.float32), out=np.zeros(len(d), np.float32), where=d != 0)
    return d, np.clip(np.rint(w * inverse[:, None]), low, high)
