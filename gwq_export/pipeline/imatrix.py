"""The importance of every input column, by the gradients, as llama-quantize --imatrix takes it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gwq_export.arch.spec import gguf_name
from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.statistics import COLUMNS
from gwq_export.calibration.text import Calibration
from gwq_export.compute.results import Memory
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer
from gwq_export.hf.source import Source

# Of the mean importance, added to every one: a block of inputs that are always zero is coded all
# the same.
FLOOR = 1e-3


def write_imatrix(
    out: str | Path,
    source: Source,
    calibration: Calibration,
    datasets: Sequence[str | Path],
    device: str,
    progress: Callable[[str, int, int], None],
    keep: Memory | None = None,
) -> None:
    """Write `out`: for each decoder linear the Fisher information of its columns (`COLUMNS`).

    For every matrix of a tensor the file has sums over tokens, and how many tokens these are: of an
    expert's matrix, those that were routed to it. llama.cpp's own files have sums of x^2 in this
    place, and llama-quantize weights all columns alike where no token was seen. datasets: the files
    of the calibration text. keep: for the hidden states, empty. Raises GwqError.
    """
    gguf_names = {
        hf: gguf_name(i, row)
        for i in range(source.layers)
        for row, hf in source.block(i).items()
        if row.linear
    }
    tokens = calibration.tokens.numel()
    matrices: dict[str, list[tuple[np.ndarray, int]]] = {}  # tensor -> (sums, tokens) of each
    items = gradients(source, calibration, [COLUMNS], (), device, progress, keep)
    for name, _, statistics in items:
        sums = statistics[COLUMNS] * tokens
        sums = sums + max(FLOOR * sums.mean(), 1e-30)
        matrices.setdefault(gguf_names[name], []).append(
            (sums, calibration.reached.get(name, tokens))
        )
    tensors = {}
    for name, rows in sorted(matrices.items()):
        tensors[f"{name}.in_sum2"] = np.array([sums for sums, _ in rows], np.float32)
        tensors[f"{name}.counts"] = np.array([[seen] for _, seen in rows], np.float32)
    samples, ctx = calibration.tokens.shape
    keys = {
        "general.type": "imatrix",
        "imatrix.datasets": [Path(path).name for path in datasets],
        "imatrix.chunk_count": np.uint32(samples),
        "imatrix.chunk_size": np.uint32(ctx),
    }
    layout = [(name, TYPES["f32"], array.shape) for name, array in tensors.items()]
    with Writer(out, keys, layout) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
