"""Lists of operations: what is joined, and what the library refuses."""

import numpy as np
import pytest

from gwq_export.errors import GwqError
from gwq_export.format.types import TYPES, ffi
from gwq_export.native.library import F32, NULL, Pool, lib, pointer
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder

RNG = np.random.default_rng(3)
DIM, FFN, EPS = 40, 96, 1e-5


def floats(*shape):
    return F32(RNG.normal(size=shape).astype(np.float32))


def linear(rows, cols, bias=False):
    data = RNG.normal(size=(rows, cols)).astype(np.float32)
    matrix = Matrix("m", TYPES["f32"], data.shape, data.view(np.uint8).reshape(-1))
    return Linear([matrix], [floats(rows)] if bias else None)


class Parts:
    """Layers and buffers of a feed-forward block, for n tokens."""

    def __init__(self, n):
        self.n = n
        self.up, self.down = linear(FFN, DIM, bias=True), linear(DIM, FFN)
        self.weight, self.shift = floats(DIM), floats(DIM)
        self.x, self.h, self.gate = floats(n, DIM), F32((n, DIM)), F32((n, FFN))

    def block(self, ops):
        """x += down(gelu(up(norm(x)) + bias))"""
        n = self.n
        ops.layernorm(self.x.ptr, self.weight.ptr, self.shift.ptr, EPS, n, DIM, self.h.ptr)
        self.up(ops, self.h.ptr, n, self.gate.ptr)
        ops.activate(self.gate.ptr, NULL, n, FFN, lib().GWQ_GELU)
        self.down(ops, self.gate.ptr, n, self.h.ptr)
        ops.add(self.x.ptr, self.h.ptr, n, DIM, 0.5)


def kinds(recorder):
    return [op.kind for op in Program(recorder).ops]


@pytest.mark.parametrize("n", [1, MAX_TOKENS])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_block_is_two_products(n, threads):
    parts = Parts(n)
    start = parts.x.array.copy()
    recorder = Recorder(n, Pool(threads))
    parts.block(recorder)
    program = Program(recorder)
    assert [op.kind for op in program.ops] == ["matmul", "matmul"]
    times = np.zeros(2, np.int64)
    for _ in range(2):  # whatever a run before it has left
        parts.x.array[...] = start
        program.run(np.zeros(n, np.int32), 0, times)
        found = parts.x.array.copy()
    assert (times > 0).all()
    parts.x.array[...] = start
    parts.block(Ops(Pool(1)))
    assert np.array_equal(found, parts.x.array) and not np.array_equal(found, start)


def test_what_is_read_again_is_not_joined():
    """A norm whose result two products read, and a result that is looked at later."""
    parts = Parts(1)
    recorder = Recorder(1, Pool(1))
    recorder.rmsnorm(parts.x.ptr, parts.weight.ptr, EPS, 1, DIM, parts.h.ptr)
    parts.up(recorder, parts.h.ptr, 1, parts.gate.ptr)
    linear(FFN, DIM)(recorder, parts.h.ptr, 1, parts.gate.ptr)
    assert kinds(recorder) == ["rmsnorm", "matmul", "matmul"]
    recorder = Recorder(1, Pool(1))
    recorder.activate(parts.gate.ptr, NULL, 1, FFN, lib().GWQ_GELU)
    parts.down(recorder, parts.gate.ptr, 1, parts.h.ptr)
    recorder.scale(parts.gate.ptr, 1, FFN, 2.0)
    assert kinds(recorder) == ["activate", "matmul", "scale"]


def test_what_would_be_overwritten_is_not_joined():
    """Threads read the input of a norm while others are done with their rows already."""
    parts = Parts(1)
    square = linear(DIM, DIM)
    recorder = Recorder(1, Pool(1))
    recorder.rmsnorm(parts.x.ptr, parts.weight.ptr, EPS, 1, DIM, parts.h.ptr)
    square(recorder, parts.h.ptr, 1, parts.x.ptr)
    assert kinds(recorder) == ["rmsnorm", "matmul"]
    recorder = Recorder(1, Pool(1))
    recorder.rmsnorm(parts.x.ptr, parts.weight.ptr, EPS, 1, DIM, parts.h.ptr)
    square(recorder, parts.h.ptr, 1, parts.gate.ptr)
    recorder.add(parts.x.ptr, parts.gate.ptr, 1, DIM)
    assert kinds(recorder) == ["rmsnorm", "matmul"]
    recorder = Recorder(1, Pool(1))
    square(recorder, parts.x.ptr, 1, parts.gate.ptr)
    recorder.add(parts.x.ptr, parts.gate.ptr, 1, DIM)
    assert kinds(recorder) == ["matmul", "add"]


