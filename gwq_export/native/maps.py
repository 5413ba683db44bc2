"""Maps of files that may be cut short: what cannot be read becomes zeros, and is counted."""

import weakref

from gwq_export.format.types import ffi
from gwq_export.native.library import lib


def _forget(slot: int, buffer: memoryview) -> None:
    """Watch no longer. buffer: kept until then, so that the map is still there."""
    lib().gwq_map_forget(slot)


class WatchedMap:
    """A map of a file in which SIGBUS ends nothing, for as long as this object lives.

    buffer: all of the map. Where the library cannot watch it, `faults` stays 0. Raises GwqError
    without the library.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._lib = lib()
        out = ffi.new("int *")
        watched = len(buffer) and not self._lib.gwq_map_watch(
            ffi.from_buffer(buffer), len(buffer), out
        )
        self._slot = out[0] if watched else -1
        if watched:
            weakref.finalize(self, _forget, self._slot, buffer)

    @property
    def faults(self) -> int:
        """How often something could not be read."""
        return self._lib.gwq_map_faults(self._slot)
