"""How one matrix is to be stored: its type, its outliers and how its codes are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gwq_export.format.outliers import outlier_bytes
from gwq_export.format.types import LEVELS, TensorType
from gwq_export.quantization.saliency import SALIENCY

MAX_OUTLIERS = 0.5  # fraction of a matrix; a row of a tile can hold 255 of 256
# Tables by window, the four bits that a code and its neighbour's bits make up, in units of a
# sub-block's scale (of gwq5 the negative half, of gwq6 nothing: see `decoding.levels`). "grid":
# uniform, as in round-to-nearest. "scalar": non-uniform levels that depend on the code alone.
# "trellis": levels that depend on the neighbour, too, where the type has such bits. The last two
# were fitted by alternating encoding and least squares: the trellis tables of gwq2 and gwq3 to rows
# of the seven linear layers of one block of SmolLM2-135M-Instruct (by studies/byte_order), the
# others to Gaussian weights; gwq5's by coordinate descent on the squared error after encoding them.
TABLES = {
    "grid": {
        "gwq6": [0] * 16,
        "gwq5": [2 * c - 31 for c in range(16)],
        "gwq4": [4 * (c - 8) for c in range(16)],
        "gwq3": [8 * (c - 4) for c in range(8)] * 2,
        "gwq2": [16 * (c - 2) for c in range(4)] * 4,
    },
    "scalar": {
        "gwq6": [0] * 16,
        "gwq5": [-32, -29, -26, -23, -21, -19, -17, -15, -13, -11, -9, -7, -6, -4, -2, -1],
        "gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
        "gwq3": [-31, -19, -11, -4, 1, 8, 15, 26] * 2,
        "gwq2": [-31, -11, 4, 22] * 4,
    },
    "trellis": {
        "gwq6": [0] * 16,
        "gwq5": [-32, -29, -26, -23, -21, -19, -17, -15, -13, -11, -9, -7, -6, -4, -2, -1],
        "gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
        "gwq3": [-30, -17, -10, -5, -1, 4, 10, 19, -21, -12, -6, -1, 4, 9, 15, 27],
        "gwq2": [10, 31, -1, -13, 5, -19, 20, -5, -29, -8, 11, 1, -4, 17, -16, 5],
    },
}


@dataclass(frozen=True)
class Recipe:
    """How one matrix is stored, and how its codes are found.

    type: a tile type or a ggml type. outliers: fraction of the weights kept in FP16; of a ggml type
    with levels, the fraction that is corrected in FP16 (see `deltas`). saliency: the rule of
    SALIENCY that chooses outliers. table: a row of TABLES. curvature: find codes and scales under
    the Fisher factors, else by plain least squares (ggml types with levels are then rounded as ggml
    does). feedback, sweeps: see `encoder.encode`; they need curvature. outputs: rows have feedback
    from rows, too. drift: codes are found for the inputs that the matrix has in the file, where
    those are known (`calibration.drift`). seed: of rules that draw at random.
    """

    type: TensorType
    outliers: float = 0.0
    saliency: str = "loss"
    table: str = "trellis"
    curvature: bool = True
    feedback: bool = True
    outputs: bool = False
    drift: bool = False
    sweeps: int = 1
    seed: int = 0

    @property
    def encoded(self) -> bool:
        """Whether `encoder.encode` finds the codes; else the ggml type's own rounding does."""
        return bool(self.type.bits or (self.type.levels and self.curvature))

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the calibration statistics that quantizing by this recipe reads."""
        if not self.encoded:
            return ()
        names: list[str] = []
        if self.outliers and self.type.bits:
            names += SALIENCY[self.saliency].statistics
        if self.curvature:
            names += ("hessian", "rows")
            names += ("outputs",) if self.feedback and self.outputs else ()
        return tuple(dict.fromkeys(names))

    @property
    def levels(self) -> Sequence[int]:
        """What each of the 16 windows of a tile type, or codes of a ggml type, stands for."""
        return LEVELS.get(self.type.name) or TABLES[self.table][self.type.name]

    def outlier_count(self, shape: tuple[int, ...]) -> int:
        """Outliers of a tensor of this shape, the same number in each of its matrices.

        The number, and with it the size in the file, is known before any weight is read.
        """
        if not self.encoded:
            return 0
        return prod(shape[:-2]) * round(self.outliers * shape[-2] * shape[-1])

    def tensors(self, name: str, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
        """What `quantize` fills for a tensor, matrix by matrix: the tensor and its side-table.

        Returns [(tensor name, type name, shape)].
        """
        out = [(name, self.type.name, shape)]
        if count := self.outlier_count(shape[-2:]):
            rows, cols = shape[-2:]
            records, offsets = outlier_bytes(rows, cols, count)
            out += [
                (f"{name}.outliers", "i8", (*shape[:-2], records)),
                (f"{name}.outlier_offsets", "i32", (*shape[:-2], offsets)),
            ]
        return out