def test_tokens_and_positions():
    table = RNG.normal(size=(32, DIM)).astype(np.float32)
    matrix = Matrix("m", TYPES["f32"], table.shape, table.view(np.uint8).reshape(-1))
    x, h = F32((2, DIM)), F32((2, DIM))
    recorder = Recorder(2, Pool(2))
    recorder.embed(matrix.struct, DIM, np.zeros(2, np.int32), x.ptr)
    recorder.positions(matrix.struct, DIM, 0, 2, h.ptr)
    program = Program(recorder)
    program.run(np.array([7, 3]), 5)
    assert np.array_equal(x.array, table[[7, 3]]) and np.array_equal(h.array, table[[5, 6]])
    with pytest.raises(GwqError, match="a row or token id is out of range"):
        program.run(np.array([7, 32]), 5)
    with pytest.raises(GwqError, match="a row or token id is out of range"):
        program.run(np.array([7, 3]), 31)
    program.run(np.array([31, 0]), 0)
    assert np.array_equal(x.array, table[[31, 0]])


def test_rope_and_cache_go_by_the_position():
    x, found = floats(1, DIM), F32((8, DIM))
    cos, sin = floats(8, DIM // 2), floats(8, DIM // 2)
    style = lib().GWQ_ROPE_HALVES
    recorder = Recorder(1, Pool(1))
    recorder.rope(x.ptr, cos.ptr, sin.ptr, 1, 1, DIM, DIM, style)
    recorder.cache(x.ptr, DIM, TYPES["f32"].id, ffi.cast("void *", found.ptr), 0)
    start = x.array.copy()
    Program(recorder).run(np.zeros(1, np.int32), 3)
    expected = F32(start)
    at = 3 * (DIM // 2)
    Ops(Pool(1)).rope(expected.ptr, cos.ptr + at, sin.ptr + at, 1, 1, DIM, DIM, style)
    assert np.array_equal(found.array[3], expected.array[0])
    assert not found.array[[0, 1, 2, 4, 5, 6, 7]].any()


def test_many_threads_meet_often():
    """More of them than CPUs, so that some sleep at a meeting."""
    parts = Parts(1)
    start = parts.x.array.copy()
    results = []
    for threads in (1, 16):
        recorder = Recorder(1, Pool(threads))
        for _ in range(40):
            parts.block(recorder)
            recorder.scale(parts.x.ptr, 1, DIM, 0.1)
        parts.x.array[...] = start
        Program(recorder).run(np.zeros(1, np.int32), 0)
        results.append(parts.x.array.copy())
    assert np.array_equal(*results)


# Arguments of gwq_program_run that every library refuses
WRONG_CALLS = (
    {"ops": NULL},
    {"count": 0},
    {"ids": NULL},
    {"n": 0},
    {"n": MAX_TOKENS + 1},
    {"pos": -1},
    {"pos": 2**31 - 1},
    {"scratch": NULL},
)


def test_what_the_library_refuses():
    parts = Parts(1)
    recorder = Recorder(1, Pool(1))
    parts.block(recorder)
    program = Program(recorder)
    library, ops, scratch = lib(), program._ops, program._scratch_ptr
    ids = pointer(np.zeros(9, np.int32), "int32_t *")
    size = library.gwq_program_bytes(ops, 2, 1)

    def status(ops=ops, count=2, ids=ids, n=1, pos=0, scratch=scratch, size=size):
        return library.gwq_program_run(NULL, ops, count, ids, n, pos, scratch, size, NULL)

    assert status() == library.GWQ_OK
    assert status(size=size - 1) == library.GWQ_E_SCRATCH
    for wrong in WRONG_CALLS:
        assert status(**wrong) == library.GWQ_E_ARGUMENT, wrong
    wrong = {"count": 5, "x": NULL, "activation": 9, "m": [NULL], "y": [NULL], "into": NULL}
    for field, value in wrong.items():
        broken = ffi.new("gwq_op[]", 2)
        ffi.memmove(broken, ops, ffi.sizeof(broken))
        setattr(broken[1].matmul, field, value)
        expected = library.GWQ_OK if field == "into" else library.GWQ_E_ARGUMENT
        assert status(ops=broken) == expected, field
    broken[1].matmul.activation = library.GWQ_SILU  # without a factor
    assert status(ops=broken) == library.GWQ_E_ARGUMENT
    broken[0].kind = 99
    assert status(ops=broken) == library.GWQ_E_ARGUMENT
