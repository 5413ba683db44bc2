"""The gradients' importance of every input column as the file that llama-quantize takes with
--imatrix.
"""

from pathlib import Path

import numpy as np

from gwq_export.arch.spec import gguf_name
from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.statistics import COLUMNS
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer

# of the mean importance, added to every one: a block of inputs that are always zero is coded all
# the same
FLOOR = 1e-3


def write_imatrix(out, source, calibration, dataset, device, progress):
    """Write `out`: for each of the decoder's linears the Fisher information of its columns
    (`totals.COLUMNS`).

    Sums over tokens, and how many these are, for every matrix of a tensor: those that were routed
    to an expert. llama.cpp's own files have sums of x^2 in this place, and llama-quantize weights
    all columns alike where no token was seen. dataset: the name of the calibration text. Raises
    GwqError.
    """
    names = {
        hf: gguf_name(i, row)
        for i in range(source.layers)
        for row, hf in source.block(i).items()
        if row.linear
    }
    f32, tokens, found = TYPES["f32"], calibration.tokens.numel(), {}
    for name, _, statistics in gradients(source, calibration, [COLUMNS], (), device, progress):
        sums, seen = statistics[COLUMNS] * tokens, calibration.reached.get(name, tokens)
        found.setdefault(names[name], []).append((sums + max(FLOOR * sums.mean(), 1e-30), seen))
    found = {
        n: [np.array(part, np.float32) for part in zip(*rows, strict=True)]
        for n, rows in sorted(found.items())
    }
    layout = [
        (f"{n}.{part}", f32, (len(sums), size))
        for n, (sums, _) in found.items()
        for part, size in (("in_sum2", sums.shape[1]), ("counts", 1))
    ]
    samples, ctx = calibration.tokens.shape
    keys = {
        "general.type": "imatrix",
        "imatrix.datasets": [Path(dataset).name],
        "imatrix.chunk_count": np.uint32(samples),
        "imatrix.chunk_size": np.uint32(ctx),
    }
    with Writer(out, keys, layout) as writer:
        for n, (sums, seen) in found.items():
            writer.write(f"{n}.in_sum2", sums)
            writer.write(f"{n}.counts", seen)
