"""Pieces of memory, by which operations are told apart that touch the same."""

from dataclasses import dataclass

import numpy as np

from gwq_export.format.types import ffi
from gwq_export.native.library import Pointer

_ADDRESS = ffi.typeof("uintptr_t")


@dataclass(frozen=True)
class Span:
    """Bytes of memory: `bytes` from address `at` on."""

    at: int
    bytes: int

    def meets(self, other: "Span") -> bool:
        """Whether the two share a byte."""
        return self.at < other.at + other.bytes and other.at < self.at + self.bytes

    def covers(self, other: "Span") -> bool:
        """Whether every byte of `other` is in here."""
        return self.at <= other.at and other.at + other.bytes <= self.at + self.bytes


def floats(at: Pointer, count: int) -> Span:
    """The memory of `count` floats."""
    return Span(int(ffi.cast(_ADDRESS, at)), 4 * count)


def span(array: np.ndarray) -> Span:
    """The memory of a C-contiguous array."""
    return Span(array.ctypes.data, array.nbytes)
