"""What kernels compute besides matrices and attention: norms, activation functions, positions.

Against numpy in double precision, in every instruction set where there is more than one version.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gwq_export.errors import GwqError
from gwq_export.format.types import ffi
from gwq_export.native import library as native
from gwq_export.native.library import NULL, Pool, pointer
from gwq_export.native.ops import top
from tests.support.kernel_cases import activations, guarded, is_cuda, same_bits

SIZES = [(1, 1), (2, 7), (3, 8), (2, 9), (1, 31), (5, 64), (2, 65), (40, 576)]


@pytest.mark.parametrize("n,dim", SIZES)
def test_rmsnorm(lib, pool, n, dim):
    x, weight = guarded(activations(n, dim)), guarded(activations(1, dim, 1)[0])
    wide = x.astype(float)
    want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    out = guarded(np.empty_like(x))
    assert lib.gwq_rmsnorm(pool(2), pointer(x), pointer(weight), 1e-5, n, dim, pointer(out)) == 0
    assert_allclose(out, want, rtol=1e-6)
    # in place
    assert lib.gwq_rmsnorm(pool(2), pointer(x), pointer(weight), 1e-5, n, dim, pointer(x)) == 0
    same_bits(x, out)


@pytest.mark.parametrize("n,dim", SIZES)
def test_silu(lib, pool, n, dim):
    gate, up = guarded(6 * activations(n, dim)), guarded(activations(n, dim, 1))
    wide = gate.astype(float)
    assert lib.gwq_activate(pool(2), pointer(gate), pointer(up), n, dim, lib.GWQ_SILU) == 0
    assert_allclose(gate, wide / (1 + np.exp(-wide)) * up, rtol=6e-7)  # exp, add, divide, multiply


def test_silu_of_large_and_small_values(lib, pool):
    x = np.concatenate([s * np.logspace(-40, 38, 4001) for s in (-1, 1)]).astype(np.float32)
    gate, up = guarded(np.append(x, np.float32(0))), guarded(np.ones(len(x) + 1, np.float32))
    with np.errstate(over="ignore"):
        wide = gate.astype(float)
        want = wide / (1 + np.exp(-wide))
    assert lib.gwq_activate(pool(1), pointer(gate), pointer(up), 1, len(gate), lib.GWQ_SILU) == 0
    assert_allclose(gate, want, rtol=6e-7, atol=2e-36)  # below e^-87 the true value does not matter


ERFC = np.vectorize(math.erfc, otypes=[float])
GELU = {
    "GWQ_GELU": lambda x: 0.5 * x * ERFC(-x / math.sqrt(2)),
    "GWQ_GELU_TANH": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


@pytest.mark.parametrize("name", GELU)
@pytest.mark.parametrize("n,dim", SIZES)
@pytest.mark.parametrize("gated", [False, True])
def test_gelu(lib, pool, name, n, dim, gated):
    x, up = guarded(6 * activations(n, dim)), guarded(activations(n, dim, 1))
    want = GELU[name](x.astype(float)) * (up if gated else 1)
    assert (
        lib.gwq_activate(
            pool(2), pointer(x), pointer(up) if gated else ffi.NULL, n, dim, getattr(lib, name)
        )
        == 0
    )
    assert_allclose(x, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", GELU)
def test_gelu_of_large_values(lib, pool, name):
    x = guarded(np.array([-3e38, -1e13, -200, 0, 200, 1e13, 3e38], np.float32))
    want = np.where(x > 0, x, 0)
    assert lib.gwq_activate(pool(2), pointer(x), ffi.NULL, 1, len(x), getattr(lib, name)) == 0
    assert_array_equal(x, want)


@pytest.mark.parametrize("n,dim", SIZES)
def test_softcap(lib, pool, n, dim):
    x = guarded(
        (np.logspace(-5, 3, n * dim) * np.where(np.arange(n * dim) % 3, 1, -1))
        .astype(np.float32)
        .reshape(n, dim)
    )
    want = 30 * np.tanh(x.astype(float) / 30)
    assert lib.gwq_softcap(pool(2), pointer(x), n, dim, 30) == 0
    assert_allclose(x, want, rtol=1e-6)


@pytest.mark.parametrize("style", ["PAIRS", "HALVES"])
@pytest.mark.parametrize("dim, rotated", [(16, 16), (16, 6), (15, 14)])
def test_rope(lib, pool, style, dim, rotated):
    n = 5
    heads = 3
    half = rotated // 2
    x = guarded(activations(n * heads, dim))
    angle = np.random.default_rng(1).random((n, half))
    cos, sin = guarded(np.cos(angle).astype(np.float32)), guarded(np.sin(angle).astype(np.float32))
    wide = x.reshape(n, heads, dim).astype(float)
    first, second = (
        (slice(0, rotated, 2), slice(1, rotated, 2))
        if style == "PAIRS"
        else (slice(0, half), slice(half, rotated))
    )
    want = wide.copy()
    want[..., first] = wide[..., first] * cos[:, None] - wide[..., second] * sin[:, None]
    want[..., second] = wide[..., first] * sin[:, None] + wide[..., second] * cos[:, None]
    style = getattr(lib, f"GWQ_ROPE_{style}")
    assert (
        lib.gwq_rope(pool(2), pointer(x), pointer(cos), pointer(sin), n, heads, dim, rotated, style)
        == 0
    )
    assert_allclose(x.reshape(n, heads, dim), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 7, 8, 37, 64, 600])
@pytest.mark.parametrize("taps, rows", [(1, 1), (3, 2), (4, 9), (32, 40)])
def test_shortconv(lib, pool, dim, taps, rows):
    """In one piece and in pieces: the same bits, and the state that they leave."""
    n = 40
    x, weight = activations(n, 3 * dim), guarded(activations(taps, dim, 1))
    b, c, u = x.reshape(n, 3, dim).transpose(1, 0, 2)
    u = b * u
    padded = np.concatenate([np.zeros((taps - 1, dim), np.float32), u]).astype(float)
    want = c * sum(weight[j] * padded[j : j + n] for j in range(taps))

    def run(steps):
        state, out, at = guarded(np.full((rows, dim), np.nan, np.float32)), [], 0
        for count in steps:
            part = guarded(x[at : at + count])
            y = guarded(np.full((count, dim), np.nan, np.float32))
            args = pointer(part), pointer(weight), pointer(state), rows, taps, count, at, dim
            assert lib.gwq_shortconv(pool(2), *args, pointer(y)) == 0
            out.append(y.copy())
            at += count
        return np.concatenate(out), state.copy()

    whole, state = run([n])
    assert_allclose(whole, want, rtol=1e-5, atol=1e-5)
    kept = np.arange(max(0, n - rows), n)
    same_bits(state[kept % rows], u[kept])
    for steps in ([1] * n, [7] * 5 + [5], [39, 1], [3, 37]):
        out, left = run(steps)
        same_bits(out, whole)
        same_bits(left, state)


@pytest.mark.parametrize("n,count,each", [(1, 1, 1), (3, 5, 7), (2, 9, 1), (40, 6, 96)])
def test_gate(lib, pool, n, count, each):
    x = guarded(activations(n * count, each).reshape(n, count, each))
    gate = guarded(6 * activations(n, count, 1))
    want = x / (1 + np.exp(-gate.astype(float)))[..., None]
    assert lib.gwq_gate(pool(2), pointer(x), pointer(gate), n, count, each) == 0
    assert_allclose(x, want, rtol=1e-6)


@pytest.mark.parametrize("broadcast", [0, 1])
def test_add(lib, broadcast):
    x, y = guarded(activations(3, 37)), guarded(activations(1 if broadcast else 3, 37, 1))
    for scale in (np.float32(1), np.float32(0.3)):
        want = x + scale * y
        assert lib.gwq_add(pointer(x), pointer(y), 3, 37, scale, broadcast) == 0
        same_bits(x, want)


def test_read_sums_every_byte(lib, pool):
    # a device's reads are of 16 bytes, aligned
    words = 8192 + (6 if is_cuda(lib) else 5)
    data = guarded(np.random.default_rng(1).integers(0, 2**64, words, np.uint64, endpoint=False))
    want = int(data.sum(dtype=np.uint64))
    for streams in range(1, 9):
        for threads, ahead in ((1, 0), (2, 2048)):
            total = ffi.new("uint64_t *")
            assert (
                lib.gwq_read(
                    pool(threads), pointer(data, "void *"), data.nbytes, streams, ahead, total
                )
                == 0
            )
            assert total[0] == want


# --- ops that are the same on every instruction set ---

THREADED_SIZES = [(1, 1), (2, 7), (3, 64), (5, 65), (40, 576)]  # the last is worth several threads
POOL = Pool(2)


@pytest.mark.parametrize("n,dim", THREADED_SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_layernorm(n, dim, biased):
    x = guarded(3 + activations(n, dim))
    weight = guarded(activations(1, dim, 1)[0])
    bias = guarded(activations(1, dim, 2)[0])
    wide = x.astype(float)
    center = wide - wide.mean(1, keepdims=True)
    want = center / np.sqrt((center**2).mean(1, keepdims=True) + 1e-5) * weight + (
        bias if biased else 0
    )
    out = guarded(np.empty_like(x))
    args = pointer(weight), pointer(bias) if biased else NULL, 1e-5, n, dim
    assert native.lib().gwq_layernorm(POOL.ptr, pointer(x), *args, pointer(out)) == 0
    assert_allclose(out, want, rtol=2e-5, atol=2e-6)
    assert native.lib().gwq_layernorm(POOL.ptr, pointer(x), *args, pointer(x)) == 0  # in place
    assert_array_equal(x, out)


@pytest.mark.parametrize("n,dim", THREADED_SIZES)
def test_scale(n, dim):
    x = guarded(activations(n, dim))
    want = x * np.float32(0.7)
    assert native.lib().gwq_scale(pointer(x), n, dim, 0.7) == 0
    assert_array_equal(x, want)


def test_copy_of_columns():
    x, out = guarded(activations(4, 10)), guarded(np.empty((4, 3), np.float32))
    assert native.lib().gwq_copy(pointer(x[:, 5:]), 10, 4, 3, pointer(out)) == 0
    assert_array_equal(out, x[:, 5:8])


BAD = {  # op -> arguments after the pool, where it takes one; X and Y are arrays (2, 8)
    "layernorm": ["X 0 0 1e-5 2 8 Y", "0 X 0 1e-5 2 8 Y", "X X 0 1e-5 -1 8 Y", "X X 0 1e-5 2 0 Y"],
    "rmsnorm": ["X 0 1e-5 2 8 Y"],
    "activate": ["X 0 2 8 0", "X Y 2 8 7", "0 Y 2 8 1"],
    "softcap": ["X 2 8 0.0", "X 2 8 nan", "0 2 8 1.0"],
    "rope": [
        "X 0 Y 2 1 8 8 0",
        "X Y Y 2 1 8 10 0",
        "X Y Y 2 1 8 5 0",
        "X Y Y 2 1 8 0 0",
        "X Y Y 2 1 8 8 2",
    ],
    "shortconv": [  # x, weight, state, its rows, taps, n, start, dim, out
        "0 Y Y 2 2 1 0 2 Y",
        "X 0 Y 2 2 1 0 2 Y",
        "X Y 0 2 2 1 0 2 Y",
        "X Y Y 2 2 1 0 2 0",
        "X Y Y 0 1 1 0 2 Y",
        "X Y Y 2 0 1 0 2 Y",
        "X Y Y 2 4 1 0 2 Y",
        "X Y Y 40 33 1 0 2 Y",
        "X Y Y 2 2 -1 0 2 Y",
        "X Y Y 2 2 1 -1 2 Y",
        "X Y Y 2 2 1 0 0 Y",
    ],
    "gate": ["0 Y 2 4 2", "X 0 2 4 2", "X Y -1 4 2", "X Y 2 0 2", "X Y 2 4 0"],
    "scale": ["0 2 8 1.0", "X -2 8 1.0"],
    "add": ["X 0 2 8 1.0 0"],
    "copy": ["X 7 2 8 Y", "0 8 2 8 Y"],
}


@pytest.mark.parametrize("op, arguments", [(op, arguments) for op in BAD for arguments in BAD[op]])
def test_bad_arguments_are_refused(op, arguments):
    x, y = guarded(activations(2, 8)), guarded(activations(2, 8))
    before = x.copy()
    function = getattr(native.lib(), f"gwq_{op}")
    kinds = [kind.cname for kind in ffi.typeof(function).args]
    words = ["P", *arguments.split()] if "gwq_pool" in kinds[0] else arguments.split()
    named = {"P": POOL.ptr, "X": pointer(x), "Y": pointer(y), "0": NULL}

    def value(word, kind):
        if "*" in kind:
            return named[word]
        return float(word) if kind == "float" else int(word)

    values = [value(word, kind) for word, kind in zip(words, kinds, strict=True)]
    assert function(*values) == native.lib().GWQ_E_ARGUMENT
    assert_array_equal(x, before)


@pytest.mark.parametrize("n", [1, 2, 5, 63, 64, 65, 200, 5000])
def test_the_largest(n):
    for digits in (0, 6):  # many equal numbers, hardly any
        x = activations(1, n)[0].round(digits)
        for k in {1, min(2, n), min(40, n), n}:
            assert np.array_equal(top(x, k), np.argsort(-x, kind="stable")[:k])
    for value in (np.nan, np.inf, -np.inf):
        x[n // 2] = value
        with pytest.raises(GwqError, match="logits: a number is not finite: the file is damaged"):
            top(x, 1)
    x[n // 2] = 0
    for k in (0, n + 1):
        with pytest.raises(RuntimeError, match="GWQ_E_ARGUMENT"):
            top(x, k)
