"""What short convolutions remember of a text, beside the KV cache: their last inputs.

A KV cache has every position and goes back to any of them. A state has the end alone. It goes back
by what it has beside that: the inputs of HISTORY more positions, and copies of states as they were
at the ends of long passes.
"""

import numpy as np

from gwq_export.native.library import Pointer, Pool

HISTORY = 32  # positions that can be taken back; a pass of more tokens begins and ends with a copy
COPIES = 16  # of states


def state_bytes(layers: int, taps: int, dim: int) -> int:
    """Bytes of the States of so many layers, copies included."""
    return 4 * layers * dim * (_rows(taps) + COPIES * (taps - 1))


def _rows(taps: int) -> int:
    return HISTORY + taps - 1


class States:
    """The last inputs of a part's short convolutions, for texts of any length.

    layers: of every convolution a float pointer to (rows, dim), where the input of position p is in
    row p % rows. taps: positions that a convolution sees. What was written, and what is about to
    be, is noted before it happens, so that a pass may be cut short.
    """

    def __init__(self, layers: int, taps: int, dim: int, pool: Pool) -> None:
        self.rows = _rows(taps)
        self.memory = [pool.floats((self.rows, dim)) for _ in range(layers)]
        self.layers: list[Pointer] = [m.ptr for m in self.memory]
        self.nbytes = state_bytes(layers, taps, dim)
        self._before = taps - 1  # inputs that the next position needs
        self._low = 0  # inputs from here on are in memory, as far as the text goes
        # copies by their positions: the inputs before, the oldest first (layers, taps - 1, dim)
        self._copies: dict[int, np.ndarray] = {}

    def nearest(self, pos: int) -> int:
        """The last position up to `pos` from which a text that was held there can go on."""
        if self._reaches(pos):
            return pos
        return max((p for p in self._copies if p <= pos), default=0)

    def begin(self, pos: int, n: int) -> None:
        """Make ready for a pass of n tokens at `pos`, from which it can go on."""
        if pos == 0:
            self._low = 0
        elif not self._reaches(pos):
            self._restore(pos)
        self._copies = {p: copy for p, copy in self._copies.items() if p <= pos}
        if n > HISTORY:
            self._copy(pos)
        self._low = max(self._low, pos + n - self.rows)

    def end(self, pos: int, n: int) -> None:
        """Note that a pass of n tokens has come to `pos`."""
        if n > HISTORY:
            self._copy(pos)

    def _reaches(self, pos: int) -> bool:
        """Whether the inputs that `pos` needs are in memory."""
        return pos == 0 or max(0, pos - self._before) >= self._low

    def _needed(self, pos: int) -> range:
        return range(max(0, pos - self._before), pos)

    def _copy(self, pos: int) -> None:
        if pos == 0:
            return
        at = [p % self.rows for p in self._needed(pos)]
        self._copies[pos] = np.stack([m.array[at] for m in self.memory])
        if len(self._copies) > COPIES:
            del self._copies[min(self._copies)]

    def _restore(self, pos: int) -> None:
        copy = self._copies[pos]
        self._low = pos + self._before  # nothing, should this be cut short
        at = [p % self.rows for p in self._needed(pos)]
        for memory, inputs in zip(self.memory, copy, strict=True):
            values = memory.array
            values[at] = inputs
            memory.put(values)
        self._low = self._needed(pos).start
