"""Products of float32 matrices by the native library, whose bits are the same on every CPU."""

from __future__ import annotations

import torch

from gwq_export.format.types import ffi
from gwq_export.native.library import check, lib

NARROW = 16  # rows and columns of a result below which torch multiplies


def multiply(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None, add: bool = False
) -> torch.Tensor:
    """Return a @ b for a (m, k) and b (k, n), float32 in any strides, computed by one thread.

    out (m, n), whose rows lie side by side: takes the result or, with `add`, has it added. Tensors
    of another dtype or device, and narrow results, are left to torch.
    """
    (m, k), n = a.shape, b.shape[1]
    if min(m, n) < NARROW or not k or a.dtype != torch.float32 or a.device.type != "cpu":
        if add:
            assert out is not None
            return out.addmm_(a, b)
        return torch.mm(a, b, out=out)
    if out is None:
        out = torch.empty(m, n)
    p = ffi.new("gwq_multiplication *")
    p.m, p.n, p.k = m, n, k
    p.a, (p.a_row, p.a_column) = _pointer(a), a.stride()
    p.b, (p.b_row, p.b_column) = _pointer(b), b.stride()
    p.out, p.out_row = _pointer(out), out.stride(0)
    p.add = add
    check(lib().gwq_multiply(p), "a product")
    return out


def _pointer(tensor: torch.Tensor) -> object:
    return ffi.cast("float *", tensor.data_ptr())
