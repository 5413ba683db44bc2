"""Work spread over the CPUs in such a way that results never depend, by a bit, on how many there
are.

Libraries split sums by their number of threads. Here every piece is computed by one thread, and
what the pieces are follows from the sizes alone.
"""

import functools

import torch

from gwq_export.compute.threads import each
from gwq_export.errors import GwqError

COLUMNS = 512  # of a product in one piece
PANEL = 256  # columns of a Cholesky factor at a time


def pieces(count, step=COLUMNS):
    """Slices of `step` that make up `count`."""
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def add_product(out, a, b, scale=1.0):
    """out (m, n) += scale a (m, k) @ b (k, n), all float32 numpy."""
    out, a, b = map(torch.from_numpy, (out, a, b))
    each(lambda part: out[:, part].addmm_(a, b[:, part], alpha=scale), pieces(b.shape[1]))


def product(a, b):
    """a (m, k) @ b (k, n) or a (m, k) @ b (k,), float32 numpy."""
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    if b.ndim == 1:
        return torch.cat(each(lambda part: a[part] @ b, pieces(len(a)))).numpy()
    out = torch.empty(len(a), b.shape[1])
    each(lambda part: torch.mm(a, b[:, part], out=out[:, part]), pieces(b.shape[1]))
    return out.numpy()


def plain_product(a, b):
    """The same in one piece, for use within `each`."""
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def add_gram(total, x):
    """total (n, n) += x^T x for x (tokens, n), torch; the part above the diagonal, up to a piece
    beyond it. See `mirror`.
    """
    each(
        lambda part: total[part, part.start :].addmm_(x[:, part].T, x[:, part.start :]),
        pieces(len(total)),
    )


def mirror(total):
    """Copy what lies above the diagonal of total (n, n) below it, in place."""
    for part in pieces(len(total)):
        total[part.stop :, part] = total[part, part.stop :].T


def cholesky_inverse(a):
    """The inverse of L, lower triangular with L L^T = a (n, n), float64 numpy, in the place of `a`.

    Raises GwqError.
    """
    whole, a = a, torch.from_numpy(a)
    parts = pieces(len(a), PANEL)
    for j, part in enumerate(parts):  # by panels of columns, each from those before
        below = [slice(rows.start, rows.stop) for rows in parts[j:]]
        if j:
            each(
                lambda rows: a[rows, part].addmm_(
                    a[rows, : part.start], a[part, : part.start].T, alpha=-1
                ),
                below,
            )  # noqa: B023
        corner, failed = torch.linalg.cholesky_ex(a[part, part])
        if failed:
            raise GwqError(
                "the inputs of a matrix are not finite, or far out of proportion: is the model damaged?"
            )
        a[part, part] = corner
        solve = functools.partial(torch.linalg.solve_triangular, corner.T, upper=True, left=False)
        each(lambda rows: a[rows, part].copy_(solve(a[rows, part])), below[1:])  # noqa: B023
        a[part, part.stop :] = 0
    for j, part in reversed(list(enumerate(parts))):  # from the inverse of what lies right below
        corner = torch.linalg.solve_triangular(
            a[part, part], torch.eye(part.stop - part.start, dtype=a.dtype), upper=False
        )
        left = a[part.stop :, part] @ corner
        each(
            lambda rows: torch.mm(
                a[rows, part.stop : rows.stop], left[: rows.stop - part.stop], out=a[rows, part]
            ).neg_(),
            parts[j + 1 :],
        )  # noqa: B023
        a[part, part] = corner
    return whole
