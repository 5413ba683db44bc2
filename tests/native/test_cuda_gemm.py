"""Products of many tokens by the CUDA library's kernels for tensor cores, over native/cuda/shim.h.

The shim multiplies fragments as tensor cores do, each product exact; how these round their sums
nobody says, so that a GPU is given more room (tests/support/device_check.py).
"""

import numpy as np
import pytest

from gwq_export.bench.cases import MATRIX_TYPES, TILE_TYPES
from gwq_export.format.types import ffi
from tests.native.test_matmul import BOUND, matmul
from tests.support import half_products
from tests.support.kernel_cases import (
    SHAPES,
    Loaded,
    activations,
    make,
    many,
    none,
    patterns,
    random,
    same_bits,
    width_fits,
)

# around the tiles of 16 and 64 tokens, and what is left over of one
MANY = (7, 9, 16, 17, 31, 64, 65, 70, 80, 81, 129)
KINDS = [*TILE_TYPES, "f16", "bf16", "q8_0", "q4_0", "iq4_nl"]


@pytest.fixture
def cuda(select):
    return select("cuda")


def assert_products(cuda, case, x, what):
    """Whether a product is what FP16 activations make it.

    Steps of 16 columns are added one after another, each sum rounded.
    """
    want, size = half_products.expect(case, x)
    (got,) = matmul(cuda, ffi.NULL, [Loaded(cuda, case)], x)
    bound = BOUND + x.shape[1] / 16 * 2.0**-24
    assert (np.abs(got - want) <= bound * size).all(), what


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("type_name", KINDS)
def test_products(cuda, type_name, shape):
    """Every type, shape and pattern of outliers; token counts by turns."""
    if not width_fits(type_name, shape[1]):
        pytest.skip("a ggml type of whole blocks")
    turn = SHAPES.index(shape)
    for i, pattern in enumerate(patterns(type_name)):
        case = make(type_name, *shape, pattern)
        n = MANY[(turn + i) % len(MANY)]
        assert_products(cuda, case, activations(n, shape[1]), (pattern.__name__, n))


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("type_name", ["gwq4", "gwq3", "f16"])
def test_every_count_of_tokens(cuda, type_name, n):
    case = make(type_name, 150, 320, random)
    x = activations(n, 320)
    assert_products(cuda, case, x, n)
    x[n // 2, 77] = 7000  # massive
    assert_products(cuda, case, x, (n, "massive"))


@pytest.mark.parametrize("type_name", ["gwq4", "gwq6", "q8_0"])
def test_a_long_prompt(cuda, type_name):
    case = make(type_name, 272, 640, many)
    x = activations(300, 640)
    x[[3, 150], 500] = -3000
    assert_products(cuda, case, x, type_name)


@pytest.mark.parametrize("type_name", KINDS)
def test_neighbours_change_no_bit(cuda, type_name):
    """Neither other tokens of a tile, massive ones too, nor other matrices of a call, nor the order
    in which blocks and threads run.
    """
    shapes = [(40, 192), (200, 192), (16, 192)]
    matrices = [Loaded(cuda, make(type_name, *s, random, i)) for i, s in enumerate(shapes)]
    x = activations(70, 192)
    together = matmul(cuda, ffi.NULL, matrices, x)
    other = activations(70, 192, 1)
    other[:5] = x[:5]
    other[20, 50], other[68, 100] = 9000, -8000
    other[66] = x[66]
    for matrix, y in zip(matrices, together, strict=True):
        same_bits(matmul(cuda, ffi.NULL, [matrix], x)[0], y)
        (of_others,) = matmul(cuda, ffi.NULL, [matrix], other)
        for token in (*range(5), 66):
            same_bits(of_others[token], y[token])


@pytest.mark.parametrize("type_name", KINDS)
def test_the_order_of_threads_changes_no_bit(cuda, shim, type_name):
    x = activations(70, 320)
    x[1, 100] = 9000  # massive
    results = []
    for backward in (0, 1):
        shim.gwq_shim_reverse(backward)
        results.append(matmul(cuda, ffi.NULL, [Loaded(cuda, make(type_name, 90, 320, many))], x))
    same_bits(*(y for (y,) in results))


def test_kinds_in_one_call(cuda):
    """Each wants the activations in a form of its own."""
    matrices = [Loaded(cuda, make(name, 40, 192, random)) for name in MATRIX_TYPES]
    x = activations(20, 192)
    alone = [matmul(cuda, ffi.NULL, [m], x)[0] for m in matrices]
    for first in range(0, len(matrices), 4):
        some = matrices[first : first + 4]
        for y, want in zip(matmul(cuda, ffi.NULL, some, x), alone[first:], strict=False):
            same_bits(y, want)


@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize("power", [-120, -40, 40, 100])
def test_activations_of_any_size(cuda, power, n):
    """FP16 numbers end at 65504, and at 6e-8; a factor for each token keeps them there."""
    for name in ("gwq4", "f16"):
        case = make(name, 33, 256, none)
        x = np.ldexp(activations(n, 256), power).astype(np.float32)
        x[0] = 0
        assert_products(cuda, case, x, (name, power))


def test_weights_of_any_size(cuda):
    """Those that are not FP16 numbers are multiplied by a power of two on the way."""
    x = activations(20, 64)
    values = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    case = make("bf16", 32, 64)
    for power in (-90, 0, 90):
        wide = np.ldexp(values, power).view(np.uint32) >> 16
        case.data = np.ascontiguousarray(wide.astype(np.uint16)).view(np.uint8).reshape(-1)
        assert_products(cuda, case, x, power)


@pytest.mark.parametrize("n", [9, 20, 70])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_with_its_token(cuda, wrong, n):
    x = activations(n, 192)
    for name in ("gwq4", "f16"):
        matrix = Loaded(cuda, make(name, 40, 192, random))
        (want,) = matmul(cuda, ffi.NULL, [matrix], x)
        bad = x.copy()
        bad[3, 50] = wrong
        (y,) = matmul(cuda, ffi.NULL, [matrix], bad)
        same_bits(np.delete(y, 3, 0), np.delete(want, 3, 0))
        assert np.isinf(wrong) <= (not np.isfinite(y[3]).any())
