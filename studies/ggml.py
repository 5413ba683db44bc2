"""llama.cpp's own quantizers, through ctypes on the library that tools/build_ggml makes.

    ggml.fake_quantize("q4_k", weight, importance)   what a ggml file of that type decodes to
    ggml.importance(model, tokens)                   what llama.cpp's imatrix holds, for every
                                                     linear layer of the decoder

For developers: nothing of this, nor of llama.cpp, is part of the package.
"""

import atexit
import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from gwq_export import GwqError

TYPES = {  # name -> ggml's id
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq2_xxs": 16,
    "iq2_xs": 17,
    "iq3_xxs": 18,
    "iq1_s": 19,
    "iq4_nl": 20,
    "iq3_s": 21,
    "iq2_s": 22,
    "iq4_xs": 23,
    "iq1_m": 29,
}

_F32 = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
_U8 = np.ctypeslib.ndpointer(np.uint8, flags="C_CONTIGUOUS")
_DEQUANTIZE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """ggml's public struct ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),  # weights
        ("interleave", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),  # of a block
        ("quantized", ctypes.c_bool),
        ("to_float", _DEQUANTIZE),
        ("from_float_ref", ctypes.c_void_p),
    )


def library_path():
    """Where tools/build_ggml puts the library."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GWQ_PEER_DIR") or cache / "gwq-export" / "ggml") / "libggml-base.so"


@functools.cache
def _lib():
    path = library_path()
    if not path.exists():
        raise GwqError(f"{path} is not there: run tools/build_ggml")
    lib = ctypes.CDLL(str(path))
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    lib.ggml_quantize_init.restype = lib.ggml_quantize_free.restype = None
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        _F32,
        _U8,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    atexit.register(lib.ggml_quantize_free)
    return lib


@functools.cache
def _traits(name):
    """(id, traits) of a type, whose name is checked against the library's own."""
    id = TYPES.get(name.lower())
    if id is None:
        raise GwqError(f"{name} is no ggml type here; there are {', '.join(TYPES)}")
    traits = _lib().ggml_get_type_traits(id).contents
    if traits.name.decode().lower() != name.lower():
        raise GwqError(
            f"{library_path()} calls type {id} {traits.name.decode()}, not {name}: "
            "remove it and run tools/build_ggml"
        )
    return id, traits


def bpw(name):
    """Bits per weight where the type's block divides the width."""
    _, traits = _traits(name)
    return 8 * traits.bytes / traits.block


def fits(name, cols):
    """Whether the type can hold rows of `cols` weights; blocks of 32 are padded."""
    _, traits = _traits(name)
    return traits.block <= 32 or cols % traits.block == 0


def nbytes(name, rows, cols):
    """Bytes of a matrix with rows padded to whole blocks.

    Raises GwqError for a width that the type cannot hold.
    """
    _, traits = _traits(name)
    if not fits(name, cols):
        raise GwqError(
            f"{name}: rows of {cols} weights are not whole blocks of {traits.block}; "
            "llama.cpp falls back to another type"
        )
    return rows * -(-cols // traits.block) * traits.bytes


def quantize(name, weight, importance=None):
    """uint8 (rows, bytes per row), as a ggml file holds it; blocks of 32 are zero-padded.

    weight: float32 (rows, cols). importance: (cols,), how much an error in a column counts, or
    None. Raises GwqError for what the type cannot hold.
    """
    id, traits = _traits(name)
    rows, cols = weight.shape
    out = np.empty((rows, nbytes(name, rows, cols) // rows), np.uint8)
    padding = -cols % traits.block
    weight = np.ascontiguousarray(np.pad(weight, [(0, 0), (0, padding)]), np.float32)
    if not np.isfinite(weight).all():
        raise GwqError(f"{name}: the weights hold NaN or infinity")
    if importance is None and _lib().ggml_quantize_requires_imatrix(id):
        raise GwqError(f"{name} cannot be made without an importance vector")
    if importance is not None:
        right_shape = np.shape(importance) == (cols,)
        if not right_shape or not np.isfinite(importance).all() or np.min(importance) < 0:
            raise GwqError(f"{name}: the importance must be {cols} finite numbers, none negative")
        importance = np.ascontiguousarray(np.pad(importance, (0, padding)), np.float32)
    _lib().ggml_quantize_init(id)
    pointer = None if importance is None else importance.ctypes.data
    written = _lib().ggml_quantize_chunk(
        id, weight, out.reshape(-1), 0, rows, cols + padding, pointer
    )
    assert written == out.nbytes
    return out


def dequantize(name, data, cols):
    """float32 (rows, cols) of uint8 (rows, bytes per row)."""
    _, traits = _traits(name)
    data = np.ascontiguousarray(data)
    padded = data.shape[1] // traits.bytes * traits.block
    out = np.empty((len(data), padded), np.float32)
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out[:, :cols]


def fake_quantize(name, weight, importance=None):
    """float32 (rows, cols): `weight` there and back. Arguments as for `quantize`."""
    return dequantize(name, quantize(name, weight, importance), weight.shape[1])


def importance(model, tokens):
    """{weight: float32 (inputs,)}: mean squared input of every linear layer but the output head.

    model: of transformers. tokens: integers (samples, ctx); each row is one pass, as llama.cpp's
    imatrix takes its chunks.
    """
    import torch

    tokens = torch.as_tensor(tokens)
    head = model.get_output_embeddings()
    sums = {}
    hooks = []

    def watch(name):
        def hook(module, inputs):
            sums[name] = sums.get(name, 0) + inputs[0].double().square().flatten(0, -2).sum(0)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            hooks.append(module.register_forward_pre_hook(watch(f"{name}.weight")))
    try:
        with torch.no_grad():
            for ids in tokens:
                model.base_model(input_ids=ids[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / tokens.numel()).float().numpy() for name, total in sums.items()}


def write_gguf(source, out, types, importance=None, encode=quantize):
    """Write the F32 or F16 GGUF file `source` again, with some matrices in ggml types.

    types: {GGUF tensor name: ggml type}. importance: {GGUF tensor name: (cols,) or None}.
    encode: (type, weight, importance) -> bytes, as `quantize`. Any engine that reads GGUF runs the
    result. Needs the gguf package.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name == "general.alignment":
            writer.add_custom_alignment(field.contents())
        elif not field.name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            item_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], item_type)
    for tensor in reader.tensors:
        type = types.get(tensor.name)
        if type is None:
            writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data))
        else:
            raw = encode(type, tensor.data, (importance or {}).get(tensor.name))
            kind = gguf.GGMLQuantizationType(TYPES[type])
            writer.add_tensor(tensor.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
