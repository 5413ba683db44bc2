"""A linear layer with correlated inputs, and what quantizing it costs."""

import numpy as np


def layer(rows, cols, seed=0):
    """Weights, the Hessian of correlated inputs and row weights."""
    rng = np.random.default_rng([seed, rows, cols])
    x = rng.normal(size=(4 * cols, 8)) @ rng.normal(size=(8, cols)) + rng.normal(
        size=(4 * cols, cols)
    ) * rng.uniform(0.2, 2, cols)
    h = (x.T @ x / len(x)).astype(np.float32)
    return (
        rng.normal(size=(rows, cols)).astype(np.float32),
        h,
        rng.uniform(0.1, 2, rows).astype(np.float32),
    )


def output_error(weight, values, h, row_weight):
    e = (values - weight).astype(np.float64)
    return (((e @ h) * e).sum(1) * (row_weight / row_weight.mean() + 0.1)).sum()


def outputs(rows, rng, width=1024):
    """ "outputs" of rows that have to do with each other, (rows, min(rows, width))."""
    g = rng.normal(size=(4 * rows, 3)) @ rng.normal(size=(3, rows))
    g += rng.normal(size=g.shape) * rng.uniform(0.3, 2, rows)
    out = np.zeros((rows, min(rows, width)), np.float32)
    for first in range(0, rows, width):
        part = slice(first, first + width)
        here = g[:, part].T @ g[:, part] / len(g)
        out[part, : len(here)] = here
    return out
