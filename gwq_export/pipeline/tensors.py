"""Every tensor of a file: calibrated, quantized, written."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gwq_export.calibration.gradients import gradients
from gwq_export.compute.results import Memory
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.hf.source import Source
from gwq_export.native.library import Pool
from gwq_export.pipeline.job import Job
from gwq_export.pipeline.norm_tuning import is_norm, tune
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.quantization.curvature import Curvatures
from gwq_export.quantization.quantize import quantize

Progress = Callable[[str, int, int], None]


def write(
    job: Job, work: Memory, pool: Pool, tuned: bool, progress: Progress
) -> tuple[float, float] | None:
    """Quantize and write every tensor of the file.

    Those that need gradients come block by block as these appear, then the others, and the norms
    last when they are tuned. What `work` holds of an earlier run is not quantized again. Returns
    the KL divergence before and after tuning (`norm_tuning.tune`), or None. Raises GwqError.
    """
    assert job.out is not None  # check_options has seen to it
    norms = [p for p in job.plans if tuned and is_norm(p.name)]
    others = [p for p in job.plans if not p.recipe.statistics and p not in norms]
    with Writer(job.out, job.header, job.layout()) as writer:
        for name, array in job.rope.items():
            writer.write(name, array)
        finished = _write_finished(writer, work, job.plans)
        _write_calibrated(writer, work, job, pool, finished, tuned, progress)
        _write_others(writer, work, job.source, others, pool, finished, progress)
        return _write_norms(writer, work, job, norms, progress) if norms else None


def _write_finished(writer: Writer, work: Memory, plans: Sequence[TensorPlan]) -> set[str]:
    """Write what an earlier run quantized; returns the Hugging Face names of these matrices."""
    finished = set()
    for plan in plans:
        for j, hf in enumerate(plan.sources):
            if parts := work.get(hf):
                _put(writer, plan, j, parts)
                finished.add(hf)
    return finished


def _write_calibrated(
    writer: Writer,
    work: Memory,
    job: Job,
    pool: Pool,
    finished: set[str],
    tuned: bool,
    progress: Progress,
) -> None:
    """Quantize and write the matrices that need gradients; adds them to `finished`."""
    calibrated = {
        hf: (p, j) for p in job.plans if p.recipe.statistics for j, hf in enumerate(p.sources)
    }
    if not calibrated or job.calibration is None:
        return
    curvatures = Curvatures(job.calibration.tokens.numel())
    items = gradients(
        job.source,
        job.calibration,
        sorted({s for p, _ in calibrated.values() for s in p.recipe.statistics}),
        [hf for hf, (p, _) in calibrated.items() if not p.linear],
        job.options.device,
        progress,
        work,
        lambda name: name in finished or name not in calibrated,
        tuned,
    )
    for name, weight, statistics in items:
        plan, j = calibrated[name]
        statistics = curvatures.put(statistics, job.calibration.reached.get(name))
        _store(writer, work, plan, j, encode(pool, plan, weight, statistics))
        finished.add(name)


def _write_others(
    writer: Writer,
    work: Memory,
    source: Source,
    plans: Sequence[TensorPlan],
    pool: Pool,
    finished: set[str],
    progress: Progress,
) -> None:
    """Convert and write the tensors that need no gradients."""
    done = 0
    total = sum(p.weights for p in plans)
    progress("write", done, total)
    for plan in plans:
        for j, hf in enumerate(plan.sources):
            if hf not in finished:
                _store(writer, work, plan, j, encode(pool, plan, read(source, hf), {}))
        done += plan.weights
        progress("write", done, total)


def _write_norms(
    writer: Writer, work: Memory, job: Job, norms: Sequence[TensorPlan], progress: Progress
) -> tuple[float, float]:
    """Tune the norms on the file as far as it is written, and write them."""
    source = job.source
    assert job.calibration is not None  # without one, norms are not tuned
    with Reader(writer.part) as reader:
        factors, kld = tune(
            source,
            reader,
            job.plans,
            job.calibration.tokens,
            work.need(f"state.{source.layers}")[0],
            job.options.device,
            progress,
            work.section("norms"),
        )
    for plan in norms:
        (hf,) = plan.sources
        weight = plan.arrange.weight(read(source, hf)) * factors.get(hf, np.float32(1))
        _put(writer, plan, 0, quantize(weight, {}, plan.recipe))
    return kld


def read(source: Source, hf: str) -> np.ndarray:
    """A tensor of the checkpoint, float32."""
    return source.tensor(hf).numpy()


def encode(
    pool: Pool, plan: TensorPlan, weight: np.ndarray, statistics: dict[str, Any]
) -> list[np.ndarray]:
    """The bytes of a plan's tensors, or of an expert's part of them, from its matrix.

    weight and statistics: in the checkpoint's layout. Raises GwqError, naming the tensor.
    """
    try:
        return quantize(
            plan.arrange.weight(weight),
            plan.arrange.statistics(statistics),
            plan.recipe,
            pool.ptr,
        )
    except GwqError as e:
        raise GwqError(f"{plan.name}: {e}") from None


def _store(
    writer: Writer, work: Memory, plan: TensorPlan, j: int, parts: Sequence[np.ndarray]
) -> None:
    work.save(plan.sources[j], *parts)
    _put(writer, plan, j, parts)


def _put(writer: Writer, plan: TensorPlan, j: int, parts: Sequence[np.ndarray]) -> None:
    """Write the j-th matrix of a tensor, with its side-table."""
    names = [name for name, _, _ in plan.recipe.tensors(plan.name, plan.shape)]
    for name, data in zip(names, parts, strict=True):
        writer.write(name, data, j, len(plan.sources))
