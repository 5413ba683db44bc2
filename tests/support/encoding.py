"""Calls of gwq_encode: problems for the native search of codes, and what its results stand for."""

import numpy as np
import pytest

from gwq_export.format.decoding import windows
from gwq_export.format.types import BLOCK, TYPES, ffi
from gwq_export.native.library import lib, pointer
from gwq_export.quantization.recipe import TABLES
from gwq_export.quantization.tile_codes import native_table

TILES = [t for t in TYPES.values() if t.bits]
each_type = pytest.mark.parametrize("type", TILES, ids=lambda t: t.name)
KINDS = {"float32": "float *", "uint8": "uint8_t *", "int8": "int8_t *"}


def problem(type, columns=BLOCK, rows=128, seed=0, **more):
    """Arguments of gwq_encode by name: random weights (columns, rows), their scales, and room for
    the results.
    """
    rng = np.random.default_rng(seed)
    shape = (columns, rows)
    table, _ = native_table(type, TABLES["trellis"][type.name])
    return {
        "table": table,
        "row_scale": rng.uniform(0.0005, 0.002, rows).astype(np.float16).astype(np.float32),
        "row_weight": rng.uniform(0.1, 3, rows).astype(np.float32),
        "column_weight": rng.uniform(0, 2, columns).astype(np.float32),
        "target": rng.normal(size=shape).astype(np.float32),
        "scale": rng.integers(-32, 32, (-(-columns // type.sub), rows)).astype(np.int8),
        "code": np.zeros(shape, np.uint8),
        "value": np.zeros(shape, np.float32),
    } | more


def everything(type, columns, rows=128, seed=0):
    """A problem with held-out weights, feedback and values before."""
    rng = np.random.default_rng([9, seed])
    arrays = problem(type, columns, rows, seed)
    shape = arrays["target"].shape
    arrays["outlier"] = (rng.random(shape) < 0.05).astype(np.uint8)
    arrays["feedback"] = (rng.normal(size=(columns, columns)) / columns).astype(np.float32)
    arrays["before"] = (arrays["target"] + 0.1 * rng.normal(size=shape)).astype(np.float32)
    arrays["column_cost"] = rng.uniform(0, 2, columns).astype(np.float32)
    return arrays


def whole(type, columns):
    """`columns`, rounded up to whole rings."""
    unit = type.line_columns if type.history else 1
    return -(-columns // unit) * unit


def call(kind, arrays, fit, pool=ffi.NULL, **fields):
    """Status of gwq_encode; its results are in the arrays."""
    e = ffi.new("gwq_encoding *")
    columns, rows = arrays["target"].shape
    e.type, e.fit = kind.id, fit
    e.columns, e.rows, e.last = columns, rows, rows
    for name, array in arrays.items():
        setattr(e, name, ffi.NULL if array is None else pointer(array, KINDS[array.dtype.name]))
    for name, value in fields.items():
        setattr(e, name, value)
    return lib().gwq_encode(pool, e)


def decoded(type, a):
    """Values of codes and scales, by the format's arithmetic."""
    entry = a["table"][windows(type, a["code"].T)].T
    return a["row_scale"] * (np.repeat(a["scale"], type.sub, 0)[: len(entry)] * entry)


def error(type, a, codes, weight=1.0):
    """Weighted squared errors (candidates, columns, rows) of codes (candidates, columns, rows), in
    float64. weight: (columns, 1).
    """
    entry = a["table"][windows(type, codes.swapaxes(1, 2))].swapaxes(1, 2)
    value = a["row_scale"] * (
        np.repeat(a["scale"], type.sub, 0)[: codes.shape[1]] * entry.astype(np.float64)
    )
    weight = weight * a["row_weight"]
    if a.get("outlier") is not None:
        weight = weight * (1.0 - a["outlier"])
    return (value - a["target"]) ** 2 * weight
