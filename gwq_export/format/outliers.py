"""The outlier side-table of a matrix: numpy encoder and decoder, the specification beside
`gwq_format.h`.
"""

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.types import ROWS, TILE


def outlier_bytes(rows, cols, count):
    """(bytes of `.outliers`, entries of `.outlier_offsets`) of a matrix with `count` outliers."""
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    return groups * tiles * ROWS + 3 * count, groups + 1


def pack_outliers(row, col, value, shape):
    """Lay out a side-table.

    row, col: integer (n,) positions, each at most once and at most 255 in one row of a tile; value
    (n,) float16; shape (rows, cols). Returns (records uint8, offsets int32).
    """
    rows, cols = shape
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    order = np.lexsort((col, row))
    row, col, value = (
        np.asarray(row)[order],
        np.asarray(col)[order],
        np.asarray(value, np.float16)[order],
    )
    tile = row // ROWS * tiles + col // TILE
    slot = tile * ROWS + row % ROWS  # (tile, row of the tile)
    by_slot = np.argsort(slot, kind="stable")  # columns stay ascending within a slot
    row, col, value, tile, slot = (a[by_slot] for a in (row, col, value, tile, slot))
    counts = np.bincount(slot, minlength=groups * tiles * ROWS)
    if counts.max(initial=0) > 255:
        raise GwqError("more than 255 outliers in one row of a 256-column tile: lower --outliers")
    level = np.arange(len(slot)) - (np.cumsum(counts) - counts)[slot]
    order = np.lexsort((row, level, tile))
    col, value, tile = col[order], value[order], tile[order]
    n = counts.reshape(-1, ROWS).sum(1)
    start = np.concatenate([[0], np.cumsum(ROWS + 3 * n)])  # byte of each tile's record
    out = np.empty(start[-1], np.uint8)
    out[start[:-1, None] + np.arange(ROWS)] = counts.reshape(-1, ROWS)
    k = np.arange(len(tile)) - (np.cumsum(n) - n)[tile]
    at = start[tile] + ROWS + 2 * k
    out[at[:, None] + np.arange(2)] = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 2)
    out[start[tile] + ROWS + 2 * n[tile] + k] = col % TILE
    return out, start[::tiles].astype(np.int32)


def unpack_outliers(records, offsets, shape):
    """Inverse of `pack_outliers`: (row, col, value), sorted by row and column.

    Raises GwqError for a table that is not exactly what `pack_outliers` can write.
    """
    rows, cols = shape
    groups, tiles = -(-rows // ROWS), -(-cols // TILE)
    records, offsets = np.asarray(records, np.uint8), np.asarray(offsets, np.int32).astype(np.int64)
    if (
        len(offsets) != groups + 1
        or offsets[0] != 0
        or offsets[-1] != len(records)
        or (np.diff(offsets) < 0).any()
    ):
        raise GwqError(
            "outlier table: offsets do not ascend from 0 to its end; the file is damaged, export it again"
        )
    at, parts = offsets[:-1].copy(), []
    for t in range(tiles):
        if (at + ROWS > offsets[1:]).any():
            raise GwqError(
                "outlier table: a record is longer than its row group; the file is damaged, export it again"
            )
        counts = records[at[:, None] + np.arange(ROWS)].astype(np.int64)  # (groups, 16)
        n = counts.sum(1)
        if (at + ROWS + 3 * n > offsets[1:]).any():
            raise GwqError(
                "outlier table: a record is longer than its row group; the file is damaged, export it again"
            )
        g = np.repeat(np.arange(groups), n)
        k = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        # entry k of a tile: the k-th (level, row) pair with counts[row] > level
        r = np.repeat(np.tile(np.arange(ROWS), groups), counts.reshape(-1))
        level = np.arange(len(r)) - np.repeat(
            np.cumsum(counts.reshape(-1)) - counts.reshape(-1), counts.reshape(-1)
        )
        r = r[np.lexsort((r, level, g))]
        base = at[g] + ROWS
        col = t * TILE + records[base + 2 * n[g] + k].astype(np.int64)
        value = (
            np.ascontiguousarray(records[(base + 2 * k)[:, None] + np.arange(2)])
            .view(np.float16)
            .reshape(-1)
        )
        parts.append((g * ROWS + r, col, value))
        at += ROWS + 3 * n
    if (at != offsets[1:]).any():
        raise GwqError(
            "outlier table: records do not fill their row group; the file is damaged, export it again"
        )
    row, col, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    # columns of a row ascend with the level; `parts` runs level by level, so a stable sort by row
    # must ascend
    order = np.argsort(row, kind="stable")
    row, col, value = row[order], col[order], value[order]
    if (
        (row >= rows).any()
        or (col >= cols).any()
        or ((np.diff(row) == 0) & (np.diff(col) <= 0)).any()
    ):
        raise GwqError(
            "outlier table: an index is out of range or out of order; the file is damaged, export it again"
        )
    return row, col, value
