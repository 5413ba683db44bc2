"""Is a finished file still the model it was made from? Asked by another path than the one that made
it.

The file is opened and run like any other, the source model runs block by block, and both predict
the same held-out text; every tensor is decoded and compared with its source. Memory is that of one
block, like an export's.
"""

import time

import numpy as np

from gwq_export.calibration.block_model import BlockModel
from gwq_export.errors import GwqError
from gwq_export.evaluation.perplexity import score
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.machine import cpu_name
from gwq_export.runtime.model import Model

SAMPLED = 1024  # inputs of a matrix, of all windows together, on which its output error is measured
PROMPT, GENERATED = 128, 32  # tokens that are timed
# Nats per token: text is then e times less likely under the file, per token, than the source
# expects. Of files that were meant to work, only 2-bit ones of models below a million parameters
# came this far (perplexity 7.9 -> 35); 2 bits of 5 million: 0.1. One damaged matrix need not show
# here (0.1 to 1.5 nats were seen): that is what MAX_ERROR is for.
MAX_KLD = 1.0
# Of a tensor, as a share of its size: 2 bits gave at most 0.4; zeros in its place give 1, its rows
# in another order 1.4.
MAX_ERROR = 0.8


def verify(path, source, entries, windows, device="cpu", progress=lambda phase, done, total: None):
    """Compare the file `path` with its Source, of which `entries` (plan.TensorPlan) were stored, on
    windows (n, ctx) of token ids.

    Returns what `evaluate.score` returns with a reference, "tensors": [{"name", "type",
    "weight_error", "output_error"}] in the order of the entries (root mean square error over root
    mean square, of the weights and, for the decoder's linears, of the outputs for the windows'
    inputs; None where there is none), and "speed": {"prompt_tps", "decode_tps", "threads", "cpu"},
    a single quick run. Raises GwqError, also when the runtime refuses the file.
    """
    import torch

    model = Model(path)
    reader = model.weights.reader
    with torch.no_grad():
        against, errors = _source(source, entries, reader, windows, device, progress)
        found = score(runtime_logits(model), windows, windows.shape[1] - 1, against, progress)
    rows = [{"name": e.name, "type": e.recipe.type.name} | errors[e.name] for e in entries]
    return found | {"tensors": rows, "speed": _speed(model, windows[0])}


def judge(path, found, max_kld=None):
    """Raises GwqError, which names the file and the worst tensor, when what `verify` found is
    damage.
    """
    limit = MAX_KLD if max_kld is None else max_kld
    broken = [t for t in found["tensors"] if not t["weight_error"] < MAX_ERROR]
    worst = max(found["tensors"], key=lambda t: (t["output_error"] or 0.0, t["weight_error"]))
    if broken:
        raise GwqError(
            f"{path} is kept, but its tensor {broken[0]['name']} differs from the source by {broken[0]['weight_error']:.0%} of"
            " its size, which is damage: do not use the file, and report this"
        )
    if not found["kld_mean"] <= limit:
        raise GwqError(
            f"{path} is kept, but its KL divergence from the source is {found['kld_mean']:.4g} nats per token, above --max-kld"
            f" {limit:g} (perplexity {found['ppl_against']:.4g} -> {found['ppl']:.4g}; worst tensor {worst['name']}):"
            " use more bits, or a larger --max-kld"
        )


def _source(source, entries, reader, windows, device, progress):
    """(Predictor of the source model, for these windows only, {entry name: its errors})."""
    import torch

    named, errors = {hf: e for e in entries for hf in e.sources}, {}
    model, ids = BlockModel(source, device), torch.from_numpy(windows[:, :-1]).to(device)
    model.load_ends()
    states = torch.cat([model.embed(row[None]) for row in ids])
    model.drop_ends()
    step = max(1, ids.numel() // SAMPLED)
    for i in range(source.layers):
        block, inputs = model.load(i), {}
        rows = {
            row: name
            for row, name in source.block(i).items()
            if row.linear and len(named[name].sources) == 1
        }  # no experts
        linears = {name: row.hf.removesuffix(".weight") for row, name in rows.items()}
        hooks = [
            block.get_submodule(hf).register_forward_pre_hook(_collect(inputs, name, step))
            for name, hf in linears.items()
        ]
        states = torch.cat([model.run(i, h[None]) for h in states])
        for hook in hooks:
            hook.remove()
        model.drop(i)
        for name in source.block(i).values():
            if named[name].name not in errors:
                errors[named[name].name] = _errors(
                    source, named[name], reader, inputs.pop(name, None)
                )
        progress("verify", i + 1, source.layers)
    for e in entries:
        if e.name not in errors:
            errors[e.name] = _errors(source, e, reader)
    model.load_ends()
    kept = {row.tobytes(): h for row, h in zip(windows[:, :-1], states, strict=True)}

    def logits(tokens, keep, reuse=False):
        tokens = np.asarray(tokens, np.int64)
        yield (
            model.logits(torch.from_numpy(tokens)[None].to(device), kept[tokens.tobytes()][None])[
                -keep:
            ]
            .cpu()
            .numpy()
        )

    return Predictor(windows.shape[1], logits), errors


def _collect(inputs, name, step):
    """A hook that keeps every step-th input (cols,) of a module."""
    return lambda module, args: inputs.setdefault(name, []).append(
        args[0].reshape(-1, args[0].shape[-1])[::step].cpu()
    )


def _errors(source, entry, reader, inputs=None):
    weight = np.stack(
        [entry.arrange.weight(source.tensor(hf).numpy()) for hf in entry.sources]
    ).reshape(entry.shape)
    error = reader.tensors[entry.name].dequantize() - weight
    found = {"weight_error": _ratio(error, weight), "output_error": None}
    if inputs:
        x = np.concatenate([part.numpy() for part in inputs])
        found["output_error"] = _ratio(x @ error.T, x @ weight.T)
    return found


def _ratio(error, value):
    return float(np.linalg.norm(error) / max(np.linalg.norm(value), 1e-30))


def _speed(model, ids):
    """Tokens per second of one prompt and of decoding after it."""
    ids = np.resize(ids, min(PROMPT + GENERATED, model.ctx))
    prompt, generated = np.split(ids, [-min(GENERATED, len(ids) // 2)])
    session, start = model.session(len(ids)), time.perf_counter()
    session.forward(prompt)
    middle = time.perf_counter()
    for token in generated:
        session.forward([token])
    end = time.perf_counter()
    return {
        "prompt_tps": len(prompt) / (middle - start),
        "decode_tps": len(generated) / (end - middle),
        "threads": model.weights.pool.threads,
        "cpu": cpu_name(),
    }
