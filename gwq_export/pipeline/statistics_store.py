"""Statistics of every matrix, kept on disk from the moment they are known until it is coded.

Under a budget no matrix can be coded before the statistics of all have been seen. They are written
down, so that one calibration serves both the choice and the codes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.calibration.statistics import GROUP, OUTPUTS
from gwq_export.compute.results import Memory, Workdir
from gwq_export.pipeline.plan import TensorPlan

STRIP = 256  # rows of a Hessian that are written at once
SUFFIX = ".statistics"  # of the folder beside the file that is written


class StatisticsStore:
    """Statistics by the Hugging Face name of a matrix.

    Of a Hessian, which is symmetric, only one triangle is kept, in strips of rows; matrices with
    the same inputs share it.
    """

    def __init__(self, results: Memory, drifting: Collection[str] = ()) -> None:
        """drifting: matrices whose Hessian is not kept, as another one takes its place."""
        self._results = results
        self._drifting = drifting
        self._hessian: tuple[str, np.ndarray] | None = None  # the last one that was kept or read

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def put(self, name: str, statistics: dict[str, Any]) -> None:
        """Keep the statistics of a matrix: float32 arrays by name."""
        if name in self._drifting:
            statistics = {key: array for key, array in statistics.items() if key != "hessian"}
        keys = sorted(set(statistics) - {"hessian"})
        owner = ""
        if "hessian" in statistics:
            hessian = statistics["hessian"]
            if self._hessian is None or self._hessian[1] is not hessian:
                self._hessian = name, hessian
                cols = len(hessian)
                strips = [hessian[a : a + STRIP, a:] for a in range(0, cols, STRIP)]
                self._results.put(f"{name}.hessian", *strips)
            owner = self._hessian[0]
        arrays = [np.asarray(statistics[key]) for key in keys]
        self._results.put(name, np.array([owner, *keys]), *arrays)

    def get(self, name: str) -> dict[str, Any]:
        """The statistics of a matrix that were kept."""
        (owner, *keys), *arrays = self._results.need(name)
        statistics: dict[str, Any] = dict(zip(map(str, keys), arrays, strict=True))
        if owner:
            if self._hessian is None or self._hessian[0] != owner:
                self._hessian = None  # only one is in memory
                self._hessian = str(owner), _whole(self._results.need(f"{owner}.hessian"))
            statistics["hessian"] = self._hessian[1]
        return statistics


def _whole(strips: Sequence[np.ndarray]) -> np.ndarray:
    """The symmetric matrix of which `strips` are the rows from the diagonal on."""
    cols = strips[0].shape[1]
    out = np.empty((cols, cols), np.float32)
    for k, strip in enumerate(strips):
        first = k * STRIP
        last = first + len(strip)
        out[first:last, first:] = strip
        out[last:, first:last] = strip[:, len(strip) :].T
    return out


def store_bytes(plans: Sequence[TensorPlan]) -> int:
    """Bytes that the statistics of these plans take at most: as if no two shared a Hessian."""
    total = 0
    for plan in plans:
        if len(plan.shape) > 1:
            rows, cols = plan.shape[-2:]
            hessian = 0 if plan.drifts else 2 * cols * (cols + STRIP)
            size = {"hessian": 0, "rows": rows, OUTPUTS: rows * min(rows, GROUP)}
            floats = sum(size.get(s, rows * cols) for s in plan.recipe.statistics)
            total += len(plan.sources) * (hessian + 4 * floats)
    return total


@contextlib.contextmanager
def opened_beside(out: Path) -> Iterator[Memory]:
    """A folder beside the file `out`, which is deleted in the end. Raises GwqError."""
    folder = out.with_name(out.name + SUFFIX)
    with Workdir(folder, {"statistics": str(out)}) as results:
        try:
            yield results
        finally:
            shutil.rmtree(folder, ignore_errors=True)
