"""What a file tells of itself: sizes, where its outliers are, how it was made.

That is the data which a report is drawn from.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np

from gwq_export.format.layout import COMPANIONS
from gwq_export.format.outliers import unpack_outliers
from gwq_export.format.reader import Reader
from gwq_export.format.tensor import Tensor

BINS = 32  # of a matrix's rows, and of its columns, in which outliers are counted
DENSEST = 0.01  # share of the rows or columns whose outliers are compared with all
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_GENERAL = (
    "general.name",
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
)


def gather(reader: Reader) -> dict[str, Any]:
    """{"name", "arch", "params", "bytes", "bpw", "keys", "tensors"} of an open file.

    keys: {name: value} of the general and the gwq.* keys. tensors: {"name", "type", "shape",
    "params", "bytes" (with side-table), "outliers", "block" (or None), "matrix"} of each, and where
    there are outliers "rows" and "columns" (how many of them each of at most BINS equal parts
    holds, in the file's order) and "row_share" and "column_share" (share of them in the densest
    DENSEST of rows or columns). Raises GwqError for a damaged side-table.
    """
    meta = reader.metadata
    tensors = [_tensor(reader, t) for t in reader.tensors.values() if not t.companion]
    params = sum(t["params"] for t in tensors)
    general = [key for key in _GENERAL if key in meta]
    ours = [key for key in meta if key.startswith("gwq.")]
    return {
        "name": str(meta.get("general.name", "")),
        "arch": str(meta.get("general.architecture", "")),
        "params": params,
        "bytes": reader.nbytes,
        "bpw": 8 * reader.nbytes / max(params, 1),
        "keys": {key: meta[key] for key in (*general, *ours)},
        "tensors": tensors,
    }


def place(name: str) -> dict[str, Any]:
    """{"block": number or None, "matrix": name within the block} of a tensor's name."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return {"block": None, "matrix": name}
    return {"block": int(match[1]), "matrix": match[2]}


def _tensor(reader: Reader, t: Tensor) -> dict[str, Any]:
    table = sum(
        reader.tensors[t.name + suffix].nbytes
        for suffix in COMPANIONS
        if t.name + suffix in reader.tensors
    )
    facts = {
        "name": t.name,
        "type": t.type.name,
        "shape": list(t.shape),
        "params": prod(t.shape),
        "bytes": t.nbytes + table,
        "outliers": t.outlier_count,
    } | place(t.name)
    if t.outlier_count:
        row, column = _positions(t)
        facts |= _concentration("row", row, prod(t.shape[:-1]))
        facts |= _concentration("column", column, t.shape[-1])
    return facts


def _concentration(axis: str, at: np.ndarray, n: int) -> dict[str, Any]:
    """{"<axis>s", "<axis>_share"} of outliers at the indices `at` of an axis of length n."""
    counts = np.bincount(at, minlength=n)
    edges = np.unique(np.linspace(0, n, BINS, endpoint=False).astype(int))
    densest = np.sort(counts)[-max(1, round(DENSEST * n)) :]
    return {
        f"{axis}s": np.add.reduceat(counts, edges).tolist(),
        f"{axis}_share": float(densest.sum() / counts.sum()),
    }


def _positions(t: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of every outlier of a tensor.

    The rows of an expert's matrix count on from those of the one before.
    """
    rows = []
    columns = []
    for j, matrix in enumerate(t.matrices()):
        assert matrix.outliers is not None
        n_rows, n_cols = matrix.shape
        row, column, _ = unpack_outliers(*matrix.outliers, (n_rows, n_cols))
        rows.append(row + j * n_rows)
        columns.append(column)
    return np.concatenate(rows), np.concatenate(columns)
