"""transformers as the oracle: a Hugging Face model that computes with a GGUF file's weights."""

import re

import numpy as np
import torch

import gwq_export
from gwq_export.arch.spec import gguf_name
from gwq_export.hf.source import Source


def unpermute(array, heads):
    """Inverse of the export's row permutation, written from llama.cpp's description of it."""
    dim = array.shape[0] // heads
    order = [
        h * dim + 2 * i + half for h in range(heads) for half in range(2) for i in range(dim // 2)
    ]
    return array[order]


def checkpoint_weight(array, source, row):
    """A weight of a file as the checkpoint of `source` has it: the inverse of the export's layout.

    row: its row of the architecture's tensor table.
    """
    if row.heads and source.arch.rope == "pairs":
        array = unpermute(array, source.heads[row.heads])
    if row.interleaved:
        heads = source.heads["heads"]
        parts = array.reshape(row.interleaved, heads, -1, *array.shape[1:])
        array = np.concatenate([np.concatenate([part[h] for part in parts]) for h in range(heads)])
    array = np.array((array.T if row.transposed else array) - np.float32(row.plus))
    if row.channels:
        return array[:, None]
    return array[None] if row.one_row else array


def original_model(folder):
    """The float32 transformers model as it is saved."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def parameter(parameters, hf):
    """The tensor of {name: tensor} that is the matrix `hf`.

    For an expert's matrix, and for some pairs of gate and up, that is a part of transformers' fused
    parameters.
    """
    if hf in parameters:
        return parameters[hf]
    pair, _, kind = hf.rpartition(".shared_mlp.")
    if pair and kind == "down_proj.weight":
        return parameters[f"{pair}.shared_mlp.output_linear.weight"]
    if pair:
        halves = parameters[f"{pair}.shared_mlp.input_linear.weight"].chunk(2, dim=-2)
        return halves[kind == "up_proj.weight"]
    pattern = r"(.*[.]experts)[.](\d+)[.](gate|up|down)_proj[.]weight"
    layer, expert, kind = re.fullmatch(pattern, hf).groups()
    if kind == "down":
        return parameters[f"{layer}.down_proj"][..., int(expert), :, :]
    gate, up = parameters[f"{layer}.gate_up_proj"][..., int(expert), :, :].chunk(2, dim=-2)
    return up if kind == "up" else gate


def dequantized_model(folder, path, reader=None, ends=True):
    """`original_model` with every weight replaced by what `path` decodes to.

    reader: who decodes it. Without `ends`, embedding and head stay as they are.
    """
    source = Source(folder)
    reader = reader or gwq_export.open_gguf(path)
    model = original_model(folder)
    embed, *others = source.arch.first
    found = {row.hf: (row, row.gguf) for row in (*others, *source.arch.last)}
    for i in range(source.layers):
        found |= {hf: (row, gguf_name(i, row)) for row, hf in source.block(i).items()}
    if ends:
        found[embed.hf] = embed, embed.gguf
    tensors = {name: reader.tensors[name].dequantize() for _, name in found.values()}
    parameters = dict(model.named_parameters())
    for hf, (row, name) in found.items():
        weight = tensors[name] if row.expert is None else tensors[name][row.expert]
        weight = torch.from_numpy(checkpoint_weight(weight, source, row))
        parameter(parameters, hf).data.copy_(weight)
    if ends and not source.tied:
        head = reader.tensors["output.weight"].dequantize().copy()
        model.get_output_embeddings().weight.data = torch.from_numpy(head)
    if source.tied:
        model.tie_weights()
    return model


@torch.no_grad()
def logits(model, ids):
    """float32 (n, vocab) of token ids (n,)."""
    ids = torch.as_tensor(np.asarray(ids, np.int64))
    return model(input_ids=ids[None]).logits[0].float().numpy()


def kl_divergence(reference, other):
    """Mean over tokens, nats; both (n, vocab)."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def perplexity(model, rows):
    """llama.cpp's protocol on windows (n, ctx): tokens ctx/2 + 1 .. ctx - 1 of each are scored."""
    losses = []
    for row in rows:
        logp = torch.log_softmax(torch.from_numpy(logits(model, row)).double(), -1)
        first = len(row) // 2
        losses += [-logp[i, row[i + 1]].item() for i in range(first, len(row) - 1)]
    return float(np.exp(np.mean(losses)))
