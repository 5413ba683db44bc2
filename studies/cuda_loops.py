"""What is known of the loops over a matrix in the CUDA kernels' machine code."""

from dataclasses import dataclass

PIECE = 4 * 32  # weights that a thread multiplies in one turn of a GEMV's loop
WARP = 32


@dataclass(frozen=True)
class Loop:
    """The loop over a matrix in a GEMV's machine code.

    instructions: of one turn, without what massive channels repeat; alu: those among them that go
    to the units for logic, shifts and byte permutes; multiplied: to those for integer products.
    wide: loads of 16 bytes. local: loads and stores of local memory in the whole kernel.
    """

    kernel: str
    instructions: int
    alu: int
    multiplied: int
    wide: int
    local: int

    @property
    def cycles(self) -> int:
        """Cycles of a turn of a warp, at least: a quarter of a multiprocessor issues one
        instruction a cycle, and both kinds of integer units take two for a warp.
        """
        return max(self.instructions, 2 * self.alu, 2 * self.multiplied)

    @property
    def rate(self) -> float:
        """Weights that a multiprocessor, four quarters, multiplies in a cycle at most."""
        return 4 * WARP * PIECE / self.cycles


@dataclass(frozen=True)
class TensorLoop:
    """The loop of a kernel for tensor cores: a turn is a strip of 128 columns, or 32 keys.

    instructions: of a turn. products: of fragments (HMMA) among them. integer: those that the
    integer units have, half a warp a cycle. wide: loads of 16 bytes. local: as of Loop.
    """

    kernel: str
    instructions: int
    products: int
    integer: int
    wide: int
    local: int
