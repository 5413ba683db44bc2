"""Matrices that are coded by calibration.

Their codes are made as gradients appear, last block first. With drift, or under a budget,
statistics are kept until all are known; with drift, the blocks are coded from the first to the
last, each for the inputs that it has in the file (`calibration.drift`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from gwq_export.calibration.drift import DriftPass
from gwq_export.calibration.gradients import Item, gradients
from gwq_export.compute.results import Memory
from gwq_export.native.library import Pool
from gwq_export.pipeline.coding import decode, encode, read
from gwq_export.pipeline.job import Job
from gwq_export.pipeline.plan import TensorPlan
from gwq_export.pipeline.statistics_store import StatisticsStore
from gwq_export.quantization.curvature import Curvatures

Progress = Callable[[str, int, int], None]
Store = Callable[[TensorPlan, int, Sequence[np.ndarray]], None]


class Calibrated:
    """The matrices of a job that need gradients. Call `write`.

    store(plan, j, parts): takes matrix j of a plan. finished: Hugging Face names of what an earlier
    run has coded, to which names are added; `work` has their parts. kept: where statistics are, or
    go.
    """

    def __init__(
        self,
        job: Job,
        pool: Pool,
        store: Store,
        finished: set[str],
        work: Memory,
        kept: StatisticsStore | None,
        progress: Progress,
    ):
        self.job = job
        self.pool = pool
        self.store = store
        self.finished = finished
        self.work = work
        self.kept = kept
        self.progress = progress
        self.plans = {
            hf: (p, j) for p in job.plans if p.recipe.statistics for j, hf in enumerate(p.sources)
        }

    def write(self) -> None:
        """Code and store all of them. Raises GwqError."""
        if not self.plans or self.job.calibration is None:
            return
        self.curvatures = Curvatures(self.job.calibration.tokens.numel())
        if self.kept is None:
            for item in self._calibrated():
                self._code(*item)
            return
        if not self.job.options.budgeted:  # else the choice has calibrated them
            for name, _, statistics in self._calibrated():
                self.kept.put(name, statistics)
        if self.job.drifting:
            self._code_with_drift(self.kept)
        else:
            for name in self.plans:  # in this order, matrices with one Hessian are neighbours
                if name not in self.finished:
                    self._from_kept(self.kept, name)
        self.progress("quantize", len(self.plans), len(self.plans))

    def _calibrated(self) -> Iterator[Item]:
        """Matrices and their statistics, as gradients appear."""
        job, kept = self.job, self.kept
        assert job.calibration is not None
        later = set() if kept is None else job.drifting  # whose Hessian is measured with drift
        wanted = {
            statistic
            for name, (plan, _) in self.plans.items()
            for statistic in plan.recipe.statistics
            if statistic != "hessian" or name not in later
        }
        return gradients(
            job.source,
            job.calibration,
            sorted(wanted),
            [hf for hf, (p, _) in self.plans.items() if not p.linear],
            job.options.device,
            self.progress,
            self.work,
            lambda name: (
                name not in self.plans
                or name in self.finished
                or (kept is not None and name in kept)
            ),
        )

    def _code(
        self, name: str, weight: np.ndarray, statistics: dict[str, Any], tokens: int | None = None
    ) -> list[np.ndarray]:
        """Code a matrix, store it and return its parts.

        tokens: of which the Hessian is a mean; None: all, or those routed to an expert.
        """
        plan, j = self.plans[name]
        assert self.job.calibration is not None
        tokens = tokens or self.job.calibration.reached.get(name)
        parts = encode(self.pool, plan, weight, self.curvatures.put(statistics, tokens))
        self.store(plan, j, parts)
        self.finished.add(name)
        return parts

    def _from_kept(
        self,
        kept: StatisticsStore,
        name: str,
        moments: Mapping[str, Any] = MappingProxyType({}),
        tokens: int | None = None,
    ) -> list[np.ndarray]:
        """The parts of a matrix, coded if that is not done yet.

        moments: statistics in the place of kept ones.
        """
        if name in self.finished:
            return self.work.need(name)
        self.progress("quantize", len(self.finished & self.plans.keys()), len(self.plans))
        return self._code(name, read(self.job.source, name), {**kept.get(name), **moments}, tokens)

    def _code_with_drift(self, kept: StatisticsStore) -> None:
        """Embedding and head, then block after block."""
        source, tokens = self.job.source, self.job.drift_tokens
        assert tokens is not None  # there is a calibration
        embedding = None
        for name, (plan, _) in self.plans.items():
            if not plan.linear:
                parts = self._from_kept(kept, name)
                if name == source.arch.embed:
                    embedding = decode(self.pool, plan, parts)
        walk = DriftPass(source, tokens, self.job.options.device, self.work)
        walk.embed(embedding)
        for i in range(walk.reached, source.layers):
            rest = [name for name in source.block(i).values() if name in self.plans]
            for group in walk.groups(i):
                moments = {"hessian": group.hessian, "drift": group.drift}
                for name in group.names:
                    if name in rest:
                        rest.remove(name)
                        parts = self._from_kept(kept, name, moments, tokens.numel())
                        walk.put(name, decode(self.pool, self.plans[name][0], parts))
            for name in rest:  # experts
                parts = self._from_kept(kept, name)
                walk.put(name, decode(self.pool, self.plans[name][0], parts))
            walk.finish(i)
