"""Every tensor of a file: calibrated, quantized, written."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gwq_export.compute.results import Memory
from gwq_export.format.reader import Reader
from gwq_export.format.writer import Writer
from gwq_export.hf.source import Source
from gwq_export.native.library import Pool
from gwq_export.pipeline.calibrated import Calibrated
from gwq_export.pipeline.coding import encode, read
from gwq_export.pipeline.job import Job
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.pipeline.statistics_store import StatisticsStore
from gwq_export.pipeline.tuned_blocks import TunedSource
from gwq_export.pipeline.tuning import Tuning
from gwq_export.pipeline.tuning_steps import can_be_tuned, is_norm
from gwq_export.quantization.quantize import quantize

Progress = Callable[[str, int, int], None]


def write(
    job: Job,
    work: Memory,
    pool: Pool,
    tuned: bool,
    progress: Progress,
    kept: StatisticsStore | None = None,
) -> tuple[float, float] | None:
    """Quantize and write every tensor of the file.

    Those that need gradients come block by block as these appear, or as `kept` has their
    statistics, then the others. What is tuned waits in `work` until that is done. What `work` holds
    of an earlier run is not quantized again. Returns the KL divergence before and after tuning
    (`Tuning.run`), or None. Raises GwqError, also when the model was changed meanwhile: then there
    is no file.
    """
    assert job.out is not None  # check_options has seen to it
    norms = [p for p in job.plans if tuned and is_norm(p.name)]
    others = [p for p in job.plans if not p.recipe.statistics and p not in norms]
    job.check_source()
    with Writer(job.out, job.header, job.layout()) as writer:
        for name, array in job.rope.items():
            writer.write(name, array)
        files = _Tensors(writer, work, tuned)
        finished = _write_finished(files, job.plans)
        Calibrated(job, pool, files.store, finished, work, kept, progress).write()
        _write_others(files, job.source, others, pool, finished, progress)
        tuned_kld = _write_tuned(files, job, norms, finished, progress) if tuned else None
        job.check_source()
        return tuned_kld


class _Tensors:
    """Where quantized matrices go: `work`, and the file, but for those that are to be tuned."""

    def __init__(self, writer: Writer, work: Memory, tuned: bool):
        self.writer = writer
        self.work = work
        self.tuned = tuned

    def store(self, plan: TensorPlan, j: int, parts: Sequence[np.ndarray]) -> None:
        """Take the j-th matrix of a plan, with its side-table."""
        if self.tuned and can_be_tuned(plan):
            self.work.put(plan.sources[j], *parts)
        else:
            self.work.save(plan.sources[j], *parts)
            self.put(plan, j, parts)

    def put(self, plan: TensorPlan, j: int, parts: Sequence[np.ndarray]) -> None:
        """Write it."""
        names = [name for name, _, _ in plan.recipe.tensors(plan.name, plan.shape)]
        for name, data in zip(names, parts, strict=True):
            self.writer.write(name, data, j, len(plan.sources))


def _write_finished(tensors: _Tensors, plans: Sequence[TensorPlan]) -> set[str]:
    """Write what an earlier run quantized; returns the Hugging Face names of these matrices."""
    finished = set()
    for plan in plans:
        waits = tensors.tuned and can_be_tuned(plan)
        for j, hf in enumerate(plan.sources):
            if waits and hf in tensors.work:
                finished.add(hf)
            elif not waits and (parts := tensors.work.get(hf)):
                tensors.put(plan, j, parts)
                finished.add(hf)
    return finished


def _write_others(
    tensors: _Tensors,
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
                tensors.store(plan, j, encode(pool, plan, read(source, hf), {}))
        done += plan.weights
        progress("write", done, total)


def _write_tuned(
    tensors: _Tensors,
    job: Job,
    norms: Sequence[TensorPlan],
    finished: set[str],
    progress: Progress,
) -> tuple[float, float]:
    """Tune the file as far as it is quantized, and write what waited for that."""
    source, work = job.source, tensors.work
    assert job.tune_tokens is not None  # without, nothing is tuned
    waiting = {hf: (p, j) for p in job.plans if can_be_tuned(p) for j, hf in enumerate(p.sources)}
    with Reader(tensors.writer.part) as reader:
        in_file = partial(
            TunedSource,
            source,
            job.plans,
            lambda plan, j: work.need(plan.sources[j]),
            lambda plan, j: reader.tensors[plan.name].matrices()[j].dequantize(),
        )
        tuning = Tuning(
            source,
            in_file,
            job.tune_tokens,
            job.tune_steps,
            job.options.device,
            progress,
            work.section("tuning"),
        )
        before, after = tuning.run()
    better = after < before
    factors = tuning.factors() if better else {}
    for hf, parts in tuning.tensors() if better else ((hf, work.need(hf)) for hf in waiting):
        tensors.put(*waiting[hf], parts)
    for plan in norms:
        (hf,) = plan.sources
        if hf not in finished:
            weight = plan.arrange.weight(read(source, hf)) * factors.get(hf, np.float32(1))
            tensors.store(plan, 0, quantize(weight, {}, plan.recipe))
    return before, after
