"""Lists of operations as bytes that another process runs: places instead of addresses.

A place is a number of 64 bits: what it lies in in the top 8 (one of FILE ... EXPERTS), where it
lies there below them. 0 is NULL. native/bench/record.h says what becomes of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gwq_export.errors import GwqError
from gwq_export.format.types import ffi
from gwq_export.native.library import CACHE_LINE, NULL, Pointer
from gwq_export.native.program import STRUCTS, packed
from gwq_export.native.recorder import Op
from gwq_export.native.spans import Span

# bytes of the model's file, of the constants, of the memory that is written; number of a matrix, of
# the first of some experts' matrices
FILE, CONSTANTS, MEMORY, MATRIX, EXPERTS = range(1, 6)
_ADDRESS = ffi.typeof("uintptr_t")


def place(what: int, at: int) -> int:
    """Byte or number `at` of what is one of FILE ... EXPERTS."""
    return what << 56 | at


def _address(pointer: Pointer) -> int:
    return int(ffi.cast(_ADDRESS, pointer))


class _Section:
    """Bytes, each piece of them where a cache line begins, and what they are a copy of."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.spans: list[tuple[Span, int]] = []  # where they were, and where they are here

    def add(self, span: Span) -> int:
        """Room for as many bytes; returns where."""
        at = self.nbytes
        self.spans.append((span, at))
        self.nbytes += -(-span.bytes // CACHE_LINE) * CACHE_LINE
        return at

    def find(self, address: int) -> int | None:
        """Where the byte of an address is here."""
        for span, at in self.spans:
            if span.at <= address < span.at + span.bytes:
                return at + address - span.at
        return None


class Image:
    """Operations, the matrices that they name, and the constants beside these.

    memory: what operations write, and which only `MEMORY` says of: work buffers and caches. tables:
    constants that are pointed into. file: the memory map of the model. side_tables: {byte of a
    matrix in it: (first byte of its outliers, first byte of their offsets)}.
    """

    def __init__(
        self,
        memory: Iterable[Span],
        tables: Iterable[Span],
        file: Span,
        side_tables: Mapping[int, tuple[int, int]],
    ) -> None:
        self._memory = _Section()
        self._constants = _Section()
        for span in memory:
            self._memory.add(span)
        for span in tables:
            self._constants.add(span)
        self._file = file
        self._side_tables = side_tables
        self._numbers: dict[int, int] = {}  # address of a matrix: its number
        self.matrices = b""  # gwq_matrix structs
        self.experts: list[int] = []  # places of matrices

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the operations write."""
        return self._memory.nbytes

    @property
    def constants(self) -> bytes:
        """What does not lie in the model's file."""
        out = bytearray(self._constants.nbytes)
        for span, at in self._constants.spans:
            out[at : at + span.bytes] = ffi.buffer(ffi.cast("char *", span.at), span.bytes)
        return bytes(out)

    def scratch(self, spans: Iterable[Span]) -> None:
        """More memory, of the next operations alone."""
        for span in spans:
            self._memory.add(span)

    def of(self, ops: Sequence[Op]) -> bytes:
        """gwq_op structs. Raises GwqError for a model that is not in one file."""
        structs = packed(ops)
        for struct, op in zip(structs, ops, strict=True):
            part = getattr(struct, STRUCTS.get(op.kind, op.kind))
            sizes = self._sizes(op)
            experts = op.fields.get("expert_count", 0) * op.fields.get("count", 0)
            for name, field in ffi.typeof(part).fields:
                value = getattr(part, name)
                if field.type.kind == "pointer":
                    is_list = field.type.item.kind == "pointer"
                    new = (
                        self._experts(value, experts)
                        if is_list
                        else self.place(value, sizes.get(name, 0))
                    )
                    setattr(part, name, ffi.cast(field.type, new))
                elif field.type.kind == "array":
                    bytes_of = sizes.get(name, [0] * len(value))
                    for i, nbytes in zip(range(len(value)), bytes_of, strict=False):
                        value[i] = ffi.cast(field.type.item, self.place(value[i], nbytes))
        return bytes(ffi.buffer(structs))

    def place(self, pointer: Pointer, nbytes: int = 0) -> int:
        """The place of what a pointer points to. nbytes: of it, should it be a constant."""
        if pointer == NULL:
            return 0
        if ffi.typeof(pointer) is ffi.typeof("gwq_matrix *"):
            return place(MATRIX, self._matrix(pointer))
        address = _address(pointer)
        if (at := self._memory.find(address)) is not None:
            return place(MEMORY, at)
        if (at := self._constants.find(address)) is not None:
            return place(CONSTANTS, at)
        if not nbytes:
            raise ValueError("an operation points to something that nobody knows")
        return place(CONSTANTS, self._constants.add(Span(address, nbytes)))

    @staticmethod
    def _sizes(op: Op) -> dict[str, Any]:
        """{field: bytes} of vectors of weights."""
        f = op.fields
        if op.kind in ("rmsnorm", "layernorm"):
            return dict.fromkeys(("weight", "bias"), 4 * f["dim"])
        if op.kind == "add":
            return {"y": 4 * f["dim"]}
        if op.kind == "shortconv":
            return {"weight": 4 * f["taps"] * f["dim"]}
        if op.kind == "matmul":
            norm = dict.fromkeys(("weight", "shift"), 4 * int(f["m"][0].cols))
            return norm | {"bias": [4 * int(m.rows) for m in f["m"]]}
        return {}

    def _experts(self, all: Pointer, count: int) -> int:
        """The place of the list of all experts' matrices."""
        if all == NULL:
            return 0
        first = len(self.experts)
        self.experts += [self.place(all[i]) for i in range(count)]
        return place(EXPERTS, first)

    def _matrix(self, struct: Pointer) -> int:
        """The number of a matrix."""
        address = _address(struct)
        if address not in self._numbers:
            self._numbers[address] = len(self._numbers)
            m = ffi.new("gwq_matrix *", struct[0])
            at = _address(m.data) - self._file.at
            if 0 <= at < self._file.bytes:
                m.data = ffi.cast("void *", place(FILE, at))
            elif m.outliers == NULL:
                m.data = ffi.cast("void *", self.place(m.data, int(m.data_bytes)))
            else:
                raise GwqError("--record takes a model that is one file: join its parts first")
            if m.outliers != NULL:
                records, offsets = self._side_tables[at]
                m.outliers = ffi.cast("uint8_t *", place(FILE, records))
                m.offsets = ffi.cast("uint8_t *", place(FILE, offsets))
            self.matrices += bytes(ffi.buffer(m))
        return self._numbers[address]
