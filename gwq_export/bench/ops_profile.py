"""Where the time of a decoded token goes, operation by operation."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from gwq_export.bench.models import GEN, PROMPT
from gwq_export.errors import GwqError
from gwq_export.format.types import TYPES_BY_ID
from gwq_export.machine import cpu_name
from gwq_export.native.library import isa
from gwq_export.native.recorder import Op
from gwq_export.runtime.model import Model


def profile_rows(
    path: str | PathLike[str],
    prompt: int | None = None,
    gen: int | None = None,
    threads: int | None = None,
    repeats: int = 5,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    device: str = "cpu",
    gpu_layers: int | None = None,
) -> list[dict[str, Any]]:
    """Rows of the operations of a token after `prompt` others, those that take longest first.

    Row: {"op" (operations that run as one, joined by "+"), "type", "shape" (outputs and inputs;
    both None without a matrix), "calls", "ns" (both for one token), "share" (of the token's time),
    "gbps" (of weights, or None), "isa", "threads", "cpu_info", "gpu_info"}. Of `repeats` runs of
    `gen` tokens each the fastest counts. The clock is read after every operation, which adds to its
    time; a device is waited for each time, where else it has a whole token as one graph. device,
    gpu_layers: as for `gwq_export.load`. Raises GwqError.
    """
    model = Model(path, device, threads, gpu_layers=gpu_layers)
    prompt = min(PROMPT, model.ctx // 2) if prompt is None else prompt
    gen = GEN if gen is None else gen
    if gen < 1 or not 0 < prompt < model.ctx:
        raise GwqError(
            f"--ops-profile: -n must be at least 1, and -p lie in 1..{model.ctx - 1}, as the"
            f" context is {model.ctx}"
        )
    session = model.session(prompt + 1)
    session.forward(np.zeros(prompt, np.int32))
    programs = session.token_programs()
    ops = [(op, program.pool) for program in programs for op in program.ops]
    runs = []
    for r in range(repeats):
        runs.append(np.zeros(len(ops), np.int64))
        ends = np.cumsum([len(program.ops) for program in programs])
        parts = np.split(runs[-1], ends[:-1])
        for _ in range(gen):
            for program, times in zip(programs, parts, strict=True):
                program.run(np.zeros(1, np.int32), prompt, times)
        progress("operations", r + 1, repeats)
    best = min(runs, key=np.sum) / gen
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (op, pool), ns in zip(ops, best.tolist(), strict=True):
        name, type, shape, nbytes = _described(op)
        row = found.setdefault(
            (name, type, shape, pool.on_device),
            {
                "op": name,
                "type": type,
                "shape": shape,
                "calls": 0,
                "ns": 0.0,
                "bytes": 0,
                "isa": "cuda" if pool.on_device else isa(),
                "threads": pool.threads,
                "cpu_info": cpu_name(),
                "gpu_info": pool.name if pool.on_device else "",
            },
        )
        row["calls"] += 1
        row["ns"] += ns
        row["bytes"] += nbytes
    total = best.sum()
    rows = []
    for row in sorted(found.values(), key=lambda row: -row["ns"]):
        nbytes = row.pop("bytes")
        row["share"] = row["ns"] / total
        row["gbps"] = nbytes / row["ns"] if nbytes else None
        rows.append(row)
    return rows


def _described(op: Op) -> tuple[str, str | None, tuple[int, int] | None, int]:
    """(name, types, (outputs, inputs), bytes of weights) of an operation."""
    name = "+".join(op.parts)
    matrices = op.fields.get("m", [])
    if not matrices:
        return name, None, None, 0
    types = "+".join(dict.fromkeys(TYPES_BY_ID[m.type].name for m in matrices))
    shape = sum(m.rows for m in matrices), matrices[0].cols
    return name, types, shape, sum(m.data_bytes + m.outlier_bytes for m in matrices)
