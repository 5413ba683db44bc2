"""Matrices of a checkpoint and the Hessians of their inputs, for the study of byte orders."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gwq_export.calibration.sources import CALIBRATION

CTX = 256  # tokens of a sample


@dataclass
class Matrix:
    """Some rows of a matrix, (rows, columns), and the mean of x x^T of its inputs."""

    name: str
    depth: float  # of its block, as asked for
    weight: np.ndarray
    hessian: np.ndarray


def matrices(folder, layers, rows, samples):
    """The linear layers of some decoder blocks of a Hugging Face folder: `rows` rows of each.

    layers: which, as fractions of the depth. samples: of CTX tokens of the bundled text.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(CALIBRATION.read_text(), verbose=False).input_ids
    count = min(samples, len(ids) // CTX)
    tokens = torch.tensor(ids[: count * CTX]).reshape(count, CTX)
    blocks = model.get_decoder().layers
    chosen = {int(fraction * len(blocks)): fraction for fraction in layers}
    sums, handles = {}, []
    for i in chosen:
        for name, module in blocks[i].named_modules():
            if isinstance(module, torch.nn.Linear):
                key = f"{i}.{name}"
                sums[key] = 0
                handles.append(module.register_forward_pre_hook(_adding(sums, key)))
    with torch.no_grad():
        for sample in tokens:
            model.get_decoder()(sample[None])
    for handle in handles:
        handle.remove()
    found = []
    for key, total in sums.items():
        i, _, name = key.partition(".")
        weight = blocks[int(i)].get_submodule(name).weight.detach().numpy()
        hessian = (total / tokens.numel()).numpy().astype(np.float32)
        found.append(Matrix(key, chosen[int(i)], weight[:rows].copy(), hessian))
    return found


def _adding(sums, key):
    def hook(module, inputs):
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        sums[key] = sums[key] + x.T @ x

    return hook
