"""The KV cache: K and V of every layer, and of which token ids they are."""

from collections.abc import Sequence

import numpy as np

from gwq_export.format.types import TensorType
from gwq_export.native.library import pointer


class KVCache:
    """K and V of every layer for the token ids computed so far, `pos` of at most `ctx`.

    width: numbers that K, and V, have at one position. type: of these numbers, one of
    `native.ops.CACHE`. layers: (K, V) of every layer, void pointers to (ctx, width) numbers, which
    the forward function writes at the positions from `pos` on before it calls `append`.
    """

    def __init__(self, layers: int, ctx: int, width: int, type: TensorType) -> None:
        self.ctx = ctx
        self.type = type
        self.pos = 0
        # zeros, not empty: the system gives such pages when they are first written
        self._data = np.zeros((layers, 2, ctx, type.nbytes(1, width)), np.uint8)
        self._ids = np.zeros(ctx, np.int32)  # valid up to pos
        self.layers = [(pointer(k, "void *"), pointer(v, "void *")) for k, v in self._data]

    @property
    def nbytes(self) -> int:
        """Bytes of K and V for all `ctx` positions."""
        return self._data.nbytes

    def append(self, ids: np.ndarray) -> None:
        """Count ids (n,) as held: every layer has their K and V.

        A forward pass that fails or is interrupted never comes here. What it has written lies
        beyond `pos`, where the next pass overwrites it.
        """
        end = self.pos + len(ids)
        self._ids[self.pos : end] = ids
        self.pos = end

    def rewind(self, pos: int = 0) -> None:
        """Forget everything from position `pos` on."""
        self.pos = min(pos, self.pos)

    def reuse(self, ids: Sequence[int] | np.ndarray, keep: int = 1) -> int:
        """Rewind to the longest common prefix of `ids` and the ids held; returns its length.

        keep: logits of the last so many ids are wanted, so these are never part of the prefix.
        """
        longest = max(0, min(self.pos, len(ids) - keep))
        different = np.flatnonzero(self._ids[:longest] != np.asarray(ids[:longest]))
        shared = int(different[0]) if len(different) else longest
        self.rewind(shared)
        return shared
