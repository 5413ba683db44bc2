"""The kernels that `gwq-bench --kernels` times, as one table, and random data for them.

A case is an operation, a type, a shape, a number of tokens and a share of outliers. The kernel
tests take their types from here.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.types import ENTRY_MAX, LEVELS, TABLE, TYPES, TensorType
from gwq_export.format.types import HEAD as TENSOR_HEAD
from gwq_export.native.library import F32, Pool, lib
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import CACHE, Ops

MATRIX_TYPES = [t for t in TYPES if t not in ("i8", "i32")]
TILE_TYPES = [t for t in MATRIX_TYPES if TYPES[t].bits]
# outputs x inputs, as in models of 1 and of 7 billion parameters
SHAPES = [(2048, 2048), (4096, 11008)]
OUTLIERS = (0.0, 0.01)
GEMM_TOKENS = (8, 128)
HEAD = 128  # attention: width of a head
TAPS = 3  # shortconv: positions that it sees
GROUP = 4  # attention: query heads that share a key head

# calls, by Ops of the same pool, that each work on data of their own; bytes that one of them reads;
# its operations
Call: TypeAlias = Callable[[Ops], Any]
Built: TypeAlias = tuple[list[Call], int, int]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    op: str  # key of OPS
    type: str  # of the matrix or of the KV cache; f32 for other operations
    # of the matrix (rows, columns); of K and of V (positions, key heads x width of a head); else of
    # the activations (tokens, width)
    shape: tuple[int, int]
    tokens: int
    outliers: float = 0.0  # share of the weights in the side-table


CASES = [
    *(
        Case("gemm" if tokens > 1 else "gemv", type, shape, tokens, outliers)
        for shape in SHAPES
        for type in MATRIX_TYPES
        for outliers in (OUTLIERS if type in TILE_TYPES else (0.0,))
        for tokens in (1, *GEMM_TOKENS)
    ),
    *(
        Case("attention", type, shape, tokens)
        for shape, tokens in (((4096, 1024), 1), ((512, 1024), 512))
        for type in CACHE
    ),
    Case("rmsnorm", "f32", (512, 4096), 512),
    Case("rope", "f32", (512, 4096), 512),
    Case("activate", "f32", (512, 11008), 512),
    Case("add", "f32", (512, 4096), 512),
    Case("shortconv", "f32", (512, 2048), 512),
]


def select(
    ops: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    shapes: Sequence[str] | None = None,
) -> list[Case]:
    """The cases whose op, type and shape ("4096x11008") are among those given; None: all.

    Raises GwqError for unknown ones, and when nothing is left.
    """
    choices: list[tuple[str, Sequence[str] | None, Callable[[Case], str]]] = [
        ("--ops", ops, lambda c: c.op),
        ("--types", types, lambda c: c.type),
        ("--shapes", shapes, lambda c: "x".join(map(str, c.shape))),
    ]
    chosen = CASES
    for flag, wanted, value in choices:
        if wanted is None:
            continue
        known = dict.fromkeys(map(value, CASES))
        for name in wanted:
            if name not in known:
                raise GwqError(f"{flag} {name}: choose from {', '.join(known)}")
        chosen = [c for c in chosen if value(c) in wanted]
    if not chosen:
        raise GwqError("--ops, --types and --shapes leave nothing to measure: give fewer of them")
    return chosen


def random_bytes(
    type: TensorType, shape: tuple[int, int], outliers: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Random data of a matrix: (uint8 bytes with finite scales, side-table or None).

    outliers: about which share of the weights is in the side-table.
    """
    rows, cols = shape
    data = rng.integers(0, 256, type.nbytes(rows, cols), np.uint8)
    # by type: the bytes that hold the top bits of the exponents of numbers or scales
    fields = {"f32": data[3::4], "f16": data[1::2], "bf16": data[1::2]}
    fields |= dict.fromkeys(("q8_0", *LEVELS), data[1 :: type.unit_bytes])
    if type.bits:
        data[:TABLE] &= ENTRY_MAX
        data[TABLE:TENSOR_HEAD] = 0
        fields[type.name] = data[TENSOR_HEAD + 1 : type.head_bytes(rows) : 2]
    fields[type.name] &= 0xBF  # keeps the exponent far from infinity
    table = None
    if outliers:
        at = np.unique(rng.integers(0, rows * cols, round(outliers * rows * cols)))
        table = pack_outliers(
            at // cols, at % cols, rng.standard_normal(len(at)).astype(np.float16), shape
        )
    return data, table


def random_matrix(
    type: TensorType, shape: tuple[int, int], outliers: float, rng: np.random.Generator
) -> Matrix:
    """A Matrix of `random_bytes`: for speed only."""
    return Matrix("random", type, shape, *random_bytes(type, shape, outliers, rng))


@functools.lru_cache(maxsize=1)  # the cases of one matrix follow one another
def _matrices(case: Case, pool: Pool, working_set: int) -> list[Matrix]:
    """Copies of a random matrix, more than `working_set` bytes of them."""
    rng = np.random.default_rng(0)
    matrix = random_matrix(TYPES[case.type], case.shape, case.outliers, rng)
    count = working_set // matrix.nbytes
    if pool.on_device:
        return [pool.matrix(matrix) for _ in range(1 + count)]
    return [matrix, *(matrix.copy() for _ in range(count))]


def _uniform(pool: Pool, rng: np.random.Generator, *shape: int) -> F32:
    """Numbers in [-0.5, 0.5)."""
    return pool.floats(rng.random(shape, np.float32) - 0.5)


