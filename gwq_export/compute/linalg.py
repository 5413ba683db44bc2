"""Products and factorizations whose bits do not depend on the number of threads.

BLAS and LAPACK split their sums by the number of threads, which changes the order of the additions
and so the last bits. The functions here cut the result into pieces whose sizes follow from the
shapes alone; each piece is computed by one thread (call them inside `threads.one_thread_each`),
and the number of CPUs decides only how many pieces are computed at a time.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from gwq_export.compute.products import multiply
from gwq_export.compute.threads import each
from gwq_export.errors import GwqError

COLUMNS = 512  # columns of a product, or entries of a product with a vector, in one piece
PANEL = 256  # columns of the panels of a Cholesky factor


def pieces(count: int, step: int = COLUMNS) -> list[slice]:
    """Slices of `step` indices, the last one maybe shorter, that together cover range(count)."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b, float32, for a (m, k) and b (k, n) or (k,), float32."""
    left = torch.from_numpy(a)
    right = torch.from_numpy(b)
    if right.ndim == 1:
        return torch.cat(each(lambda part: left[part] @ right, pieces(len(left)))).numpy()
    out = torch.empty(len(left), right.shape[1])
    each(lambda part: multiply(left, right[:, part], out[:, part]), pieces(right.shape[1]))
    return out.numpy()


def tall_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b like `product`, to the same bits, for a b of few columns: cut by rows of a."""
    out = np.empty((len(a), b.shape[1]), np.float32)
    left, right, result = map(torch.from_numpy, (a, b, out))
    each(lambda part: multiply(left[part], right, result[part]), pieces(len(a)))
    return out


def plain_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b like `product`, but in one piece: for use in functions that `each` runs."""
    return multiply(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def add_plain_product(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Add a @ b to out (m, n), likewise; `out` may be columns of a larger array."""
    multiply(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(out), add=True)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a^T b to total (m, n), in place, for a (tokens, m) and b (tokens, n) of one dtype."""
    each(lambda part: multiply(a[:, part].T, b, total[part], add=True), pieces(len(total)))


def add_gram(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x to total (n, n), in place, for x (tokens, n); both are tensors of one dtype.

    Only the pieces on and right of the diagonal are computed, as the sum is symmetric; call
    `mirror` once all terms are added.
    """

    def add(part: slice) -> None:
        multiply(x[:, part].T, x[:, part.start :], total[part, part.start :], add=True)

    each(add, pieces(len(total)))


def mirror(total: torch.Tensor) -> None:
    """Copy the pieces right of the diagonal of total (n, n) to below it, transposed, in place."""
    for part in pieces(len(total)):
        total[part.stop :, part] = total[part, part.stop :].T


def reversed_as(dtype: type, a: np.ndarray) -> np.ndarray:
    """A copy of a (n, n), cast, with rows and columns in reverse."""
    out: np.ndarray = np.empty(a.shape, dtype)

    def copy(rows: slice) -> None:
        out[rows] = a[::-1, ::-1][rows]

    each(copy, pieces(len(a)))
    return out


def cholesky_inverse(a: np.ndarray) -> np.ndarray:
    """Overwrite a (n, n) with L^-1, where L is lower triangular and L L^T = a, and return it.

    a: symmetric, positive definite, float64. Raises GwqError where a pivot is not positive, also
    because of a NaN. Works on panels of PANEL columns, the blocked form of LAPACK's potrf (left
    looking) followed by trtri.
    """
    matrix = torch.from_numpy(a)
    panels = pieces(len(a), PANEL)
    _factorize(matrix, panels)
    _invert(matrix, panels)
    return a


def _factorize(a: torch.Tensor, panels: list[slice]) -> None:
    """Overwrite a with its Cholesky factor L, panel by panel from the left, zeros on the right.

    With P the rows of the panel, < P the columns before it and > P the rows below it, the blocks
    of a = L L^T give for each panel

        S            = A[>=P, P] - L[>=P, <P] L[P, <P]^T        (subtract what is known)
        L[P, P]      = the Cholesky factor of S[P, P]
        L[>P, P]     = S[>P, P] L[P, P]^-T                      (a triangular solve)
    """
    for j, panel in enumerate(panels):
        if panel.start:
            each(functools.partial(_subtract_known, a, panel), panels[j:])
        corner, failed = torch.linalg.cholesky_ex(a[panel, panel])
        if failed:
            raise GwqError(
                "the inputs of a matrix are not finite, or far out of proportion: "
                "is the model damaged?"
            )
        a[panel, panel] = corner
        each(functools.partial(_solve_below, a, panel, corner), panels[j + 1 :])
        a[panel, panel.stop :] = 0


def _subtract_known(a: torch.Tensor, panel: slice, rows: slice) -> None:
    """A[rows, P] -= L[rows, <P] L[P, <P]^T."""
    known = slice(0, panel.start)
    a[rows, panel].addmm_(a[rows, known], a[panel, known].T, alpha=-1)


def _solve_below(a: torch.Tensor, panel: slice, corner: torch.Tensor, rows: slice) -> None:
    """L[rows, P] = S[rows, P] corner^-T, with corner = L[P, P]."""
    solved = torch.linalg.solve_triangular(corner.T, a[rows, panel], upper=True, left=False)
    a[rows, panel].copy_(solved)


def _invert(a: torch.Tensor, panels: list[slice]) -> None:
    """Overwrite the lower triangular L in `a` with M = L^-1, panel by panel from the right.

    The blocks of M L = I give for the columns of a panel P, from those right of it,

        M[P, P]  = L[P, P]^-1
        M[>P, P] = -M[>P, >P] L[>P, P] M[P, P]

    Row r of M[>P, >P] has nothing right of the diagonal, so that a run of rows needs only the
    columns up to its own last one.
    """
    for j, panel in reversed(list(enumerate(panels))):
        identity = torch.eye(panel.stop - panel.start, dtype=a.dtype)
        corner = torch.linalg.solve_triangular(a[panel, panel], identity, upper=False)
        left = a[panel.stop :, panel] @ corner
        each(functools.partial(_fill_below, a, panel, left), panels[j + 1 :])
        a[panel, panel] = corner


def _fill_below(a: torch.Tensor, panel: slice, left: torch.Tensor, rows: slice) -> None:
    """M[rows, P] = -M[rows, >P] left, with left = L[>P, P] M[P, P]; `left` begins below P."""
    right_of_panel = slice(panel.stop, rows.stop)
    out = a[rows, panel]
    torch.mm(a[rows, right_of_panel], left[: rows.stop - panel.stop], out=out).neg_()
