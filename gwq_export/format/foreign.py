"""Any ordinary GGUF file as a model: tensors of types that the runtime lacks become float32.

For evaluation only: it compares our types with llama.cpp's (Q4_0, Q4_K, IQ4_NL, ...) through one
forward function, with the KV cache in float32 for every file, so that files differ by their weights
alone. Such tensors take 4 bytes per weight of memory, and computing with them says nothing about
their speed. The values are those that gguf-py decodes (package `gguf`, in the export extra).
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import ModuleType

import numpy as np

from gwq_export.errors import AGAIN, GwqError, about, not_imported
from gwq_export.format.header import GGML_TYPES
from gwq_export.format.reader import Reader
from gwq_export.format.tensor import Tensor
from gwq_export.format.types import TYPES, TensorType

ROWS = 1024  # decoded at once


def _gguf() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as e:
        raise not_imported(e, "a file with ggml tensor types", "export") from None
    return gguf


def foreign_type(id: int) -> TensorType | None:
    """The TensorType of a ggml type id that gguf-py decodes, None for an unknown id.

    Raises GwqError without gguf-py, and for a type that it does not decode.
    """
    if id not in GGML_TYPES:
        return None
    type = GGML_TYPES[id]
    gguf = _gguf()
    try:
        block = np.zeros((1, type.unit_bytes), np.uint8)
        gguf.quants.dequantize(block, gguf.GGMLQuantizationType(id))
    except (ValueError, KeyError, NotImplementedError):
        raise GwqError(
            f"its ggml type {type.name} ({id}) is llama.cpp's, and the installed gguf-py does not "
            "decode it: write the file again with `llama-quantize --allow-requantize FILE.gguf "
            "NEW.gguf F16`, or update the package gguf"
        ) from None
    return type


def as_float32(tensor: Tensor) -> Tensor:
    """The same tensor as an F32 one, its data in memory.

    Raises GwqError for a value that is not finite.
    """
    gguf = _gguf()
    ggml_type = gguf.GGMLQuantizationType(tensor.type.id)
    cols = tensor.shape[-1]
    data = tensor.data.reshape(-1, tensor.type.nbytes(1, cols))
    out = np.empty((len(data), cols), np.float32)
    for first in range(0, len(data), ROWS):
        part = slice(first, first + ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            out[part] = gguf.quants.dequantize(data[part], ggml_type)
        if not np.isfinite(out[part]).all():
            raise GwqError(f"tensor {tensor.name}: a value is not finite: {AGAIN}")
    return replace(
        tensor, type=TYPES["f32"], data=out.reshape(-1).view(np.uint8), nbytes=out.nbytes
    )


def check_foreign(reader: Reader) -> None:
    """Decode every tensor of a type that is not in TYPES, one at a time.

    Raises GwqError for a value that is not finite.
    """
    for tensor in reader.tensors.values():
        if tensor.type.name not in TYPES:
            with about(tensor.path):
                as_float32(tensor)


def open_any(path: str | os.PathLike[str], base: bool = False) -> Reader:
    """A Reader of `path` whose tensors all have types of TYPES: f32 in place of any other.

    Offsets and sizes are checked like those of any file. Tensors of known types stay in the map.
    base: as for Reader. Raises GwqError.
    """
    reader = Reader(path, foreign_type, base)
    with about(reader.path):
        reader.tensors = {
            name: tensor if tensor.type.name in TYPES else as_float32(tensor)
            for name, tensor in reader.tensors.items()
        }
    return reader
