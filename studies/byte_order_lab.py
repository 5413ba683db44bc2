"""Codes with other neighbours than the format's: how well they store Gaussian and real weights.

The search is studies/byte_order_search.c, compiled here. A matrix is (rows, columns); the search
takes it as (columns, rows of a group, groups), see `Coding.lanes`.
"""

import ctypes
import subprocess
from dataclasses import dataclass

import numpy as np

from gwq_export.quantization.curvature import Curvature
from studies.paths import ROOT

SOURCE = ROOT / "studies" / "byte_order_search.c"
FLAGS = "-std=gnu11 -O3 -mavx2 -mfma -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized"
SUB = 32  # columns that share a scale
LANES = 8  # groups that the search works on side by side
CELLS = 16
HEADROOM = 0.9 * 31  # the largest scale of a row's sub-blocks, as in quantization/tile_codes.py


class _Struct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("rows", "columns", "bits", "history", "words")]
    _fields_ += [("row", ctypes.c_int * CELLS), ("column", ctypes.c_int * CELLS)]
    _fields_ += [("table", ctypes.POINTER(ctypes.c_float))]


@dataclass(frozen=True)
class Coding:
    """How `rows` x `columns` weights are coded together.

    history: bits of the neighbour's code in a window; the ring runs through the rows of a column,
    then through the next column. index: for a book instead, (words, cells), which entry of the
    table stands for a cell of a word. row_order, column_order: (count, step) of the order in which
    the search takes them: `count` that lie `step` apart, then the next such ones.
    """

    bits: int
    rows: int
    columns: int
    history: int = 0
    index: np.ndarray | None = None
    row_order: tuple[int, int] = 1, 1
    column_order: tuple[int, int] = 1, 1

    @property
    def entries(self):
        """Of the table."""
        return 1 << (self.bits + self.history) if self.index is None else int(self.index.max()) + 1

    def order(self, shape):
        """(rows, columns) of a matrix in the order in which the search takes them."""
        return tuple(
            np.arange(n).reshape(-1, count, step).swapaxes(1, 2).ravel()
            for n, (count, step) in zip(shape, (self.row_order, self.column_order), strict=True)
        )

    def lanes(self, matrix):
        """(columns, rows of a group, groups), from a matrix in the search's order."""
        groups = matrix.T.reshape(matrix.shape[1], -1, self.rows)
        return np.ascontiguousarray(groups.swapaxes(1, 2))


def pairs():
    """Index of words of four bits that stand for two weights, a table each."""
    word = np.arange(16)
    return np.stack([word, word + 16], 1)


def any_byte():
    """Index of bytes that stand for any four values."""
    return np.arange(1024).reshape(256, 4)


