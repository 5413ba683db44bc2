"""The outlier side-table of a matrix: a numpy encoder and decoder that are the specification.

`gwq_format.h` draws the layout: one record per tile, row group by row group, in it

    count[16]    outliers of each row of the tile
    value[n]     FP16, n = sum of count
    column[n]    uint8, within the tile

in level order: the first outlier of every row that has one, the second of every row that has two,
and so on.
"""

from __future__ import annotations

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.format.types import ROWS, TILE

MAX_COUNT = 255  # outliers of one row of a tile: its count is a byte
Outliers = tuple[np.ndarray, np.ndarray]  # a side-table: (records uint8, offsets int32)


def outlier_bytes(rows: int, cols: int, count: int) -> tuple[int, int]:
    """(bytes of `.outliers`, entries of `.outlier_offsets`) of a matrix with `count` outliers."""
    groups, tiles = _grid(rows, cols)
    return groups * tiles * ROWS + 3 * count, groups + 1


def _grid(rows: int, cols: int) -> tuple[int, int]:
    """(row groups, tiles of a row group) of a matrix."""
    return -(-rows // ROWS), -(-cols // TILE)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each run begins when runs of these lengths lie one after another."""
    return np.cumsum(counts) - counts


def pack_outliers(
    row: np.ndarray, col: np.ndarray, value: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Lay out a side-table; returns (records uint8 (bytes,), offsets int32 (row groups + 1,)).

    row, col: integer (n,) positions in the matrix of `shape` (rows, cols), each at most once, in
    any order; value: float16 (n,). Raises GwqError for more than MAX_COUNT in one row of a tile.
    """
    groups, tiles = _grid(*shape)
    by_position = np.lexsort((col, row))
    row = np.asarray(row)[by_position]
    col = np.asarray(col)[by_position]
    value = np.asarray(value, np.float16)[by_position]

    tile = row // ROWS * tiles + col // TILE
    slot = tile * ROWS + row % ROWS  # a row of a tile
    by_slot = np.argsort(slot, kind="stable")  # columns stay ascending within a slot
    row, col, value, tile, slot = (a[by_slot] for a in (row, col, value, tile, slot))
    counts = np.bincount(slot, minlength=groups * tiles * ROWS)
    if counts.max(initial=0) > MAX_COUNT:
        raise GwqError("more than 255 outliers in one row of a 256-column tile: lower --outliers")

    level = np.arange(len(slot)) - _starts(counts)[slot]  # outliers of its slot before it
    by_level = np.lexsort((row, level, tile))
    col, value, tile = col[by_level], value[by_level], tile[by_level]

    total = counts.reshape(-1, ROWS).sum(1)  # outliers of each tile
    start = np.concatenate([[0], np.cumsum(ROWS + 3 * total)])  # byte of each record, and the end
    k = np.arange(len(tile)) - _starts(total)[tile]  # outliers of its tile before it
    count_at = start[:-1, None] + np.arange(ROWS)
    value_at = start[tile] + ROWS + 2 * k
    column_at = start[tile] + ROWS + 2 * total[tile] + k

    records = np.empty(start[-1], np.uint8)
    records[count_at] = counts.reshape(-1, ROWS)
    value_bytes = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 2)
    records[value_at[:, None] + np.arange(2)] = value_bytes
    records[column_at] = col % TILE
    return records, start[::tiles].astype(np.int32)


def unpack_outliers(
    records: np.ndarray, offsets: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of `pack_outliers`: (row int64, col int64, value float16), sorted by row and column.

    Raises GwqError for a table that is not exactly what `pack_outliers` can write.
    """
    rows, cols = shape
    groups, tiles = _grid(rows, cols)
    records = np.asarray(records, np.uint8)
    offsets = np.asarray(offsets, np.int32).astype(np.int64)
    if (
        len(offsets) != groups + 1
        or offsets[0] != 0
        or offsets[-1] != len(records)
        or (np.diff(offsets) < 0).any()
    ):
        raise _damaged("offsets do not ascend from 0 to its end")

    at = offsets[:-1].copy()  # of the next record of each row group
    end = offsets[1:]
    parts = []
    for tile in range(tiles):  # this tile of every row group at once
        if (at + ROWS > end).any():
            raise _damaged("a record is longer than its row group")
        counts = records[at[:, None] + np.arange(ROWS)].astype(np.int64)  # (groups, 16)
        size = ROWS + 3 * counts.sum(1)
        if (at + size > end).any():
            raise _damaged("a record is longer than its row group")
        row, column, value = _unpack_records(records, at, counts)
        parts.append((row, tile * TILE + column, value))
        at += size
    if (at != end).any():
        raise _damaged("records do not fill their row group")

    row, col, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    # columns of a row ascend with the level, and `parts` runs level by level: sorted by row, and
    # stably, they must ascend
    by_row = np.argsort(row, kind="stable")
    row, col, value = row[by_row], col[by_row], value[by_row]
    disorder = (np.diff(row) == 0) & (np.diff(col) <= 0)
    if (row >= rows).any() or (col >= cols).any() or disorder.any():
        raise _damaged("an index is out of range or out of order")
    return row, col, value


def check_outliers(outliers: Outliers, shape: tuple[int, int]) -> None:
    """Raise GwqError unless the side-table is sound and every outlier is finite."""
    _, _, value = unpack_outliers(*outliers, shape)
    if not np.isfinite(value).all():
        raise GwqError("an outlier is not finite; the file is damaged, export it again")


def _unpack_records(
    records: np.ndarray, at: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column within the tile, value) of one record of each row group, in the file's order.

    at: byte of the record, (groups,); counts: its counts, (groups, 16).
    """
    groups = len(counts)
    total = counts.sum(1)
    group = np.repeat(np.arange(groups), total)
    k = np.arange(total.sum()) - np.repeat(_starts(total), total)  # outlier of the record
    # outlier k belongs to the k-th pair (level, row) with counts[row] > level
    each = counts.reshape(-1)
    row = np.repeat(np.tile(np.arange(ROWS), groups), each)
    level = np.arange(len(row)) - np.repeat(_starts(each), each)
    row = row[np.lexsort((row, level, group))]

    value_at = at[group] + ROWS + 2 * k
    column_at = at[group] + ROWS + 2 * total[group] + k
    column = records[column_at].astype(np.int64)
    value_bytes = np.ascontiguousarray(records[value_at[:, None] + np.arange(2)])
    return group * ROWS + row, column, value_bytes.view(np.float16).reshape(-1)


def _damaged(why: str) -> GwqError:
    return GwqError(f"outlier table: {why}; the file is damaged, export it again")
