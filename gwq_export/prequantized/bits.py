"""Integers of 1 to 8 bits that follow one another in words of 32 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gwq_export.prequantized.scheme import divided

if TYPE_CHECKING:
    import torch


def words(count: int, bits: int) -> int:
    """Words of 32 bits that `count` numbers take."""
    return divided(count * bits, 32)


def unpack(
    packed: torch.Tensor, bits: int, count: int, order: Sequence[int] = range(8)
) -> torch.Tensor:
    """The numbers in packed (n, words) int32, lowest bits first: uint8 (n, count).

    order: where each of eight numbers belongs among them.
    """
    import torch

    n = len(packed)
    octets = packed.contiguous().view(torch.uint8)  # (n, 4 x words): in memory, lowest first
    runs = divided(count, 8)  # eight numbers take `bits` bytes
    lacking = runs * bits - octets.shape[1]
    if lacking > 0:
        octets = torch.nn.functional.pad(octets, (0, lacking))
    octets = octets[:, : runs * bits].reshape(n, runs, bits)
    out = torch.empty((n, runs, 8), dtype=torch.uint8)
    for k in range(8):
        byte, shift = divmod(k * bits, 8)
        value = octets[:, :, byte] >> shift
        if shift + bits > 8:  # the rest lies in the next byte
            value |= octets[:, :, byte + 1] << (8 - shift)
        torch.bitwise_and(value, (1 << bits) - 1, out=out[:, :, order[k]])
    return out.view(n, runs * 8)[:, :count]
