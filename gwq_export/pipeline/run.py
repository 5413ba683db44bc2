"""The export: Hugging Face model -> plan -> gradients -> quantized tensors -> GGUF.

Sizes follow from shapes and outlier counts, so the header is written first and every tensor goes to
its place as soon as its block's gradients exist (last block first).
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.errors import not_imported

try:
    import safetensors  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as e:
    raise not_imported(e, "export", "export") from None

from gwq_export.calibration.sources import CALIBRATION
from gwq_export.calibration.statistics import MIN_EXPERT_TOKENS
from gwq_export.compute.results import Memory, Workdir
from gwq_export.compute.threads import cpus, one_thread_each
from gwq_export.machine import peak_rss, release_memory
from gwq_export.native.library import Pool
from gwq_export.pipeline.artifacts import finish, write_sensitivities
from gwq_export.pipeline.coding import encode, read
from gwq_export.pipeline.estimate import Estimate
from gwq_export.pipeline.imatrix import write_imatrix
from gwq_export.pipeline.job import DRIFT_PASSES, DRIFT_WINDOWS, Job, prepare
from gwq_export.pipeline.options import ExportOptions, StrPath
from gwq_export.pipeline.plan import sizes
from gwq_export.pipeline.sensitivity import Offers, fit, predictions, sensitivities
from gwq_export.pipeline.statistics_store import StatisticsStore, opened_beside, store_bytes
from gwq_export.pipeline.tensors import write
from gwq_export.pipeline.tuning_steps import PASSES, share, worthwhile

log = logging.getLogger("gwq_export")
Progress = Callable[[str, int, int], None]
PADDING = 0.03  # fraction of a matrix's bytes above which its padding is said


def export(
    model: StrPath, out: StrPath | None, options: ExportOptions, progress: Progress | None = None
) -> dict[str, Any]:
    """Quantize a model (a folder, a hub id or a GGUF file) into the GGUF file `out`.

    progress(phase, done, total) is called as work goes on. Returns what `gwq_export.export`
    describes. Raises GwqError.
    """
    started = time.monotonic()
    progress = _releasing(progress or (lambda phase, done, total: None))
    job = prepare(model, out, options)
    with cpus(options.threads):
        result = _make(job, progress)
        if options.report_only:
            return result
        try:
            result |= _spent(started)  # of the file alone, for report and card
            if not options.dry_run:
                finish(job, result, progress)
        finally:
            result |= _spent(started)
        return result


def _releasing(progress: Progress) -> Progress:
    """`progress`, at which the memory of what is done also goes back."""

    def report(phase: str, done: int, total: int) -> None:
        release_memory()
        progress(phase, done, total)

    return report


def _spent(started: float) -> dict[str, Any]:
    return {"seconds": round(time.monotonic() - started, 3), "peak_rss_bytes": peak_rss()}


def _make(job: Job, progress: Progress) -> dict[str, Any]:
    """Make the file, or what is asked for instead; returns the result as far as it is known."""
    options = job.options
    pool = Pool()
    estimate = Estimate(partial(encode, pool)) if options.dry_run else None
    with ExitStack() as stack:
        stack.enter_context(one_thread_each())
        work = stack.enter_context(job.open_work())
        stack.enter_context(_said_what_is_kept(job, work))
        stack.enter_context(job.of_one_source())
        kept = _statistics_store(job, work, stack)
        job.check_space(work)
        offers = _measure(job, work, progress, estimate, kept)
        if options.report_only:
            work.clear()
            return write_sensitivities(job, offers)
        result = _choose(job, offers)
        tuned = job.tune_tokens is not None and worthwhile(
            job.plans, result["bpw_linear"], options.tune
        )
        if job.coded:
            job.header["gwq.tuning_steps"] = np.uint32(job.tune_steps if tuned else 0)
        if estimate:
            result |= _estimate(job, estimate, tuned)
        else:
            result |= _write(job, work, pool, tuned, progress, kept)
            work.clear()
    _warn_of_experts(job)
    _warn_of_padding(job)
    if job.calibration and job.calibration.losses:
        result["calibration_tokens"] = job.calibration.tokens.numel()
        result["calibration_loss"] = job.calibration.loss
    return result


@contextmanager
def _said_what_is_kept(job: Job, work: Memory) -> Iterator[None]:
    """Say what an earlier run left, and how to go on if this one stops."""
    part = f"{job.out}.part"
    if job.options.writes_model and os.path.exists(part):
        log.warning("%s is left of an export that was stopped: it is written anew", part)
    try:
        yield
    except BaseException:
        if isinstance(work, Workdir) and work.nbytes:
            log.warning(
                "what is finished is kept in --work-dir %s (%.0f MiB): the same command goes on"
                " from there; to give it up, delete the folder",
                work.folder,
                work.nbytes / 2**20,
            )
        raise


def _statistics_store(job: Job, work: Memory, stack: ExitStack) -> StatisticsStore | None:
    """Where one calibration leaves what choice and codes need, closed by `stack`.

    None where there is no choice, or no room: then the matrices are calibrated once more. A dry run
    leaves them in its work folder.
    """
    options = job.options
    wanted = options.writes_model or (options.dry_run and options.work_dir and options.budgeted)
    if not ((options.budgeted or job.drifting) and wanted and job.calibration):
        return None
    assert job.out is not None  # check_options has seen to it
    out = Path(job.out).absolute()
    folder = work.folder or out.parent
    needed = store_bytes(job.plans)
    free = shutil.disk_usage(folder).free - (job.budget or 0)
    if needed > free:
        outcomes = {
            "calibration runs twice": options.budgeted,
            "no matrix makes up for errors of those before it": bool(job.drifting),
        }
        log.warning(
            "the statistics take %.1f GB and %.1f GB are free in %s: %s",
            needed / 1e9,
            free / 1e9,
            folder,
            " and ".join(outcome for outcome, is_so in outcomes.items() if is_so),
        )
        job.give_drift_up()
        return None
    if work.folder is not None:
        return StatisticsStore(work.section("statistics"), job.drifting)
    return StatisticsStore(stack.enter_context(opened_beside(out)), job.drifting)


def _measure(
    job: Job,
    work: Memory,
    progress: Progress,
    estimate: Estimate | None,
    kept: StatisticsStore | None,
) -> Offers:
    """What storing each matrix in each way would cost, where that is asked for."""
    options = job.options
    chooses = options.budgeted or options.report_only
    needed = options.report_only or (job.coded and (options.budgeted or options.dry_run))
    if not job.calibration or not needed:
        return {}
    return sensitivities(
        job.source,
        job.plans,
        job.calibration,
        chooses,
        options.outliers,
        options.device,
        progress,
        work.section("sensitivity"),
        estimate,
        kept,
    )


def _choose(job: Job, offers: Offers) -> dict[str, Any]:
    """Fit the plan to the budget, if there is one; the size and the prediction of the result."""
    if job.budget is not None and offers:
        job.plans = fit(job.plans, offers, job.budget, job.file_bytes)
    result = {"out": str(job.out)} | sizes(job.plans, job.file_bytes())
    if offers and job.calibration:
        result |= predictions(job.plans, offers, job.calibration)
    return result


def _estimate(job: Job, estimate: Estimate, tuned: bool) -> dict[str, Any]:
    """Time and memory that the export would take, after one more matrix of each kind is coded."""
    for plan in job.plans:
        if not plan.recipe.statistics:
            estimate.sample(plan, partial(read, job.source, plan.sources[0]), {})
    tuning = 0.0
    if tuned and job.calibration and job.tune_tokens is not None:
        windows, ctx = job.tune_tokens.shape
        tuning = share(windows, ctx, job.tune_steps, job.calibration.tokens.numel())
    drift = DRIFT_WINDOWS * DRIFT_PASSES / PASSES if job.drifting else 0.0
    return {
        "estimated_seconds": estimate.seconds(job.plans, job.options.budgeted, tuning + drift),
        "estimated_peak_rss_bytes": peak_rss(),
    }


def _write(
    job: Job,
    work: Memory,
    pool: Pool,
    tuned: bool,
    progress: Progress,
    kept: StatisticsStore | None,
) -> dict[str, Any]:
    """Write the file, and the importance matrix before it."""
    options = job.options
    if options.imatrix and job.calibration:
        texts = options.calib or [CALIBRATION]
        states = None if work.folder else work.section("imatrix")  # no later run goes on with them
        write_imatrix(
            options.imatrix, job.source, job.calibration, texts, options.device, progress, states
        )
    kld = write(job, work.section("tensors"), pool, tuned, progress, kept)
    return {"tuned_kld": kld} if kld else {}


def _warn_of_padding(job: Job) -> None:
    """Say where rows or columns that a type pads cost more than PADDING of a matrix."""
    padded = [p for p in job.plans if p.padding > PADDING]
    if padded:
        most = max(padded, key=lambda p: p.padding)
        rows, cols = most.shape[-2:]
        log.warning(
            "%s of %d x %d takes %.0f %% more than its weights, as %s stores rows in 16s and"
            " columns in 16s or 32s; padding adds more than %.0f %% to %s of the file."
            " A ggml type may be smaller: --tensor-type REGEX=q8_0",
            most.name,
            rows,
            cols,
            100 * most.padding,
            most.recipe.type.name,
            100 * PADDING,
            "1 matrix" if len(padded) == 1 else f"{len(padded)} matrices",
        )


def _warn_of_experts(job: Job) -> None:
    """Name the experts that calibration says little of."""
    reached = job.calibration.reached if job.calibration else {}
    experts = {name.rsplit(".", 2)[0]: tokens for name, tokens in reached.items()}
    few = [name for name, tokens in experts.items() if tokens < MIN_EXPERT_TOKENS]
    if few:
        log.warning(
            "%d of %d experts met fewer than %d calibration tokens and are quantized by their"
            " weights alone; more --samples reach more of them: %s%s",
            len(few),
            len(experts),
            MIN_EXPERT_TOKENS,
            ", ".join(few[:8]),
            ", ..." if few[8:] else "",
        )
