"""Any ordinary GGUF file as a model: tensor types that the runtime does not compute with become
float32 when it is opened.

For evaluation only: it compares our types with llama.cpp's (Q4_0, Q4_K, IQ4_NL, ...) through one
forward function, with the KV cache in float32 for every file, so that files differ by their weights
alone. Such tensors take 4 bytes per weight of memory, and computing with them says nothing about
their speed. The values are those that gguf-py decodes (package `gguf`, in the export extra).
"""

from dataclasses import replace

import numpy as np

from gwq_export.errors import AGAIN, GwqError
from gwq_export.format.header import GGML_NAMES
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES, TensorType

ROWS = 1024  # decoded at once


def _gguf():
    try:
        import gguf
        import gguf.quants
    except ImportError as e:
        raise GwqError(
            f'a file with ggml tensor types needs {e.name}: pip install "gwq-export[export]"'
        ) from None
    return gguf


def foreign_type(id):
    """The TensorType of a ggml type id, None for one that gguf-py cannot decode.

    Raises GwqError without gguf-py.
    """
    if str(id) not in GGML_NAMES:
        return None
    gguf = _gguf()
    try:
        kind = gguf.GGMLQuantizationType(id)
        unit, unit_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, unit_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return TensorType(kind.name.lower(), id, unit, unit_bytes)


def as_float32(tensor):
    """The same tensor as an F32 one, its data in memory.

    Raises GwqError for a value that is not finite.
    """
    kind = _gguf().GGMLQuantizationType(tensor.type.id)
    data = tensor.data.reshape(-1, tensor.type.nbytes(1, tensor.shape[-1]))
    out = np.empty((len(data), tensor.shape[-1]), np.float32)
    for first in range(0, len(data), ROWS):
        with np.errstate(over="ignore", invalid="ignore"):
            out[first : first + ROWS] = _gguf().quants.dequantize(data[first : first + ROWS], kind)
        if not np.isfinite(out[first : first + ROWS]).all():
            raise GwqError(f"tensor {tensor.name}: a value is not finite: {AGAIN}")
    return replace(
        tensor, type=TYPES["f32"], data=out.reshape(-1).view(np.uint8), nbytes=out.nbytes
    )


def open_any(path, base=False):
    """A Reader of `path` whose tensors all have types of this package: f32 where the file has
    another ggml type.

    Offsets and sizes are checked like those of any file. Tensors of known types stay in the map.
    Raises GwqError.
    """
    reader = Reader(path, foreign_type, base)
    try:
        known = {
            name: t if t.type.name in TYPES else as_float32(t) for name, t in reader.tensors.items()
        }
    except GwqError as e:
        raise GwqError(f"{reader.path}: {e}") from None
    reader.tensors = known
    return reader
