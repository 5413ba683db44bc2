"""What a file tells of itself: sizes, where its outliers are, how it was made. The data that a
report is drawn from.
"""

import re
from math import prod

import numpy as np

from gwq_export.format.layout import OFFSETS, OUTLIERS
from gwq_export.format.outliers import unpack_outliers

BINS = 32  # of a matrix's rows, and of its columns, in which outliers are counted
DENSEST = 0.01  # share of the rows or columns whose outliers are compared with all
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_GENERAL = (
    "general.name",
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
)


def gather(reader):
    """{"name", "arch", "params", "bytes", "bpw", "keys", "tensors"} of an open file
    (container.Reader).

    keys: {name: value} of the general and the gwq.* keys. tensors: {"name", "type", "shape",
    "params", "bytes" (with side-table), "outliers", "block" (or None), "matrix"} of each, and where
    there are outliers "rows" and "columns" (how many of them each of at most BINS equal parts
    holds, in the file's order) and "row_share" and "column_share" (share of them in the densest
    DENSEST of rows or columns). Raises GwqError for a damaged side-table.
    """
    meta = reader.metadata
    tensors = [_tensor(reader, t) for t in reader.tensors.values() if not t.companion]
    params = sum(t["params"] for t in tensors)
    keys = {
        k: meta[k]
        for k in (*(g for g in _GENERAL if g in meta), *(k for k in meta if k.startswith("gwq.")))
    }
    return {
        "name": str(meta.get("general.name", "")),
        "arch": str(meta.get("general.architecture", "")),
        "params": params,
        "bytes": reader.nbytes,
        "bpw": 8 * reader.nbytes / max(params, 1),
        "keys": keys,
        "tensors": tensors,
    }


def place(name):
    """{"block": number or None, "matrix": name within the block} of a tensor's name."""
    found = _BLOCK.fullmatch(name)
    return (
        {"block": int(found[1]), "matrix": found[2]} if found else {"block": None, "matrix": name}
    )


def _tensor(reader, t):
    table = sum(
        reader.tensors[t.name + s].nbytes
        for s in (OUTLIERS, OFFSETS)
        if t.name + s in reader.tensors
    )
    found = {
        "name": t.name,
        "type": t.type.name,
        "shape": list(t.shape),
        "params": prod(t.shape),
        "bytes": t.nbytes + table,
        "outliers": t.outlier_count,
    } | place(t.name)
    if t.outlier_count:
        rows, columns = prod(t.shape[:-1]), t.shape[-1]
        row, column = _positions(t)
        for name, at, n in (("row", row, rows), ("column", column, columns)):
            counts = np.bincount(at, minlength=n)
            bins = np.add.reduceat(
                counts, np.unique(np.linspace(0, n, BINS, endpoint=False).astype(int))
            )
            densest = np.sort(counts)[-max(1, round(DENSEST * n)) :]
            found |= {
                f"{name}s": bins.tolist(),
                f"{name}_share": float(densest.sum() / counts.sum()),
            }
    return found


def _positions(t):
    """(row, column) of every outlier of a tensor; the rows of an expert's matrix count on from
    those of the one before.
    """
    found = [unpack_outliers(*m.outliers, m.shape) for m in t.matrices()]
    rows = [row + j * t.shape[-2] for j, (row, _, _) in enumerate(found)]
    return np.concatenate(rows), np.concatenate([column for _, column, _ in found])
