"""Which tensors a file has, and how each is stored."""

import zlib
from dataclasses import dataclass, replace
from math import prod

from gwq_export.arch.layout import Arrangement, arrangement
from gwq_export.arch.spec import gguf_name
from gwq_export.errors import GwqError
from gwq_export.format.layout import ALIGNMENT
from gwq_export.format.types import TYPES, tensor_type


@dataclass(frozen=True)
class TensorPlan:
    """One weight of the plan: where it comes from and how it is stored."""

    name: str  # GGUF
    sources: tuple  # Hugging Face: one, or that of every expert
    shape: tuple  # in the file: (rows, columns), (n,) or (experts, rows, columns)
    recipe: object
    linear: bool  # a decoder linear
    arrange: Arrangement
    fixed: bool = False  # named by --tensor-type or --exclude: a budget leaves it alone


def plan(source, recipe, overrides=()):
    """Entries in file order. `recipe` is for the decoder's linears; overrides: those of
    `overrides_of`, on GGUF names.

    Embedding and head take Q8_0 beside types of codes (F16 where 32 does not divide the width),
    else the same type.
    """
    f32, entries = tensor_type("f32"), []

    def add(row, name, sources, matrix):
        shape = tuple(source.dims[d] for d in row.shape)
        kind, fixed = (
            recipe.type if row.linear else _end_type(recipe.type, shape) if matrix else f32,
            not matrix,
        )
        if matrix:
            for override in overrides:
                if override.pattern.search(name):
                    kind, fixed = override.type, True
        if kind.bits and recipe.type.levels:
            raise GwqError(
                f"{name}: llama.cpp cannot load {kind.name} beside {recipe.type.name}: give it a ggml type"
            )
        kind.size(shape)  # refuses a width the type cannot hold
        seed = zlib.crc32(f"{recipe.seed}/{name}".encode())
        outliers = recipe.outliers if kind.bits or kind == recipe.type else 0.0
        chosen = replace(recipe, type=kind, outliers=outliers, seed=seed)
        arrange = arrangement(row, source.arch, source.dims, source.heads)
        entries.append(TensorPlan(name, tuple(sources), shape, chosen, row.linear, arrange, fixed))

    embed, *positions = source.arch.first
    add(embed, embed.gguf, [embed.hf], True)
    for row in positions:
        add(row, row.gguf, [row.hf], False)
    for i in range(source.layers):
        named = {}  # GGUF name -> (row, Hugging Face names: one, or that of every expert)
        for row, hf in source.block(i).items():
            named.setdefault(gguf_name(i, row), (row, []))[1].append(hf)
        for name, (row, sources) in named.items():
            add(row, name, sources, row.linear)
    for row in source.arch.last:
        add(row, row.gguf, [row.hf], False)
    if not source.tied:
        add(embed, "output.weight", [source.arch.head], True)
    for pattern, _, flag in overrides:
        if not any(pattern.search(e.name) for e in entries if len(e.shape) > 1):
            raise GwqError(
                f"{flag} {pattern.pattern}: no matrix has such a name; `gwq-info` lists the names"
            )
    return entries


def _end_type(type, shape):
    if not (type.bits or type.levels):
        return type
    return tensor_type("f16" if shape[-1] % TYPES["q8_0"].unit else "q8_0")


def file_bytes(name, shape, recipe):
    """Bytes that the tensors of a matrix take in a file, with their descriptions in the header and
    up to the alignment.
    """
    total = 0
    for part, kind, dims in recipe.tensors(name, shape):
        total += (
            -(-TYPES[kind].size(dims) // ALIGNMENT) * ALIGNMENT
            + 24
            + len(part.encode())
            + 8 * len(dims)
        )
    return total


def weights(entry):
    return prod(entry.shape)


def sizes(entries, nbytes):
    """The size fields of the result."""
    params = sum(map(weights, entries))
    linear = [e for e in entries if e.linear]
    stored = sum(stored_bytes(e) for e in linear)
    tiles = [e for e in entries if e.recipe.encoded]
    kept = sum(e.recipe.outlier_count(e.shape) for e in tiles)
    return {
        "bytes": nbytes,
        "params": params,
        "bpw": 8 * nbytes / params,
        "bpw_linear": 8 * stored / sum(map(weights, linear)),
        "outlier_fraction": kept / sum(map(weights, tiles)) if tiles else 0.0,
    }


def stored_bytes(entry):
    return sum(
        TYPES[kind].size(shape) for _, kind, shape in entry.recipe.tensors(entry.name, entry.shape)
    )