def library(folder):
    """The compiled search."""
    path = folder / "byte_order_search.so"
    subprocess.run(["gcc", *FLAGS.split(), "-shared", "-fPIC", SOURCE, "-o", path], check=True)
    return ctypes.CDLL(str(path))


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def run(
    lib, coding, table, target, row_scale, fit=None, cost=None, gain=None, rounds=0, joint=True
):
    """Encode up to SUB columns: target (columns, rows, groups) float32, changed by feedback.

    Returns scale (rows, groups), index, value, error (as target). Index is an entry of the table.
    """
    n, rows, groups = target.shape
    cells = coding.rows * coding.columns
    words = 0 if coding.index is None else len(coding.index)
    values = table if coding.index is None else table[coding.index]
    values = np.ascontiguousarray(values, np.float32)
    places = [(k % coding.rows, k // coding.rows) for k in range(cells)]
    fill = [0] * (CELLS - cells)
    struct = _Struct(
        *(coding.rows, coding.columns, coding.bits, coding.history, words),
        (ctypes.c_int * CELLS)(*[r for r, _ in places], *fill),
        (ctypes.c_int * CELLS)(*[c for _, c in places], *fill),
        values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
    )
    scale = np.empty((rows, groups), np.float32)
    index = np.empty(target.shape, np.uint8)
    value, error = np.empty_like(target), np.empty_like(target)
    low, high = min(float(table.min()), -1e-9), max(float(table.max()), 1e-9)
    end = np.array([low, high], np.float32)
    cost = np.ones(n, np.float32) if cost is None else np.ascontiguousarray(cost, np.float32)
    fit = None if fit is None else np.ascontiguousarray(fit, np.float32)
    gain = None if gain is None else np.ascontiguousarray(gain, np.float32)
    arrays = target, end, row_scale, fit, cost, gain, scale, index, value, error
    lib.encode(
        ctypes.byref(struct), n, rounds, int(joint), ctypes.c_int64(groups), *map(_pointer, arrays)
    )
    if coding.index is not None:
        index = index.astype(np.int16)
        for k, (r, c) in enumerate(places):
            cell = index[c :: coding.columns, r]
            index[c :: coding.columns, r] = coding.index[cell, k]
    return scale, index, value, error


def padded(coding, matrix):
    """The matrix in the search's order, with rows of zeros up to whole lanes."""
    rows, columns = coding.order(matrix.shape)
    matrix = matrix[rows][:, columns]
    more = -len(matrix) % (coding.rows * LANES)
    return np.pad(matrix, ((0, more), (0, 0))).astype(np.float32)


def gaussian(lib, coding, table, weight):
    """(indices, values) of weights of unit variance, all scales 1; both as `weight` in lanes."""
    target = coding.lanes(padded(coding, weight))
    ones = np.ones(target.shape[1:], np.float32)
    index, value = np.empty(target.shape, np.int16), np.empty_like(target)
    for first in range(0, len(target), SUB):
        part = slice(first, first + SUB)
        _, index[part], value[part], _ = run(lib, coding, table, target[part].copy(), ones)
    return target, index, value


@dataclass
class Coded:
    """A matrix in lanes, its codes, and what they stand for."""

    target: np.ndarray
    index: np.ndarray
    scale: np.ndarray  # row scale times sub-block scale, as target
    value: np.ndarray


def encode(lib, coding, table, weight, hessian=None, rounds=0, joint=True):
    """Encode as the product does: row scales, six-bit scales of sub-blocks, then codes.

    hessian: (columns, columns), for error feedback and a fit of the row scales at its end, or None
    for the squared error of the weights. rounds: of the search of scales, see fit_scale. joint:
    whether the codes of a ring of several columns are chosen with the feedback among themselves.
    """
    columns = coding.order(weight.shape)[1]
    w = padded(coding, weight)
    target = coding.lanes(w)
    original = target.copy()
    d = np.abs(target).max(0) / (np.abs(table).max() * HEADROOM)
    d = np.ascontiguousarray(d.astype(np.float16).astype(np.float32))
    fit = cost = np.ones(len(target), np.float32)
    factor = None
    if hessian is not None:
        curvature = Curvature(hessian[np.ix_(columns, columns)])
        factor, fit = curvature.factor, curvature.column_weight
        cost = 1 / np.diag(factor) ** 2
        cost /= cost.mean()
    index, value, scale = np.empty(target.shape, np.int16), target.copy(), target.copy()
    flat = target.reshape(len(target), -1)
    for first in range(0, len(target), SUB):
        part = slice(first, first + SUB)
        gain = None
        if factor is not None:
            gain = factor[part] / np.diag(factor)[part, None]
        inner = None if gain is None else gain[:, part]
        block = np.ascontiguousarray(target[part])
        s, index[part], value[part], error = run(
            lib, coding, table, block, d, fit[part], cost[part], inner, rounds, joint
        )
        scale[part] = s * d
        if gain is not None:
            flat[part.stop :] += gain[:, part.stop :].T @ error.reshape(SUB, -1)
    if factor is not None:
        refit(original, value, curvature.matrix)
    return Coded(original, index, scale, value)


def refit(target, value, hessian):
    """Multiply every row's values by the factor of least output error."""
    v = value.reshape(len(value), -1)
    image = hessian @ v
    up = (image * target.reshape(v.shape)).sum(0)
    down = (image * v).sum(0)
    v *= np.clip(np.divide(up, down, out=np.ones_like(up), where=down > 0), 0.5, 2)


def loss(coding, coded, hessian=None):
    """(error, whole): the quadratic form of the error and of the weights under the Hessian."""
    w = coded.target.reshape(len(coded.target), -1)
    e = coded.value.reshape(w.shape) - w
    if hessian is None:
        return float((e * e).sum()), float((w * w).sum())
    columns = coding.order((64, len(w)))[1]
    h = hessian[np.ix_(columns, columns)]
    return float((e * (h @ e)).sum()), float((w * (h @ w)).sum())


def least_squares(coding, table, parts):
    """The table of least squared error for the codes of [(target, index, scale)]."""
    up, down = np.zeros(coding.entries), np.zeros(coding.entries)
    for target, index, scale in parts:
        i = index.ravel()
        up += np.bincount(i, (scale * target).ravel(), coding.entries)
        down += np.bincount(i, (scale * scale * np.ones_like(target)).ravel(), coding.entries)
    return np.where(down > 0, up / np.maximum(down, 1e-30), table)


def fit_gaussian(lib, coding, rng, starts=12, rounds=25, first=()):
    """The best table for Gaussian weights: short tries from many starts, the best two to the end.

    first: tables to start from beside the random ones.
    """
    sample = rng.standard_normal((512, 256)).astype(np.float32)

    def improved(table, rounds):
        for _ in range(rounds):
            target, index, value = gaussian(lib, coding, table, sample)
            table = least_squares(coding, table, [(target, index, np.ones_like(target))])
        return float(((target - value) ** 2).mean()), table

    tries = [*first, *(first_table(coding, rng) for _ in range(starts))]
    short = sorted((improved(table, 5) for table in tries), key=lambda found: found[0])
    return min((improved(table, rounds) for _, table in short[:2]), key=lambda found: found[0])[1]


def first_table(coding, rng):
    """A random start; in a ring the codes' entries spread over the range for every neighbour."""
    if coding.index is not None:
        return rng.standard_normal(coding.entries)
    count = 1 << coding.bits
    states = coding.entries // count
    step = 3.2 / count
    level = (np.arange(count) - (count - 1) / 2) * step
    shift = (rng.permutation(states) - (states - 1) / 2) * step / states
    return np.concatenate([rng.permutation(level) + s for s in shift])


def in_file(table):
    """Integers -32 .. 31 as a file holds them, by the scale that gives the least rounding error."""
    best = None
    for top in np.linspace(26, 31.4, 55):
        t = table * (top / np.abs(table).max())
        rounded = np.clip(np.rint(t), -32, 31)
        error = np.square(t - rounded).mean() / top**2
        if best is None or error < best[0]:
            best = error, rounded
    return best[1]


def fit_real(lib, coding, table, weights, rounds=4):
    """The table fitted to matrices, by turns with their codes, from that for Gaussian weights."""
    for _ in range(rounds):
        table = table / np.abs(table).max() * 31
        parts = [encode(lib, coding, table, w) for w in weights]
        table = least_squares(coding, table, [(p.target, p.index, p.scale) for p in parts])
    return in_file(table)
