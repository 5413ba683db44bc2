"""A float reference of a model that is at hand only as a quantized GGUF file.

    real_reference.write(source, out, seed)

Decoded weights lie on the grid of their type, and a quantizer that finds the grid again loses
nothing: types would be compared by how alike their grids are. So uniform noise of half a step to
either side is added to every weight of a quantized matrix, which is where rounding took it from.
Norms, biases, the embedding and what is stored as floats stay as they are. The result is a little
damaged, and real.
"""

import zlib
from dataclasses import replace

import numpy as np

from gwq_export import GwqError
from gwq_export.format.foreign import as_float32, foreign_type
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer

# F16 rounds to 1/2048 of a weight, far below a step; what quantizers and the evaluation see is the
# rounded value, so nothing is lost between them.
STORED = "f16"
# general.file_type: mostly F16
FILE_TYPE = np.uint32(1)
# keys that say how the source was made or stored
DROPPED = ("general.alignment", "general.quantization_version", "quantize.", "split.")
EMBEDDING = "token_embd.weight"
FLOATS = ("f32", "f16", "bf16")
# type -> (first byte of a block's codes, the byte behind them, steps from all bits 0 to all bits 1)
CODES = {
    "q4_0": (2, 18, 15),
    "q4_1": (4, 20, 15),
    "q5_0": (2, 22, 31),
    "q5_1": (4, 24, 31),
    "q8_0": (2, 34, 1),  # two's complement: from 0 to -1
    "q2_k": (16, 80, 3),
    "q3_k": (0, 96, 7),
    "q4_k": (16, 144, 15),
    "q5_k": (16, 176, 31),
    "q6_k": (0, 192, 63),
    "iq4_nl": (2, 18, 15),  # unequal steps: their mean
    "iq4_xs": (8, 136, 15),
}


def decoded(tensor):
    """float32 array of a tensor's shape."""
    return (tensor if tensor.type.name in TYPES else as_float32(tensor)).dequantize()


def steps(tensor):
    """float32 array of a tensor's shape: the distance of neighbouring levels at each weight.

    A block is decoded with all bits of its codes 0 and with all bits 1; between the two lie all
    steps of its scale. Raises GwqError for a type whose codes are not known here.
    """
    name = tensor.type.name
    if name not in CODES:
        raise GwqError(
            f"tensor {tensor.name}: the step of type {name} is not known: "
            f"give a file of {', '.join((*CODES, *FLOATS))}"
        )
    first, end, count = CODES[name]
    ends = []
    for bits in (0x00, 0xFF):
        data = tensor.data.reshape(-1, tensor.type.unit_bytes).copy()
        data[:, first:end] = bits
        ends.append(decoded(replace(tensor, data=data.reshape(-1))))
    return np.abs(ends[1] - ends[0]) / count


def blurred(tensor, seed):
    """`decoded`, and half a step of uniform noise to either side where `tensor` is quantized.

    The noise of a tensor depends on the seed and its name alone.
    """
    weight = decoded(tensor)
    if len(tensor.shape) < 2 or tensor.name == EMBEDDING or tensor.type.name in FLOATS:
        return weight
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    return weight + steps(tensor) * (rng.random(weight.shape, np.float32) - np.float32(0.5))


def write(source, out, seed=0):
    """Write the float reference of the GGUF file `source` to the GGUF file `out`.

    source: the first part of a split model stands for all. Matrices of `out` are F16, all else is
    F32. Returns {type: matrices of that type} of the source. Raises GwqError for a file that cannot
    be read, or a type whose step is not known.
    """
    reader = Reader(source, foreign_type)
    layout = [
        (t.name, TYPES[STORED if len(t.shape) > 1 else "f32"], t.shape)
        for t in reader.tensors.values()
    ]
    keys = {key: reader.metadata[key] for key in reader.metadata if not key.startswith(DROPPED)}
    types = {}
    with Writer(out, keys | {"general.file_type": FILE_TYPE}, layout) as writer:
        for name, type, _ in layout:
            tensor = reader.tensors[name]
            if len(tensor.shape) > 1:
                types[tensor.type.name] = types.get(tensor.type.name, 0) + 1
            writer.write(name, encode_ggml(type, blurred(tensor, seed)))
    return types
