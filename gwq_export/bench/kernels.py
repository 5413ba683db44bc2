"""Rows of single kernels: GB/s, share of the memory roof, operations per second."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, repeat
from typing import Any

import numpy as np

from gwq_export.bench.cases import CASES, Call, Case, build
from gwq_export.bench.roof import WORKING_SET, Beside, DeviceRoofs, Roofs
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.cuda import Cuda, pool_of
from gwq_export.native.library import Pool, isa
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder

SAMPLE_SECONDS = 0.02  # a sample repeats its call until it has taken this long


def sample(calls: Iterator[Callable[[], Any]]) -> float:
    """Seconds per call of the next calls, as many as fill SAMPLE_SECONDS but at least one."""
    start = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - start < SAMPLE_SECONDS:
        next(calls)()
        count += 1
    return (time.perf_counter() - start) / count


def _runs(case: Case, ops: Ops, calls: Sequence[Call]) -> tuple[Iterator[Callable[[], Any]], int]:
    """(functions to be timed, how many calls each of them makes).

    On a device, which computes while the next call is made, all calls together: as one graph where
    a program can have so many tokens.
    """
    pool = ops.pool
    if not isinstance(pool, Cuda):
        return (functools.partial(call, ops) for call in cycle(calls)), 1
    if case.tokens <= MAX_TOKENS:
        recorder = Recorder(case.tokens, pool)
        for call in calls:
            call(recorder)
        program = Program(recorder)
        position = case.shape[0] - case.tokens if case.op == "attention" else 0
        return repeat(lambda: program.run(np.zeros(case.tokens, np.int32), position)), len(calls)

    def run() -> None:
        for call in calls:
            call(ops)
        pool.wait()

    return repeat(run), len(calls)


def kernel_rows(
    cases: Sequence[Case] = CASES,
    threads: Sequence[int | None] = (None,),
    repeats: int = 5,
    working_set: int = WORKING_SET,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    emit: Callable[[dict[str, Any]], None] = lambda row: None,
    device: str = "cpu",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time kernels; returns their rows, and those of the roof (`Roofs.rows`).

    Row: {"op", "type", "shape" (rows, columns), "outliers", "tokens", "isa", "threads", "ns"
    (median of a call), "gbps", "roof_gbps", "of_roof", "gflops", "gweights" (matrices: 1e9 weights
    per second and token; else None), "samples_ns", "cpu_info", "gpu_info" ("" without one)}.

    threads: counts to try, None: all CPUs. Calls go round data of `working_set` bytes, and the roof
    is read between samples, so that caches hold nothing of use. emit: is given every row as soon as
    it is measured. device: as for `gwq_export.load`. Raises GwqError.
    """
    pool = None if device == "cpu" else pool_of(device)
    counts = [t or default_threads() for t in threads] if pool is None else [1]
    roofs = Roofs(working_set) if pool is None else DeviceRoofs(pool, working_set)
    ops = {t: Ops(pool or Pool(t)) for t in counts}
    rows: list[dict[str, Any]] = []
    for case in cases:
        for t in counts:
            roof = roofs.made(t, progress)
            built, nbytes, flops = build(case, ops[t], working_set)
            calls, each = _runs(case, ops[t], built)
            beside = Beside(nbytes)
            next(calls)()
            before = roof.now()
            for _ in range(repeats):
                seconds = sample(calls) / each
                after = roof.now()
                beside.add(seconds, before, after)
                before = after
            median = statistics.median(beside.seconds)
            weights = None
            if case.op in ("gemv", "gemm"):
                weights = case.shape[0] * case.shape[1] * case.tokens
            rows.append(
                {
                    "op": case.op,
                    "type": case.type,
                    "shape": list(case.shape),
                    "outliers": case.outliers,
                    "tokens": case.tokens,
                    "isa": isa() if pool is None else "cuda",
                    "threads": t,
                    "ns": int(median * 1e9),
                    **beside.row(),
                    "gflops": flops / median / 1e9,
                    "gweights": weights and weights / median / 1e9,
                    "samples_ns": [int(s * 1e9) for s in beside.seconds],
                    "cpu_info": cpu_name(),
                    "gpu_info": "" if pool is None else pool.name,
                }
            )
            progress("kernels", len(rows), len(cases) * len(counts))
            emit(rows[-1])
    return rows, roofs.rows()
