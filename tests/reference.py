"""transformers as the oracle: a Hugging Face model that computes with a GGUF file's dequantized weights."""

import numpy as np
import torch

import gwq_export
from gwq_export.arch import gguf_name
from gwq_export.source import Source


def unpermute(array, heads):
    """Inverse of the export's row permutation, written from llama.cpp's description of it."""
    rows = array.shape[0]
    dim = rows // heads
    order = [h * dim + 2 * i + half for h in range(heads) for half in range(2) for i in range(dim // 2)]
    return array[order]


def original_model(folder):
    """The float32 transformers model as it is saved."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def dequantized_model(folder, path, reader=None, ends=True):
    """`original_model` with every weight replaced by what `path` decodes to.

    reader: who decodes it; without `ends`, embedding and head are kept.
    """
    source, reader, model = Source(folder), reader or gwq_export.open_gguf(path), original_model(folder)
    heads = {"heads": source.config["num_attention_heads"], "kv_heads": source.config["num_key_value_heads"]}
    tensors = {source.arch.norm: ("output_norm.weight", 0)}
    if ends:
        tensors[source.arch.embed] = "token_embd.weight", 0
    if ends and not source.tied:
        tensors[source.arch.head] = ("output.weight", 0)
    for i in range(source.layers):
        for row, hf in source.block(i).items():
            tensors[hf] = gguf_name(i, row), heads.get(row.heads, 0) if source.arch.rope == "pairs" else 0
    for hf, (name, count) in tensors.items():
        weight = reader.tensors[name].dequantize()
        model.get_parameter(hf).data = torch.from_numpy(unpermute(weight, count) if count else weight.copy())
    if source.tied:
        model.tie_weights()
    return model


@torch.no_grad()
def logits(model, ids):
    """float32 (n, vocab) of token ids (n,)."""
    return model(input_ids=torch.as_tensor(np.asarray(ids, np.int64))[None]).logits[0].float().numpy()


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
