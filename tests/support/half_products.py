"""What products of many tokens see of activations and weights on a CUDA device: FP16 numbers.

native/cuda/layout.h says which, native/cuda/halves.cu writes them.
"""

import numpy as np

from gwq_export.format import types as fmt
from tests.support.kernel_cases import quantize

GEMV_TOKENS = 6  # up to here a tile matrix multiplies codes
FEW_TILE, TILE = 16, 64  # tokens of a tile; the rest of them, up to 16, has a kernel for itself


def rounded(x, numbers, both):
    """float64 (n, cols): `numbers` as FP16 times the factor that each token of x has.

    both: bool, broadcast to (n, cols); where there are two FP16 numbers, the second one of what the
    first leaves over.
    """
    most = np.abs(x).max(1, keepdims=True).astype(float)
    factor = np.ldexp(1.0, np.where(most > 0, np.frexp(most)[1] - 1, -100) - 14)
    first = (numbers / factor).astype(np.float16).astype(float)
    rest = (numbers / factor - first).astype(np.float16)
    return (first + np.where(both, rest, 0)) * factor


def as_codes(x):
    """(float32 (n, cols): x as its int8 codes say it; bool: where a block has second codes)."""
    n, cols = x.shape

    def numbers(q, scale):
        each = q.reshape(n, -1, fmt.BLOCK) * scale[..., None].astype(float)
        return each.reshape(n, -1)[:, :cols]

    q, scale, _ = quantize(x)
    seen = numbers(q, scale).astype(np.float32)
    more, second, _ = quantize(x - seen)
    squares = (q.reshape(n, -1, fmt.BLOCK).astype(int) ** 2).sum(2)
    both = (squares < 127**2 + fmt.BLOCK * 10 // 12) & (second * 127 > 1e-4 * scale)
    seen = (seen + numbers(more, np.where(both, second, 0))).astype(np.float32)  # a fused sum
    return seen, np.repeat(both, fmt.BLOCK, 1)[:, :cols]


def weights(case):
    """float64 (rows, cols): the dense weights as tensor cores see them."""
    dense = case.dense.astype(float)
    if case.type.bits or case.type.name == "f16":
        return dense
    most = np.abs(dense).max()
    if case.type.name != "bf16":
        scales = case.data.reshape(-1, case.type.unit_bytes)[:, :2].copy().view(np.float16)
        most = 128 * np.abs(scales.astype(float)).max()
    power = np.ldexp(1.0, 14 - np.frexp(most)[1])
    return (dense * power).astype(np.float16).astype(float) / power


def expect(case, x):
    """(y, sum|w x|), float64 (n, rows), of more than GEMV_TOKENS tokens."""
    n = len(x)
    tiles = case.type.bits > 0
    exact = x.astype(float)
    if case.type.name == "f32" or (not tiles and n <= FEW_TILE):
        seen = by_outliers = exact
        dense = case.dense.astype(float)
    else:
        codes, massive = as_codes(x)
        dense = weights(case)
        seen = rounded(x, codes if tiles else exact, massive)
        by_outliers = rounded(x, exact, massive)
        apart = n % TILE if tiles and n % TILE <= FEW_TILE else 0
        by_outliers[n - apart :] = exact[n - apart :]
    sparse = case.sparse.astype(float)
    return seen @ dense.T + by_outliers @ sparse.T, np.abs(seen) @ np.abs(dense).T + np.abs(
        by_outliers
    ) @ np.abs(sparse).T
