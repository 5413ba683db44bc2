"""Programs by the CUDA library over native/cuda/shim.h: the bits of the ops, and refusals."""

import numpy as np
import pytest

from gwq_export.errors import GwqError
from gwq_export.format.types import TYPES, ffi
from gwq_export.native.cuda import Cuda
from gwq_export.native.library import NULL, lib, pointer
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder
from tests.native.test_program import WRONG_CALLS
from tests.support.kernel_cases import activations, make, random

DIM, FFN, EPS, HEADS, VOCAB, EXPERTS = 64, 160, 1e-5, 2, 50, 4
TAPS, ROWS = 3, 12  # of a short convolution, and of its state
F32_ID = TYPES["f32"].id

pytestmark = pytest.mark.usefixtures("cuda_device")


class Parts:
    """Matrices, vectors and buffers of a device for n tokens, and ops of every kind over them."""

    def __init__(self, n):
        self.device = Cuda()
        self.n = n
        self.embedding = self.matrix("gwq4", VOCAB, DIM)
        self.up = Linear([self.matrix("gwq3", FFN, DIM)], [self.floats(1, FFN)])
        self.down = Linear([self.matrix("f16", DIM, FFN)])
        self.router = Linear([self.matrix("f32", EXPERTS, DIM)])
        self.experts = [self.matrix("gwq2", DIM, DIM, seed) for seed in range(EXPERTS)]
        self.weight, self.shift = self.floats(1, DIM), self.floats(1, DIM, 1)
        self.cos, self.sin = self.floats(16, DIM // 2 // HEADS), self.floats(16, DIM // 2 // HEADS)
        self.keys = self.device.floats((16, DIM))
        self.taps, self.state = self.floats(TAPS, DIM), self.floats(ROWS, DIM)
        names = {
            "x": DIM,
            "h": DIM,
            "part": DIM,
            "gate": FFN,
            "wide": 3 * DIM,
            "scores": EXPERTS,
            "weights": 2,
        }
        self.buffers = {name: self.device.floats((n, width)) for name, width in names.items()}
        self.chosen = self.device.floats((n, 2))

    def matrix(self, type, rows, cols, seed=0):
        case = make(type, rows, cols, random, seed)
        return self.device.matrix(Matrix("m", case.type, case.shape, case.data, case.outliers))

    def floats(self, n, dim, seed=0):
        return self.device.floats(activations(n, dim, seed))

    def forward(self, ops, ids, start):
        """All ops but the choice of an expert; a Recorder takes that too."""
        n = self.n
        x, h, part, gate, wide, scores, weights = (b.ptr for b in self.buffers.values())
        chosen = ffi.cast("int32_t *", self.chosen.ptr)
        cos, sin = (t.ptr + start * (DIM // 2 // HEADS) for t in (self.cos, self.sin))
        keys = ffi.cast("void *", self.keys.ptr)
        ops.embed(self.embedding.struct, DIM, ids, x)
        ops.positions(self.embedding.struct, DIM, start, n, h)
        ops.add(x, h, n, DIM, 0.5)
        ops.rope(x, cos, sin, n, HEADS, DIM // HEADS, DIM // HEADS, lib().GWQ_ROPE_PAIRS)
        ops.cache(x, n * DIM, F32_ID, keys, start * DIM)
        ops.attention(x, keys, keys, F32_ID, n, start, HEADS, HEADS, DIM // HEADS, 0.2, 20, 0, h)
        ops.gate(h, x, n, HEADS, DIM // HEADS)
        for third in range(3):
            ops.copy(h, DIM, n, DIM, wide + third * n * DIM)
        state = self.taps.ptr, self.state.ptr, ROWS, TAPS
        ops.shortconv(wide, *state, n, start, DIM, h)
        ops.layernorm(h, self.weight.ptr, self.shift.ptr, EPS, n, DIM, part)
        self.up(ops, part, n, gate)
        ops.activate(gate, NULL, n, FFN, lib().GWQ_GELU)
        self.down(ops, gate, n, h)
        ops.rmsnorm(h, self.weight.ptr, EPS, n, DIM, part)
        ops.scale(part, n, DIM, 0.5)
        ops.copy(part, DIM, n, DIM, h)
        self.router(ops, h, n, scores)
        ops.softcap(scores, n, EXPERTS, 3.0)
        ops.route(scores, n, EXPERTS, 2, True, chosen, weights)
        if isinstance(ops, Recorder):
            ops.fill(part, n, DIM, 0.25)
            every = [m.struct for m in self.experts]
            self.keep = ffi.new("gwq_matrix *[]", every)
            ops.of_choice(every[:1], self.keep, EXPERTS, chosen, h, [gate], part, weights)

    def results(self):
        return {name: buffer.array for name, buffer in self.buffers.items()}


@pytest.mark.parametrize("n", [1, MAX_TOKENS])
def test_a_program_is_its_ops(n):
    parts = Parts(n)
    recorder = Recorder(n, parts.device)
    parts.forward(recorder, np.zeros(n, np.int32), 0)
    # of the chosen expert there is one for all tokens
    recorder.ops = recorder.ops if n == 1 else recorder.ops[:-2]
    program = Program(recorder)
    assert len(program.ops) < len(recorder.ops)  # some are joined
    for start in (0, 5, 9):  # the graph is captured once
        ids = np.random.default_rng(start).integers(0, VOCAB, n).astype(np.int32)
        program.run(ids, start)
        found = parts.results()
        parts.forward(Ops(parts.device), ids, start)
        by_one = parts.results()
        if n == 1:  # part = 0.25 + weight * expert @ h
            chosen = int(parts.chosen.array.view(np.int32)[0, 0])
            y = parts.device.floats((1, DIM))
            Linear([parts.experts[chosen]])(Ops(parts.device), parts.buffers["h"].ptr, 1, y.ptr)
            total = np.float32(0.25) + by_one["weights"][0, 0] * y.array
            assert np.array_equal(found["part"], total)
        for name in ("x", "h", "scores", "weights"):
            assert np.array_equal(found[name], by_one[name]), (name, start)


def test_rows_that_are_not_there():
    parts = Parts(1)
    recorder = Recorder(1, parts.device)
    parts.forward(recorder, np.zeros(1, np.int32), 0)
    program = Program(recorder)
    for ids, pos in (([VOCAB], 0), ([-1], 0), ([0], VOCAB)):
        with pytest.raises(GwqError, match="a row or token id is out of range"):
            program.run(np.array(ids), pos)


NEEDED = {  # pointers without which an op cannot be
    "embed": ("matrix", "out"),
    "norm": ("x", "weight", "out"),
    "rope": ("x", "cos", "sin"),
    "each": ("x",),
    "add": ("x", "y"),
    "copy": ("x", "out"),
    "cache": ("x", "cache"),
    "route": ("scores", "chosen", "weights"),
    "attention": ("q", "k", "v", "out"),
    "shortconv": ("x", "weight", "state", "out"),
    "gate": ("x", "gate"),
    "matmul": ("x",),
}
STRUCT = dict(  # kind of an op -> its struct
    enumerate(["embed", "norm", "norm", "rope", "each", "each", "each", "add", "copy", "cache"])
)
STRUCT |= dict(
    enumerate(["each", "route", "attention", "shortconv", "gate", "matmul"], len(STRUCT))
)
SIZES = (
    "taps",
    "each",
    "dim",
    "heads",
    "width",
    "experts",
    "used",
    "stride",
    "count",
    "expert_count",
)


def test_what_is_refused():
    parts = Parts(1)
    recorder = Recorder(1, parts.device)
    parts.forward(recorder, np.zeros(1, np.int32), 0)
    program = Program(recorder)
    library, count = parts.device.lib, len(program.ops)
    ids = pointer(np.zeros(9, np.int32), "int32_t *")

    def status(ops=program._ops, count=count, ids=ids, n=1, pos=0, size=program._bytes, **other):
        scratch = other.get("scratch", program._scratch_ptr)
        return library.gwq_program_run(NULL, ops, count, ids, n, pos, scratch, size, NULL)

    assert status() == library.GWQ_OK
    assert status(size=program._bytes - 1) == library.GWQ_E_SCRATCH
    for wrong in WRONG_CALLS:
        assert status(**wrong) == library.GWQ_E_ARGUMENT, wrong
    seen = set()
    for i in range(count):
        struct = STRUCT[program._ops[i].kind]
        seen.add(struct)
        fields = dict(ffi.typeof(f"gwq_op_{struct}").fields)
        changes = [(name, NULL) for name in NEEDED[struct]]
        for name in SIZES:
            if name in fields and fields[name].type.kind == "primitive":
                changes += [(name, value) for value in (0, -1, 2**31 - 1)]
        if struct == "matmul":
            changes += [("m", [NULL] * 4), ("y", [NULL] * 4)]
            if program._ops[i].matmul.choice == NULL:
                changes = [c for c in changes if c[0] != "expert_count"]
        for name, value in changes:
            if (name, value) in [("stride", 2**31 - 1), ("expert_count", 2**31 - 1)]:
                continue  # as long as memory is: nobody can see that
            broken = ffi.new("gwq_op[]", count)
            ffi.memmove(broken, program._ops, ffi.sizeof(broken))
            setattr(getattr(broken[i], struct), name, value)
            assert status(ops=broken) in (library.GWQ_E_ARGUMENT, library.GWQ_E_TYPE), (
                struct,
                name,
                value,
            )
    assert seen == set(NEEDED)
    for kind in (-1, 99):
        broken[0].kind = kind
        assert status(ops=broken) == library.GWQ_E_ARGUMENT
    assert status() == library.GWQ_OK