def _copies(make: Callable[[], Call], nbytes: int, working_set: int) -> list[Call]:
    """As many calls by `make`, on `nbytes` of data each, as exceed `working_set` bytes together."""
    return [make() for _ in range(working_set // nbytes + 1)]


def matmul(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """One matrix times `tokens` vectors."""
    rows, cols = case.shape
    x = _uniform(ops.pool, rng, case.tokens, cols)
    y = ops.pool.floats((case.tokens, rows))
    matrices = _matrices(case, ops.pool, working_set)
    linears = [Linear([m]) for m in matrices]

    def call_of(linear: Linear) -> Call:
        return lambda ops: linear(ops, x.ptr, case.tokens, y.ptr)

    return list(map(call_of, linears)), matrices[0].nbytes, 2 * case.tokens * rows * cols


def attention(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """The last `tokens` queries over a KV cache of `positions`."""
    positions, width = case.shape
    n = case.tokens
    start = positions - n
    kv_heads = width // HEAD
    heads = kv_heads * GROUP
    pool = ops.pool
    q = _uniform(pool, rng, n, heads * HEAD)
    out = pool.floats((n, heads * HEAD))
    type = TYPES[case.type]
    nbytes = 2 * type.nbytes(positions, width)  # of K and V

    def make() -> Call:
        k, kp = pool.scratch(nbytes // 2)
        v, vp = pool.scratch(nbytes // 2)
        for part in (kp, vp):
            x = _uniform(pool, rng, positions, width)
            ops.cache(x.ptr, positions * width, type.id, part, 0)

        def call(ops: Ops, keep: tuple[Any, Any] = (k, v)) -> None:  # keeps them alive
            ops.attention(
                q.ptr, kp, vp, type.id, n, start, heads, kv_heads, HEAD, HEAD**-0.5, 0.0, 0, out.ptr
            )

        return call

    # a query and a key, and a weight and a value: 2 operations per number of the head each
    flops = 4 * heads * HEAD * (n * start + n * (n + 1) // 2)
    return _copies(make, nbytes, working_set), nbytes, flops


def rmsnorm(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """RMSNorm in place."""
    weight = ops.pool.floats(np.ones(case.shape[1], np.float32))

    def make() -> Call:
        x = _uniform(ops.pool, rng, *case.shape)
        return lambda ops: ops.rmsnorm(x.ptr, weight.ptr, 1e-5, *case.shape, x.ptr)

    return _in_place(make, case, working_set, reads=1, flops=4)


def rope(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """Rotary positions of whole heads, in place."""
    n, width = case.shape
    angle = rng.random((n, HEAD // 2))
    cos = ops.pool.floats(np.cos(angle))
    sin = ops.pool.floats(np.sin(angle))

    def make() -> Call:
        x = _uniform(ops.pool, rng, *case.shape)
        return lambda ops: ops.rope(
            x.ptr, cos.ptr, sin.ptr, n, width // HEAD, HEAD, HEAD, lib().GWQ_ROPE_PAIRS
        )

    return _in_place(make, case, working_set, reads=1, flops=3)


def activate(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """SiLU of the gate times up, in place."""

    def make() -> Call:
        gate = _uniform(ops.pool, rng, *case.shape)
        # silu(gate) * (1 + exp(-gate)) = gate, so that it stays the same however often it is run
        up = ops.pool.floats(1 + np.exp(-gate.array))
        return lambda ops: ops.activate(gate.ptr, up.ptr, *case.shape, lib().GWQ_SILU)

    return _in_place(make, case, working_set, reads=2, flops=5)


def add(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """Sum of two arrays, in place."""

    def make() -> Call:
        x = _uniform(ops.pool, rng, *case.shape)
        y = _uniform(ops.pool, rng, *case.shape)
        return lambda ops: ops.add(x.ptr, y.ptr, *case.shape)

    return _in_place(make, case, working_set, reads=2, flops=1)


def shortconv(case: Case, ops: Ops, rng: np.random.Generator, working_set: int) -> Built:
    """Gated short convolution of a prompt."""
    n, dim = case.shape
    pool = ops.pool
    weight = _uniform(pool, rng, TAPS, dim)
    state, out = pool.floats((TAPS - 1, dim)), pool.floats((n, dim))
    nbytes = 3 * 4 * n * dim

    def make() -> Call:
        values = rng.random((n, 3, dim), np.float32) - 0.5
        values[:, 0] = 1  # what the inputs are multiplied by, in place, however often it is run
        x = pool.floats(values)
        return lambda ops: ops.shortconv(
            x.ptr, weight.ptr, state.ptr, TAPS - 1, TAPS, n, 0, dim, out.ptr
        )

    return _copies(make, nbytes, working_set), nbytes, (2 * TAPS + 1) * n * dim


def _in_place(
    make: Callable[[], Call], case: Case, working_set: int, reads: int, flops: int
) -> Built:
    """An op on `reads` float32 arrays of the case's shape that overwrites the first of them.

    flops: operations for each number.
    """
    numbers = case.shape[0] * case.shape[1]
    nbytes = 4 * reads * numbers
    return _copies(make, nbytes, working_set), nbytes, flops * numbers


OPS = {
    "gemv": matmul,
    "gemm": matmul,
    "attention": attention,
    "rmsnorm": rmsnorm,
    "rope": rope,
    "activate": activate,
    "add": add,
    "shortconv": shortconv,
}


def build(case: Case, ops: Ops, working_set: int) -> Built:
    """(calls, nbytes, flops): functions that compute the case, each on its own data.

    ops: of the pool where the data is to lie. nbytes: that one call has to read; flops: operations
    of one call. The data of all calls together are more than `working_set` bytes.
    """
    return OPS[case.op](case, ops, np.random.default_rng(0), working_set)
