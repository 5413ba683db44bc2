"""Where the tensors of a GGUF file lie, and which of them are the side-table of another.

Shapes here are numpy's (rows, columns); on disk they are reversed. A matrix of a tile type may have
two companions, its outlier side-table (see `gwq_format.h`). A tensor of shape (experts, rows,
columns) is one matrix after another, its companions (experts, n) likewise.
"""

from __future__ import annotations

from collections.abc import Iterable

from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.header import Description
from gwq_export.format.outliers import outlier_bytes
from gwq_export.format.types import matrices

ALIGNMENT = 64  # of a file with tile types
DEFAULT_ALIGNMENT = 32  # of a file that does not say
OUTLIERS = ".outliers"  # companions of the matrix <name>: <name>.outliers ...
OFFSETS = ".outlier_offsets"
COMPANIONS = (OUTLIERS, OFFSETS)
VERSION_KEY = "gwq.format_version"

Place = tuple[int, int]  # (first byte, bytes)


def padded(n: int, alignment: int) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def is_companion(name: str) -> bool:
    """Whether a tensor of this name is a part of another tensor's side-table."""
    return name.endswith(COMPANIONS)


def layout(tensors: Iterable[Description], alignment: int) -> tuple[list[Place], int]:
    """The place of each tensor in the data section, and the length of the section in bytes.

    Raises GwqError for a type that cannot hold the width of its tensor.
    """
    places = []
    at = 0
    for name, type, shape in tensors:
        with about(f"tensor {name}"):
            size = type.size(shape)
        places.append((at, size))
        at += padded(size, alignment)
    return places, at


def outlier_counts(tensors: Iterable[Description]) -> dict[str, int]:
    """{matrix: outliers} of the tensors that have companions, from shapes alone.

    Raises GwqError for companions that do not fit their matrix.
    """
    by_name = {name: (type, shape) for name, type, shape in tensors}
    bases = {
        name.removesuffix(suffix)
        for suffix in COMPANIONS
        for name in by_name
        if name.endswith(suffix)
    }
    counts = {}
    for base in bases:
        if base not in by_name or not (by_name[base][0].bits or by_name[base][0].levels):
            raise GwqError(f"a side-table belongs to {base}, which is no tile tensor here: {AGAIN}")
        if base + OUTLIERS not in by_name or base + OFFSETS not in by_name:
            raise GwqError(
                f"tensor {base} has one of {OUTLIERS} and {OFFSETS} without the other: {AGAIN}"
            )
        _, whole = by_name[base]
        records_type, records = by_name[base + OUTLIERS]
        offsets_type, offsets = by_name[base + OFFSETS]
        count, rows, cols = matrices(whole)
        empty, entries = outlier_bytes(rows, cols, 0)
        each, rest = divmod(records[-1] - empty, 3)  # every matrix of a tensor has as many
        fits = (
            records[:-1] == offsets[:-1] == whole[:-2]
            and offsets[-1] == entries
            and rest == 0 <= each <= rows * cols
        )
        if not fits or (records_type.name, offsets_type.name) != ("i8", "i32"):
            raise GwqError(
                f"the side-table of tensor {base} does not fit its "
                f"{' x '.join(map(str, whole))} weights: {AGAIN}"
            )
        counts[base] = count * each
    return counts
