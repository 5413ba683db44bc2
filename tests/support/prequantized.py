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


def is_matrix(name, tensor):
    """Whether a quantizer takes a tensor: the linear layers of the blocks."""
    return name.endswith(MATRICES) and ".layers." in name and tensor.dim() == 2


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
