"""How one matrix is to be stored: its type, its outliers and how its codes are found."""

from dataclasses import dataclass
from math import prod

from gwq_export.format.outliers import outlier_bytes
from gwq_export.format.types import LEVELS, TensorType
from gwq_export.quantization.saliency import SALIENCY

MAX_OUTLIERS = 0.5  # fraction of a matrix; a row of a tile can hold 255 of 256
# What a window stands for. "grid": uniform, as in round-to-nearest. "scalar": non-uniform levels
# without history. "trellis": levels that depend on the neighbour where the type has history. Fitted
# by alternating encoding and least squares on Gaussian weights.
TABLES = {
    "grid": {
        "gwq4": [4 * (c - 8) for c in range(16)],
        "gwq3": [8 * (c - 4) for c in range(8)] * 2,
        "gwq2": [16 * (c - 2) for c in range(4)] * 4,
    },
    "scalar": {
        "gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
        "gwq3": [-31, -19, -11, -4, 1, 8, 15, 26] * 2,
        "gwq2": [-31, -11, 4, 22] * 4,
    },
    "trellis": {
        "gwq4": [-31, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27],
        "gwq3": [-31, -12, -1, 10, -18, -6, 4, 19, -22, -6, 4, 16, -12, -1, 9, 27],
        "gwq2": [-18, -4, 21, 6, -31, -15, 10, -3, -25, -9, 13, 1, -13, 0, 25, 10],
    },
}


@dataclass(frozen=True)
class Recipe:
    """How one matrix is stored, and how its codes are found.

    outliers: fraction kept in FP16, chosen by the rule `saliency`; of ggml types corrected in
    FP16, see `deltas`. table: a row of TABLES. curvature: fit scales under the Fisher matrix (else
    plain least squares; ggml types with levels are then rounded plainly); feedback and sweeps: see
    `encoder.encode`, need curvature.
    """

    type: TensorType
    outliers: float = 0.0
    saliency: str = "loss"
    table: str = "trellis"
    curvature: bool = True
    feedback: bool = True
    sweeps: int = 1
    seed: int = 0

    @property
    def encoded(self):
        """Whether `encoder.encode` finds the codes; else the ggml type's own rounding does."""
        return bool(self.type.bits or (self.type.levels and self.curvature))

    @property
    def statistics(self):
        """Names of the calibration statistics that quantizing by this recipe reads."""
        if not self.encoded:
            return ()
        wanted = SALIENCY[self.saliency].statistics if self.outliers and self.type.bits else ()
        return tuple(dict.fromkeys((*wanted, *(("hessian", "rows") if self.curvature else ()))))

    @property
    def levels(self):
        """(16,) what a window, or a ggml type's code, stands for."""
        return LEVELS.get(self.type.name) or TABLES[self.table][self.type.name]

    def outlier_count(self, shape):
        """Outliers of a tensor of this shape, as many in every matrix: its size follows before any
        weight is read.
        """
        return (
            prod(shape[:-2]) * round(self.outliers * shape[-2] * shape[-1]) if self.encoded else 0
        )

    def tensors(self, name, shape):
        """[(tensor name, TensorType name, shape)] that `quantize` fills, matrix by matrix,
        companions included.
        """
        out = [(name, self.type.name, shape)]
        if count := self.outlier_count(shape[-2:]):
            records, offsets = outlier_bytes(*shape[-2:], count)
            out += [
                (f"{name}.outliers", "i8", (*shape[:-2], records)),
                (f"{name}.outlier_offsets", "i32", (*shape[:-2], offsets)),
            ]
        return out
