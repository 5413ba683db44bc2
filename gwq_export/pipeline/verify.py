"""Is a finished file still the model that it was made from?

The question is asked by another path than the one that made it: the file is opened and run like any
other, the source model runs block by block, and both predict the same held-out text; every tensor
is decoded and compared with its source. Memory is that of one block, like an export's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwq_export.calibration.block_model import BlockModel
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.calibration.statistics import Tap
from gwq_export.compute.results import Memory
from gwq_export.compute.threads import one_thread_each
from gwq_export.errors import GwqError
from gwq_export.evaluation.perplexity import score
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.format.reader import Reader
from gwq_export.hf.source import Source
from gwq_export.machine import cpu_name
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.runtime.model import Model

# Inputs of a matrix, of all windows together, on which its output error is measured.
SAMPLED = 1024
PROMPT, GENERATED = 128, 32  # tokens that are timed
# Nats per token: text is then e times less likely under the file, per token, than the source
# expects. Of files that were meant to work, only 2-bit ones of models below a million parameters
# came this far (perplexity 7.9 -> 35); 2 bits of 5 million: 0.1. One damaged matrix need not show
# here (0.1 to 1.5 nats were seen): that is what MAX_ERROR is for.
MAX_KLD = 1.0
# Of a tensor, as a share of its size: 2 bits gave at most 0.4; zeros in its place give 1, its rows
# in another order 1.4.
MAX_ERROR = 0.8


def verify(
    path: str | Path,
    source: Source,
    plans: Sequence[TensorPlan],
    windows: np.ndarray,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Compare the file `path` with its source on `windows`, int64 (n, ctx) token ids.

    plans: how the source's tensors were stored. Returns what `evaluation.perplexity.score` returns
    with a reference, and
    "tensors": [{"name", "type", "weight_error", "output_error"}] in the order of the plans: root
    mean square error over root mean square, of the weights and, for the decoder's linears, of the
    outputs for the windows' inputs (None where there is none);
    "speed": {"prompt_tps", "decode_tps", "threads", "cpu"}, from a single quick run.
    Raises GwqError, also when the runtime refuses the file.
    """
    model = Model(path)
    reader = model.weights.reader
    with torch.no_grad():
        against, errors = _run_source(source, plans, reader, windows, device, progress)
        result = score(runtime_logits(model), windows, windows.shape[1] - 1, against, progress)
    rows = [{"name": p.name, "type": p.recipe.type.name} | errors[p.name] for p in plans]
    return result | {"tensors": rows, "speed": _speed(model, windows[0])}


def judge(path: str | Path, result: dict[str, Any], max_kld: float | None = None) -> None:
    """Raise GwqError, which names the file and the worst tensor, when `result` of `verify` shows
    damage.
    """
    limit = MAX_KLD if max_kld is None else max_kld
    tensors = result["tensors"]
    broken = [t for t in tensors if not t["weight_error"] < MAX_ERROR]
    worst = max(tensors, key=lambda t: (t["output_error"] or 0.0, t["weight_error"]))
    if broken:
        raise GwqError(
            f"{path} is kept, but its tensor {broken[0]['name']} differs from the source by"
            f" {broken[0]['weight_error']:.0%} of its size, which is damage: do not use the file,"
            " and report this"
        )
    if not result["kld_mean"] <= limit:
        raise GwqError(
            f"{path} is kept, but its KL divergence from the source is {result['kld_mean']:.4g}"
            f" nats per token, above --max-kld {limit:g} (perplexity {result['ppl_against']:.4g} ->"
            f" {result['ppl']:.4g}; worst tensor {worst['name']}): use more bits, or a larger"
            " --max-kld"
        )


def _run_source(
    source: Source,
    plans: Sequence[TensorPlan],
    reader: Reader,
    windows: np.ndarray,
    device: str,
    progress: Callable[[str, int, int], None],
) -> tuple[Predictor, dict[str, dict[str, Any]]]:
    """(Predictor of the source model, for these windows only, {tensor name: its errors})."""
    plan_of = {hf: p for p in plans for hf in p.sources}
    errors: dict[str, dict[str, Any]] = {}
    model = BlockModel(source, device)
    ids = torch.from_numpy(windows[:, :-1])
    walk = BlockPass(model, ids, Memory())
    step = max(1, ids.numel() // SAMPLED)
    tap = Tap()
    inputs: dict[int, dict[str, torch.Tensor]] = {}  # of each window: {matrix: every step-th input}

    @contextmanager
    def watched(i: int, block: torch.nn.Module) -> Iterator[None]:
        rows = source.block(i)
        alone = {r: n for r, n in rows.items() if r.linear and len(plan_of[n].sources) == 1}
        tap.attach({n: block.get_submodule(r.hf.removesuffix(".weight")) for r, n in alone.items()})
        yield
        tap.remove()
        for name in rows.values():
            plan = plan_of[name]
            if plan.name not in errors:
                x = [inputs[s][name] for s in sorted(inputs)] if name in alone.values() else None
                errors[plan.name] = _errors(source, plan, reader, x)
        inputs.clear()

    def run(i: int, s: int, hidden: torch.Tensor) -> torch.Tensor:
        output = model.run(i, hidden)
        seen, _ = tap.take()
        inputs[s] = {name: x[::step].cpu() for name, x in seen.items()}
        return output

    walk.embed()
    with one_thread_each():  # several windows at a time
        walk.forward(watched, run, lambda done: progress("verify", done, source.layers), True)
    for plan in plans:
        if plan.name not in errors:
            errors[plan.name] = _errors(source, plan, reader)
    model.load_ends()
    states = walk.get(f"state.{source.layers}")
    by_ids = {row.tobytes(): h for row, h in zip(windows[:, :-1], states, strict=True)}

    def logits(tokens: Any, keep: int, reuse: bool = False) -> Iterator[np.ndarray]:
        tokens = np.asarray(tokens, np.int64)
        hidden = by_ids[tokens.tobytes()][None]
        yield model.logits(torch.from_numpy(tokens)[None].to(device), hidden)[-keep:].cpu().numpy()

    return Predictor(windows.shape[1], logits), errors


def _errors(
    source: Source,
    plan: TensorPlan,
    reader: Reader,
    inputs: Sequence[torch.Tensor] | None = None,
) -> dict[str, Any]:
    """{"weight_error", "output_error"} of a tensor; inputs: (tokens, columns) of each window."""
    matrices = [plan.arrange.weight(source.tensor(hf).numpy()) for hf in plan.sources]
    weight = np.stack(matrices).reshape(plan.shape)
    error = reader.tensors[plan.name].dequantize() - weight
    result: dict[str, Any] = {"weight_error": _ratio(error, weight), "output_error": None}
    if inputs:
        x = np.concatenate([part.numpy() for part in inputs])
        result["output_error"] = _ratio(x @ error.T, x @ weight.T)
    return result


def _ratio(error: np.ndarray, value: np.ndarray) -> float:
    return float(np.linalg.norm(error) / max(float(np.linalg.norm(value)), 1e-30))


def _speed(model: Model, ids: np.ndarray) -> dict[str, Any]:
    """Tokens per second of one prompt and of decoding after it."""
    ids = np.resize(ids, min(PROMPT + GENERATED, model.ctx))
    prompt, generated = np.split(ids, [-min(GENERATED, len(ids) // 2)])
    session = model.session(len(ids))
    start = time.perf_counter()
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
