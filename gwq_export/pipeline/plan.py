"""Which tensors a file has, and how each is stored."""

import logging
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from gwq_export.arch.layout import Arrangement, arrangement
from gwq_export.arch.parts import TensorRow
from gwq_export.arch.spec import gguf_name
from gwq_export.errors import GwqError
from gwq_export.format.layout import ALIGNMENT
from gwq_export.format.types import BLOCK, TYPES, TensorType, padded_rows, tensor_type
from gwq_export.hf.source import Source
from gwq_export.pipeline.presets import Override
from gwq_export.quantization.recipe import Recipe

log = logging.getLogger("gwq_export")
F32 = tensor_type("f32")
DESCRIPTOR = 24  # bytes of a tensor's descriptor in the header beside its name and dimensions


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file: where it comes from and how it is stored."""

    name: str  # GGUF
    sources: tuple[str, ...]  # Hugging Face: one, or that of every expert
    shape: tuple[int, ...]  # in the file: (rows, columns), (n,) or (experts, rows, columns)
    recipe: Recipe
    linear: bool  # one of the decoder's linear layers
    arrange: Arrangement
    fixed: bool = False  # named by --tensor-type or --exclude: a budget leaves it alone

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of it and its side-table, without descriptors and alignment."""
        tensors = self.recipe.tensors(self.name, self.shape)
        return sum(TYPES[kind].size(shape) for _, kind, shape in tensors)

    @property
    def padding(self) -> float:
        """Bytes of padding as a fraction of what its weights alone take; 0 for a ggml type."""
        type = self.recipe.type
        if not type.bits:
            return 0.0
        rows, cols = self.shape[-2:]
        stored = padded_rows(rows) * type.group_bytes(cols)
        return stored / (rows * cols * type.unit_bytes / BLOCK) - 1

    @property
    def drifts(self) -> bool:
        """Whether it is coded for the inputs that it has in the file (`calibration.drift`).

        Those of experts, whose tokens are others there, are not.
        """
        return self.linear and self.recipe.encoded and self.recipe.drift and len(self.shape) == 2

    @property
    def outliers(self) -> int:
        """How many of its weights stay FP16."""
        return self.recipe.outlier_count(self.shape)


def plan_tensors(
    source: Source, recipe: Recipe, overrides: Sequence[Override] = ()
) -> list[TensorPlan]:
    """The plan of every tensor, in file order.

    recipe: of the decoder's linears. Embedding and head take Q8_0 beside types of codes (F16 where
    32 does not divide the width), else the same type; everything else is F32. overrides: see
    `presets.overrides_of`; they go by GGUF names.

    A matrix takes F16 where a ggml type cannot hold its width; a warning names these.

    Raises GwqError for an override that fits no matrix.
    """
    plans = []
    refused: dict[str, list[str]] = {}  # type -> names of the matrices that it cannot hold
    for tensor in _tensors_of_file(source):
        asked, plan = _plan_tensor(source, recipe, overrides, *tensor)
        plans.append(plan)
        if asked != plan.recipe.type:
            refused.setdefault(asked.name, []).append(plan.name)
    for name, matrices in refused.items():
        log.warning(
            "%s holds widths that are multiples of %d only, so %s stored in f16: %s%s;"
            " gwq6 to gwq2 hold any width",
            name,
            TYPES[name].unit,
            "1 matrix is" if len(matrices) == 1 else f"{len(matrices)} matrices are",
            ", ".join(matrices[:8]),
            ", ..." if matrices[8:] else "",
        )
    for pattern, _, flag in overrides:
        if not any(pattern.search(p.name) for p in plans if len(p.shape) > 1):
            raise GwqError(
                f"{flag} {pattern.pattern}: no matrix has such a name; `gwq-info` lists the names"
            )
    return plans


def _tensors_of_file(source: Source) -> Iterable[tuple[TensorRow, str, list[str], bool]]:
    """(row, GGUF name, Hugging Face names, whether it is a matrix that may be quantized)."""
    embed, *positions = source.arch.first
    yield embed, embed.gguf, [embed.hf], True
    for row in positions:
        yield row, row.gguf, [row.hf], False
    for i in range(source.layers):
        of_block: dict[str, tuple[TensorRow, list[str]]] = {}  # experts share a GGUF name
        for row, hf in source.block(i).items():
            of_block.setdefault(gguf_name(i, row), (row, []))[1].append(hf)
        for name, (row, names) in of_block.items():
            yield row, name, names, row.linear
    for row in source.arch.last:
        yield row, row.gguf, [row.hf], False
    if not source.tied:
        yield embed, "output.weight", [source.arch.head], True


def _plan_tensor(
    source: Source,
    recipe: Recipe,
    overrides: Sequence[Override],
    row: TensorRow,
    name: str,
    sources: list[str],
    matrix: bool,
) -> tuple[TensorType, TensorPlan]:
    """(type that is asked for, the plan)"""
    shape = tuple(source.dims[d] for d in row.shape)
    type = F32
    if matrix:
        type = recipe.type if row.linear else _end_type(recipe.type, shape)
    asked = [o.type for o in overrides if matrix and o.pattern.search(name)]
    if asked:
        type = asked[-1]
    wanted = type
    if type.bits and recipe.type.levels:
        raise GwqError(
            f"{name}: llama.cpp cannot load {type.name} beside {recipe.type.name}: give it a ggml"
            " type"
        )
    if not type.bits and shape[-1] % type.unit:
        type = TYPES["f16"]
    chosen = replace(
        recipe,
        type=type,
        outliers=recipe.outliers if type.bits or type == recipe.type else 0.0,
        seed=zlib.crc32(f"{recipe.seed}/{name}".encode()),
    )
    arrange = arrangement(row, source.arch, source.dims, source.heads)
    fixed = bool(asked) or not matrix
    return wanted, TensorPlan(name, tuple(sources), shape, chosen, row.linear, arrange, fixed)


def _end_type(type: TensorType, shape: tuple[int, ...]) -> TensorType:
    """Type of embedding and head beside decoder linears of `type`."""
    if not (type.bits or type.levels):
        return type
    q8_0 = TYPES["q8_0"]
    return TYPES["f16"] if shape[-1] % q8_0.unit else q8_0


def file_bytes(name: str, shape: tuple[int, ...], recipe: Recipe) -> int:
    """Bytes that a matrix and its side-table take in a file: data up to the alignment, and
    descriptors in the header.
    """
    total = 0
    for part, kind, dims in recipe.tensors(name, shape):
        data = TYPES[kind].size(dims)
        total += -(-data // ALIGNMENT) * ALIGNMENT
        total += DESCRIPTOR + len(part.encode()) + 8 * len(dims)
    return total


def sizes(plans: Sequence[TensorPlan], nbytes: int) -> dict[str, float]:
    """The size fields of the result, for a file of `nbytes` bytes."""
    params = sum(p.weights for p in plans)
    linear = [p for p in plans if p.linear]
    coded = [p for p in plans if p.recipe.encoded]
    outliers = sum(p.outliers for p in coded)
    return {
        "bytes": nbytes,
        "params": params,
        "bpw": 8 * nbytes / params,
        "bpw_linear": 8 * sum(p.stored_bytes for p in linear) / sum(p.weights for p in linear),
        "outlier_fraction": outliers / sum(p.weights for p in coded) if coded else 0.0,
    }
