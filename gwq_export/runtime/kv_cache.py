"""The KV cache: K and V of every layer, and of which token ids they are."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from gwq_export.arch.config import Config, read_config
from gwq_export.errors import GwqError, NoMemory
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES, TensorType, ffi
from gwq_export.machine import free_memory, size
from gwq_export.native.library import NULL, Pointer, Pool, check, pointer
from gwq_export.native.ops import CACHE
from gwq_export.runtime.states import States, state_bytes

Layer: TypeAlias = tuple[Pointer, Pointer, Any]
FIRST = 256  # positions that there is room for at first


def cache_type(reader: Reader, config: Config, name: str | None = None) -> TensorType:
    """The type that a name of `native.ops.CACHE` stands for. Raises GwqError.

    None: f16, which halves what attention reads; f32 beside float32 matrices, where it would be the
    least precise number of all.
    """
    exact = all(t.type.name == "f32" for t in reader.tensors.values())
    if name not in (None, *CACHE):
        raise GwqError(f"a KV cache of type {name} is not known: choose from {', '.join(CACHE)}")
    type = TYPES[name or ("f32" if exact else "f16")]
    if config.head_dim % type.unit:
        raise GwqError(
            f"a KV cache of type {name} needs heads of whole {type.unit}s, "
            f"not {config.head_dim}: choose f16"
        )
    return type


def text_bytes(reader: Reader) -> dict[str, int]:
    """{"state_bytes", "cache_bytes"}: memory that a text takes, and each of its tokens beside that.

    Empty for a file that the runtime does not run.
    """
    try:
        config = read_config(reader)
        type = cache_type(reader, config)
    except GwqError:
        return {}
    convolutions = config.kinds.count("conv")
    rows = 2 * type.nbytes(1, config.dims["kv"])
    return {
        "state_bytes": state_bytes(convolutions, config.taps, config.dim) if convolutions else 0,
        "cache_bytes": (config.layers - convolutions) * rows,
    }


class KVCache:
    """K and V of every attention layer for the token ids computed so far, `pos` of at most `ctx`.

    Memory is taken as it is needed: `reserve` makes room, twice as much each time, so that all its
    copying together costs no more than writing the cache twice.

    width: numbers that K, and V, have at one position. type: of these numbers, one of
    `native.ops.CACHE`. layers: of every layer K and V, void pointers to (room, width) numbers,
    which the forward function writes at the positions from `pos` on before it calls `append`; and
    the array that they point into, uint8 (2, room, bytes). states: of the layers that have one
    instead, which decide how far back the cache can go.
    """

    def __init__(
        self, layers: int, ctx: int, width: int, type: TensorType, states: States | None = None
    ) -> None:
        self.ctx = ctx
        self.type = type
        self.states = states
        self.pos = 0
        self.room = 0  # positions that there is memory for
        self._row = type.nbytes(1, width)  # bytes of K, and of V, at one position of a layer
        self._ids = np.zeros(0, np.int32)  # valid up to pos
        nothing = np.zeros((2, 0, self._row), np.uint8)
        self.layers: list[Layer] = [(NULL, NULL, nothing)] * layers

    def nbytes(self, positions: int) -> int:
        """Bytes of K and V of all layers for so many positions."""
        return len(self.layers) * 2 * positions * self._row

    def reserve(self, positions: int) -> None:
        """Make room for `positions`, at most `ctx`; then `layers` has other pointers.

        Raises NoMemory, and then holds what it held.
        """
        if positions <= self.room:
            return
        for room in (min(self.ctx, max(positions, 2 * self.room, FIRST)), positions):
            if self._grow(room):
                return
        free = self._free()
        raise NoMemory(
            f"the KV cache ({self.type.name}) of {positions} positions takes"
            f" {size(self.nbytes(positions))}"
            + ("" if free is None else f" and {size(free)} are free")
        )

    def _grow(self, room: int) -> bool:
        """Copy everything to memory for `room` positions; whether there was enough."""
        free = self._free()
        if free is not None and self.nbytes(room - self.room) > free:
            return False
        try:
            ids = np.zeros(room, np.int32)
            for i, layer in enumerate(self.layers):  # only one layer at a time is there twice
                self.layers[i] = self._larger(layer, room)
        except (MemoryError, NoMemory):
            return False
        ids[: self.pos] = self._ids[: self.pos]
        self._ids = ids
        self.room = room
        return True

    def _free(self) -> int | None:
        """Bytes of memory that are free, None: not known."""
        return free_memory()

    def _larger(self, layer: Layer, room: int) -> Layer:
        """A layer with what it holds, in memory for `room` positions."""
        # zeros, not empty: the system gives such pages when they are first written
        new = np.zeros((2, room, self._row), np.uint8)
        new[:, : self.pos] = layer[2][:, : self.pos]
        return pointer(new[0], "void *"), pointer(new[1], "void *"), new

    @property
    def ids(self) -> np.ndarray:
        """The token ids held, int32 (pos,)."""
        return self._ids[: self.pos]

    def begin(self, n: int) -> None:
        """Make ready for a forward pass of n tokens, for which there is room."""
        if self.states:
            self.states.begin(self.pos, n)

    def append(self, ids: np.ndarray) -> None:
        """Count ids (n,) as held: every layer has their K and V.

        A forward pass that fails or is interrupted never comes here. What it has written lies
        beyond `pos`, where the next pass overwrites it.
        """
        end = self.pos + len(ids)
        self._ids[self.pos : end] = ids
        self.pos = end
        if self.states:
            self.states.end(end, len(ids))

    def rewind(self, pos: int = 0) -> int:
        """Forget everything from position `pos` on, or from the last one before that it can go to.

        Returns which: where there are states, it may be an earlier one. Raises GwqError when `pos`
        is negative.
        """
        if pos < 0:
            raise GwqError(f"position {pos} is before the text: give a number from 0")
        pos = min(pos, self.pos)
        self.pos = self.states.nearest(pos) if self.states else pos
        return self.pos

    def reuse(self, ids: Sequence[int] | np.ndarray, keep: int = 1) -> int:
        """Rewind to the longest common prefix of `ids` and the ids held, as `rewind` does.

        Returns the length of what is kept.

        keep: logits of the last so many ids are wanted, so these are never part of the prefix.
        """
        longest = max(0, min(self.pos, len(ids) - keep))
        different = np.flatnonzero(self._ids[:longest] != np.asarray(ids[:longest]))
        shared = int(different[0]) if len(different) else longest
        return self.rewind(shared)


class DeviceKVCache(KVCache):
    """A KV cache in a device's memory; its layers' third part is what keeps that.

    pool: the device.
    """

    def __init__(
        self,
        layers: int,
        ctx: int,
        width: int,
        type: TensorType,
        states: States | None,
        pool: Pool,
    ) -> None:
        super().__init__(layers, ctx, width, type, states)
        self.pool = pool

    def _free(self) -> None:
        """The device says it when it is asked for more than it has."""

    def _larger(self, layer: Layer, room: int) -> Layer:
        half = room * self._row
        memory, start = self.pool.scratch(2 * half)
        new = [ffi.cast("char *", start) + i * half for i in range(2)]
        for to, old in zip(new, layer[:2], strict=True):
            if self.pos:
                check(self.pool.lib.gwq_cuda_copy(to, old, self.pos * self._row), "KV cache")
        return ffi.cast("void *", new[0]), ffi.cast("void *", new[1]), memory
