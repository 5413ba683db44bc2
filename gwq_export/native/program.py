"""A forward pass as a list of native operations, recorded once and run by one call."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gwq_export.format.types import ffi
from gwq_export.native.joining import joined
from gwq_export.native.library import check, lib, pointer
from gwq_export.native.recorder import Op, Recorder

MAX_TOKENS: int = ffi.typeof("enum gwq_program_limits").relements["GWQ_PROGRAM_TOKENS"]
STRUCTS = {  # kinds whose struct has another name
    "rmsnorm": "norm",
    "layernorm": "norm",
    "activate": "each",
    "softcap": "each",
    "scale": "each",
    "fill": "each",
}


def packed(ops: Sequence[Op]) -> Any:
    """The operations as gwq_op structs, which point to what the operations do."""
    structs = ffi.new("gwq_op[]", len(ops))
    for struct, op in zip(structs, ops, strict=True):
        struct.kind = getattr(lib(), f"GWQ_OP_{op.kind.upper()}")
        struct.n = op.n
        setattr(struct, STRUCTS.get(op.kind, op.kind), op.fields)
    return structs


class Program:
    """A recorded forward pass for n tokens, ready to run on a pool at any position.

    It points into weights, work buffers and caches, which have to stay where they are.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.n = recorder.n
        self.pool = recorder.pool
        self.ops = joined(recorder.ops)
        self._recorder = recorder  # which has work buffers
        self._lib = self.pool.lib
        self._ops = packed(self.ops)
        self._ids = np.zeros(self.n, np.int32)
        self._ids_ptr = pointer(self._ids, "int32_t *")
        self._bytes = self._lib.gwq_program_bytes(self._ops, len(self.ops), self.pool.threads)
        self._scratch, self._scratch_ptr = self.pool.scratch(self._bytes)

    def run(self, ids: np.ndarray, pos: int, nanoseconds: np.ndarray | None = None) -> None:
        """Run for the token ids (n,) at the positions from `pos` on.

        nanoseconds: int64 (operations,), to which the time of every one is added. Raises as
        `native.library.check` does.
        """
        self._ids[:] = ids
        times = ffi.NULL if nanoseconds is None else pointer(nanoseconds, "int64_t *")
        if s := self._lib.gwq_program_run(
            self.pool.ptr,
            self._ops,
            len(self.ops),
            self._ids_ptr,
            self.n,
            pos,
            self._scratch_ptr,
            self._bytes,
            times,
        ):
            check(s, "forward pass")
