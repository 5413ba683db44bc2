"""Ordinary GGUF files as other tools write them, by gguf-py, and what gguf-py decodes them to."""

from types import SimpleNamespace

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

# every tensor of a block with another type: some that gguf-py can encode, some made of random
# blocks
MIXED = {
    "attn_q": Q.Q4_0,
    "attn_k": Q.Q5_0,
    "attn_v": Q.Q8_0,
    "attn_output": Q.Q4_K,
    "ffn_gate": Q.Q6_K,
    "ffn_up": Q.IQ4_NL,
    "ffn_down": Q.Q5_1,
    "token_embd": Q.Q8_0,
    "output": Q.Q4_1,
}
# (byte, value) of a block's FP16 scales
SCALES = {Q.Q4_K: ((0, 2e-4), (2, 2e-3)), Q.Q6_K: ((208, 1e-4),), Q.IQ4_NL: ((0, 2e-3),)}


def encode(weight, type):
    """Bytes uint8 (rows, bytes per row) of float32 (rows, cols).

    They are those of a random matrix where gguf-py cannot encode the type.
    """
    if type not in SCALES:
        return gguf.quants.quantize(weight, type)
    unit, size = gguf.GGML_QUANT_SIZES[type]
    blocks = np.random.default_rng(1).integers(0, 256, (weight.size // unit, size), np.uint8)
    for at, value in SCALES[type]:
        blocks[:, at : at + 2] = np.float16(value).reshape(1).view(np.uint8)
    return blocks.reshape(len(weight), -1)


def rewrite(source, out, types, keys=None, tamper=lambda name, data: data):
    """Write the F32 file `source` again, without its gwq.* keys.

    types: {name after "blk.N.": type} of the matrices to encode. keys: {name: value} to replace.
    tamper: (name, bytes or array) -> what to write instead.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "gwq.", "general.architecture", "general.alignment")):
            value = (keys or {}).get(name, field.contents())
            writer.add_key_value(
                name,
                value,
                field.types[0],
                sub_type=field.types[-1] if len(field.types) > 1 else None,
            )
    for t in reader.tensors:
        type = types.get(t.name.split(".")[-2])
        weight = t.data.reshape(*t.shape[::-1])
        if type is None or not t.name.endswith("weight"):
            writer.add_tensor(t.name, tamper(t.name, weight.copy()))
        else:
            writer.add_tensor(t.name, tamper(t.name, encode(weight, type)), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def decoded(path):
    """An object with `.tensors[name].dequantize()`, as a Reader, decoded by gguf-py alone."""
    tensors = {}
    for t in gguf.GGUFReader(path).tensors:
        weight = gguf.quants.dequantize(t.data, t.tensor_type).reshape(*t.shape[::-1])
        tensors[t.name] = SimpleNamespace(dequantize=lambda weight=weight: weight)
    return SimpleNamespace(tensors=tensors)
