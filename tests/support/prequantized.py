"""Folders of quantized models, beside the plain model that they stand for."""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gwq_export.hf.shards import matrices
from gwq_export.hf.source import Source

WEIGHTS = "model.safetensors"
MATRICES = ("_proj.weight", "_linear.weight")  # endings of what gets quantized
MATRIX = "model.layers.1.mlp.up_proj"  # that tests damage


def is_matrix(name, tensor):
    """Whether a quantizer takes a tensor: the linear layers of the blocks."""
    return name.endswith(MATRICES) and ".layers." in name and tensor.dim() == 2


def replaced(ending, change):
    """A change of {name: tensor}: the tensor of MATRIX with this ending becomes change(it)."""
    name = f"{MATRIX}.{ending}"
    return lambda tensors: tensors.update({name: change(tensors[name])})


def decoded_by_compressed_tensors(folder, config, plain):
    """Logits of transformers, which loads a copy at `plain` of a folder with that library."""
    from tests.support.folders import expected_logits

    shutil.copytree(folder, plain)
    change_config(plain, quantization_config=config | {"dequantize": True})
    return expected_logits(plain)


def quantized(model, folder, encode, config):
    """A copy of the folder `model` in which every matrix is what encode(matrix) makes of it.

    encode: a float32 matrix -> ({ending: tensor}, the float32 matrix that these stand for); or
    None for a matrix that stays plain. config: the quantization_config. Returns the folder, and
    {name: float32 tensor} of the model that it stands for.
    """
    shutil.copytree(model, folder)
    stored, meant = {}, {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        made = encode(tensor.float()) if is_matrix(name, tensor) else None
        if made is None:
            stored[name], meant[name] = tensor, tensor.float()
            continue
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{ending}": t.contiguous() for ending, t in made[0].items()}
        meant[name] = made[1]
    save_file(stored, folder / WEIGHTS, {"format": "pt"})
    change_config(folder, quantization_config=config)
    return folder, meant


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_tensors(folder, change):
    """change: takes {name: tensor} of the folder's weights, and changes them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def stands_for(folder, meant):
    """The source has exactly the tensors of `meant`, with their values."""
    source = Source(folder)
    for name, tensor in meant.items():
        for own, shape, part in matrices(source.arch, name, tuple(tensor.shape)):
            assert source.shape(own) == shape
            torch.testing.assert_close(source.tensor(own), tensor[part], rtol=1e-6, atol=1e-7)
    return source


def logits_agree(folder, expected, tolerance):
    """Logits of an export as F32 are those of a reference, relative to the largest."""
    from tests.support.folders import exported_logits

    error = np.abs(exported_logits(folder) - expected).max() / np.abs(expected).max()
    assert error < tolerance


def packed(numbers, bits):
    """(n, count) integers -> int32 (n, words): number i lies at bit i x bits of its row."""
    n, count = numbers.shape
    places = torch.zeros(n, -(-count * bits // 32) * 32, dtype=torch.long)
    places[:, : count * bits] = (numbers[:, :, None] >> torch.arange(bits) & 1).flatten(1)
    words = (places.unflatten(1, (-1, 32)) << torch.arange(32)).sum(2)
    return words.to(torch.uint32).view(torch.int32)


def in_groups(weight, bits, size, order=None, symmetric=False):
    """(codes (rows, cols), zero points and scales (rows, groups), group of each column)."""
    rows, cols = weight.shape
    size = cols if size == -1 else size
    group = torch.arange(cols) // size
    if order is not None:
        group = group[order]
    groups = int(group.max()) + 1
    top = (1 << bits) - 1
    zero = torch.zeros(rows, groups)
    scale = torch.zeros(rows, groups)
    for g in range(groups):
        part = weight[:, group == g]
        if symmetric:
            scale[:, g] = 2 * part.abs().amax(1) / top
            zero[:, g] = 1 << (bits - 1)
        else:
            low, high = part.amin(1).clamp(max=-1e-4), part.amax(1).clamp(min=1e-4)
            scale[:, g] = (high - low) / top
            zero[:, g] = (-low / scale[:, g]).round().clamp(1, top)
    scale = scale.half().float()
    codes = (weight / scale[:, group] + zero[:, group]).round().clamp(0, top)
    return codes, zero, scale, group
