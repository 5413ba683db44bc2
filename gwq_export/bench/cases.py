"""The table of kernels that `gwq-bench --kernels` times: operation, type, shape, tokens, outliers;
and random data for them.

The kernel tests take their types from here.
"""

import functools
from dataclasses import dataclass

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.types import ENTRY_MAX, LEVELS, TABLE, TYPES
from gwq_export.native.library import F32, lib, pointer
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import CACHE

MATRIX_TYPES = [t for t in TYPES if t not in ("i8", "i32")]
TILE_TYPES = [t for t in MATRIX_TYPES if TYPES[t].bits]
SHAPES = [
    (2048, 2048),
    (4096, 11008),
]  # outputs x inputs: of a model of 1 and of 7 billion parameters
OUTLIERS = (0.0, 0.01)
GEMM_TOKENS = (8, 128)
HEAD, GROUP = 128, 4  # attention: width of a head, query heads that share a key head


@dataclass(frozen=True)
class Case:
    """shape (rows, columns): of the matrix; of K and of V (positions, key heads x width); else of x
    (tokens, width).
    """

    op: str
    type: str
    shape: tuple
    tokens: int
    outliers: float = 0.0


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
]


def select(ops=None, types=None, shapes=None):
    """The cases whose op, type and shape ("4096x11008") are among those given;

    None: all. Raises GwqError for unknown ones.
    """
    chosen = CASES
    for flag, wanted, of in (
        ("--ops", ops, lambda c: c.op),
        ("--types", types, lambda c: c.type),
        ("--shapes", shapes, lambda c: "x".join(map(str, c.shape))),
    ):
        there = dict.fromkeys(map(of, CASES))
        for name in wanted or ():
            if name not in there:
                raise GwqError(f"{flag} {name}: choose from {', '.join(there)}")
        chosen = [c for c in chosen if wanted is None or of(c) in wanted]
    if not chosen:
        raise GwqError("--ops, --types and --shapes leave nothing to measure: give fewer of them")
    return chosen


def random_bytes(type, shape, outliers, rng):
    """(data, side-table or None) of a matrix: random bytes with finite scales, about `outliers` of
    its weights in the table.
    """
    rows, cols = shape
    data = rng.integers(0, 256, type.nbytes(rows, cols), np.uint8)
    fields = {
        "f32": data[3::4],
        "f16": data[1::2],
        "bf16": data[1::2],
    }  # with the exponent's top bit
    fields |= dict.fromkeys(("q8_0", *LEVELS), data[1 :: type.unit_bytes])
    if type.bits:
        data[:TABLE] &= ENTRY_MAX
        fields[type.name] = data[TABLE + 1 : type.head_bytes(rows) : 2]
    fields[type.name] &= 0xBF  # keeps the exponent far from infinity
    table = None
    if outliers:
        at = np.unique(rng.integers(0, rows * cols, round(outliers * rows * cols)))
        table = pack_outliers(
            at // cols, at % cols, rng.standard_normal(len(at)).astype(np.float16), shape
        )
    return data, table


def random_matrix(type, shape, outliers, rng):
    """A Matrix of `random_bytes`: for speed only."""
    return Matrix("random", type, shape, *random_bytes(type, shape, outliers, rng))


@functools.lru_cache(maxsize=1)  # the cases of one matrix follow one another
def _matrices(type, shape, outliers, working_set):
    """Copies of a random matrix, more than `working_set` bytes of them."""
    matrix = random_matrix(TYPES[type], shape, outliers, np.random.default_rng(0))
    return [matrix, *(matrix.copy() for _ in range(working_set // matrix.nbytes))]


def _uniform(rng, *shape):
    return F32(rng.random(shape, np.float32) - 0.5)


def _copies(make, nbytes, working_set):
    return [make() for _ in range(working_set // nbytes + 1)]


def matmul(case, ops, rng, working_set):
    x, y = _uniform(rng, case.tokens, case.shape[1]), F32((case.tokens, case.shape[0]))
    linears = [Linear([m]) for m in _matrices(case.type, case.shape, case.outliers, working_set)]
    calls = [lambda linear=linear: linear(ops, x.ptr, case.tokens, y.ptr) for linear in linears]
    return calls, linears[0].matrices[0].nbytes, 2 * case.tokens * case.shape[0] * case.shape[1]


def attention(case, ops, rng, working_set):
    (positions, width), n = case.shape, case.tokens
    kv_heads, start = width // HEAD, positions - n
    heads = kv_heads * GROUP
    q, out = _uniform(rng, n, heads * HEAD), F32((n, heads * HEAD))

    def make():
        k, v = (np.empty(nbytes // 2, np.uint8) for _ in range(2))
        kp, vp = pointer(k, "void *"), pointer(v, "void *")
        for part in (kp, vp):
            x = _uniform(rng, positions, width)
            ops.cache(x.ptr, positions * width, type.id, part, 0)
        return lambda keep=(k, v): ops.attention(
            q.ptr, kp, vp, type.id, n, start, heads, kv_heads, HEAD, HEAD**-0.5, 0.0, 0, out.ptr
        )

    type = TYPES[case.type]
    nbytes = 2 * type.nbytes(positions, width)
    return (
        _copies(make, nbytes, working_set),
        nbytes,
        4 * heads * HEAD * (n * start + n * (n + 1) // 2),
    )


def rmsnorm(case, ops, rng, working_set):
    weight = F32(np.ones(case.shape[1]))

    def make():
        x = _uniform(rng, *case.shape)
        return lambda: ops.rmsnorm(x.ptr, weight.ptr, 1e-5, *case.shape, x.ptr)

    return _in_place(make, case, working_set, reads=1, flops=4)


def rope(case, ops, rng, working_set):
    n, width = case.shape
    angle = rng.random((n, HEAD // 2))
    cos, sin = F32(np.cos(angle)), F32(np.sin(angle))

    def make():
        x = _uniform(rng, *case.shape)
        return lambda: ops.rope(
            x.ptr, cos.ptr, sin.ptr, n, width // HEAD, HEAD, HEAD, lib().GWQ_ROPE_PAIRS
        )

    return _in_place(make, case, working_set, reads=1, flops=3)


def activate(case, ops, rng, working_set):
    def make():
        gate = _uniform(rng, *case.shape)
        up = F32(1 + np.exp(-gate.array))  # the gate stays what it is, however often it is computed
        return lambda: ops.activate(gate.ptr, up.ptr, *case.shape, lib().GWQ_SILU)

    return _in_place(make, case, working_set, reads=2, flops=5)


def add(case, ops, rng, working_set):
    def make():
        x, y = _uniform(rng, *case.shape), _uniform(rng, *case.shape)
        return lambda: ops.add(x.ptr, y.ptr, *case.shape)

    return _in_place(make, case, working_set, reads=2, flops=1)


def _in_place(make, case, working_set, reads, flops):
    """An op on `reads` float32 arrays of the case's shape that overwrites the first, with `flops`
    for each number.
    """
    numbers = case.shape[0] * case.shape[1]
    return _copies(make, 4 * reads * numbers, working_set), 4 * reads * numbers, flops * numbers


OPS = {
    "gemv": matmul,
    "gemm": matmul,
    "attention": attention,
    "rmsnorm": rmsnorm,
    "rope": rope,
    "activate": activate,
    "add": add,
}


def build(case, ops, working_set):
    """(calls, nbytes, flops): functions that compute the case with `ops`, each on data of its own;
    bytes that one call has to read, and its operations. The data of all calls are more than
    `working_set` bytes.
    """
    return OPS[case.op](case, ops, np.random.default_rng(0), working_set)
