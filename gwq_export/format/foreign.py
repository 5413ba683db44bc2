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

from gwq_export.errors import AGAIN, GwqError
from gwq_export.format.header import GGML_NAMES
from gwq_export.format.reader import Reader
from gwq_export.format.tensor import Tensor
from gwq_export.format.types import TYPES, TensorType

ROWS = 1024  # decoded at once


def _gguf() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as e:
        raise GwqError(
            f'a file with ggml tensor types needs {e.name}: pip install "gwq-export[export]"'
        ) from None
    return gguf


def foreign_type(id: int) -> TensorType | None:
    """The TensorType of a ggml type id, None for one that gguf-py cannot decode.

    Raises GwqError without gguf-py.
    """
    if str(id) not in GGML_NAMES:
        return None
    gguf = _gguf()
    try:
        ggml_type = gguf.GGMLQuantizationType(id)
        unit, unit_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        gguf.quants.dequantize(np.zeros((1, unit_bytes), np.uint8), ggml_type)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return TensorType(ggml_type.name.lower(), id, unit, unit_bytes)


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


def open_any(path: str | os.PathLike[str], base: bool = False) -> Reader:
    """A Reader of `path` whose tensors all have types of TYPES: f32 in place of any other.

    Offsets and sizes are checked like those of any file. Tensors of known types stay in the map.
    base: as for Reader. Raises GwqError.
    """
    reader = Reader(path, foreign_type, base)
    try:
        reader.tensors = {
            name: tensor if tensor.type.name in TYPES else as_float32(tensor)
            for name, tensor in reader.tensors.items()
        }
    except GwqError as e:
        raise GwqError(f"{reader.path}: {e}") from None
    return reader
