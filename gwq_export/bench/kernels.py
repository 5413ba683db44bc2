"""Rows of single kernels: GB/s, share of the memory roof, operations per second."""

import statistics
import time
from itertools import cycle

from gwq_export.bench.cases import CASES, build
from gwq_export.bench.roof import WORKING_SET, Beside, Roofs
from gwq_export.machine import cpu_name, default_threads
from gwq_export.native.library import Pool, isa
from gwq_export.native.ops import Ops

LEAST = 0.02  # seconds of one sample, if a single call does not take longer


def sample(calls):
    """Seconds per call of the next calls, as many as fill LEAST."""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < LEAST:
        next(calls)()
        count += 1
    return (time.perf_counter() - start) / count


def kernel_rows(
    cases=CASES,
    threads=(None,),
    repeats=5,
    working_set=WORKING_SET,
    progress=lambda phase, done, total: None,
):
    """Rows, and those of the roof (`Roofs.rows`).

    Row: {"op", "type", "shape" (rows, columns), "outliers", "tokens", "isa", "threads", "ns"
    (median of a call), "gbps", "roof_gbps", "of_roof", "gflops", "gweights" (matrices: 1e9 weights
    per second and token; else None), "samples_ns", "cpu_info"}. Calls go round data of
    `working_set` bytes, and the roof is read between samples, so that caches hold nothing of use.
    """
    counts = [t or default_threads() for t in threads]
    roofs, rows, ops = Roofs(working_set), [], {t: Ops(Pool(t)) for t in counts}
    for case in cases:
        for t in counts:
            roof = roofs[t]
            calls, nbytes, flops = build(case, ops[t], working_set)
            calls, found = cycle(calls), Beside(nbytes)
            next(calls)()
            before = roof.now()
            for _ in range(repeats):
                seconds, after = sample(calls), roof.now()
                found.add(seconds, before, after)
                before = after
            median = statistics.median(found.seconds)
            weights = (
                case.shape[0] * case.shape[1] * case.tokens if case.op in ("gemv", "gemm") else None
            )
            rows.append(
                {
                    "op": case.op,
                    "type": case.type,
                    "shape": list(case.shape),
                    "outliers": case.outliers,
                    "tokens": case.tokens,
                    "isa": isa(),
                    "threads": t,
                    "ns": int(median * 1e9),
                    **found.row(),
                    "gflops": flops / median / 1e9,
                    "gweights": weights and weights / median / 1e9,
                    "samples_ns": [int(s * 1e9) for s in found.seconds],
                    "cpu_info": cpu_name(),
                }
            )
            progress("kernels", len(rows), len(cases) * len(counts))
    return rows, roofs.rows()
