"""Where the tensors of a GGUF file lie, and which of them are the side-table of another.

Shapes here are numpy's (rows, columns); on disk they are reversed. A matrix of a tile type may have
two companions, its outlier side-table (see `gwq_format.h`). A tensor of shape (experts, rows,
columns) is one matrix after another, its companions (experts, n) likewise.
"""

from gwq_export.errors import AGAIN, GwqError, about
from gwq_export.format.outliers import outlier_bytes
from gwq_export.format.types import matrices

ALIGNMENT, DEFAULT_ALIGNMENT = 64, 32  # of a file with tile types; of a file that does not say
OUTLIERS, OFFSETS = ".outliers", ".outlier_offsets"  # companions of the matrix <name>
VERSION_KEY = "gwq.format_version"


def _pad(n, alignment):
    return -(-n // alignment) * alignment


def layout(tensors, alignment):
    """[(offset in the data section, bytes)] of [(name, type, shape)], and the length of the
    section.
    """
    at, places = 0, []
    for name, type, shape in tensors:
        with about(f"tensor {name}"):
            places.append((at, type.size(shape)))
        at += _pad(places[-1][1], alignment)
    return places, at


def outlier_counts(tensors):
    """{matrix: outliers} of [(name, type, shape)], from shapes alone.

    Raises GwqError for a bad companion.
    """
    by_name = {name: (type, shape) for name, type, shape in tensors}
    counts = {}
    for base in {n.removesuffix(s) for s in (OUTLIERS, OFFSETS) for n in by_name if n.endswith(s)}:
        if base not in by_name or not (by_name[base][0].bits or by_name[base][0].levels):
            raise GwqError(f"a side-table belongs to {base}, which is no tile tensor here: {AGAIN}")
        if base + OUTLIERS not in by_name or base + OFFSETS not in by_name:
            raise GwqError(
                f"tensor {base} has one of {OUTLIERS} and {OFFSETS} without the other: {AGAIN}"
            )
        whole = by_name[base][1]
        (type, shape), (offsets_type, offsets) = by_name[base + OUTLIERS], by_name[base + OFFSETS]
        count, rows, cols = matrices(whole)
        smallest, entries = outlier_bytes(rows, cols, 0)
        each, rest = divmod(shape[-1] - smallest, 3)  # every matrix of a tensor has as many
        fits = (
            shape[:-1] == offsets[:-1] == whole[:-2]
            and offsets[-1] == entries
            and rest == 0 <= each <= rows * cols
        )
        if not fits or (type.name, offsets_type.name) != ("i8", "i32"):
            raise GwqError(
                f"the side-table of tensor {base} does not fit its {' x '.join(map(str, whole))} weights: {AGAIN}"
            )
        counts[base] = count * each
    return counts
