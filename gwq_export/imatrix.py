"""The gradients' importance of every input column as the file that llama-quantize takes with --imatrix."""

from pathlib import Path

import numpy as np

from gwq_export.arch import gguf_name
from gwq_export.calibrate import gradients
from gwq_export.format import TYPES
from gwq_export.totals import COLUMNS
from gwq_export.writer import Writer

FLOOR = 1e-3  # of the mean importance, added to every one: a block of inputs that are always zero is coded all the same


def write_imatrix(out, source, calibration, dataset, device, progress):
    """Write `out`: for each of the decoder's linears the Fisher information of its columns (`totals.COLUMNS`).

    llama.cpp's own files have the mean of x^2 in this place. dataset: the name of the calibration text. Raises GwqError.
    """
    names = {hf: gguf_name(i, row) for i in range(source.layers) for row, hf in source.block(i).items() if row.linear}
    f32, tokens, found = TYPES["f32"], calibration.tokens.numel(), {}
    for name, _, statistics in gradients(source, calibration, [COLUMNS], (), device, progress):
        importance = statistics[COLUMNS]
        found.setdefault(names[name], []).append(importance + max(FLOOR * importance.mean(), 1e-30))
    found = {name: np.stack(rows) for name, rows in sorted(found.items())}  # (matrices of the tensor, columns)
    layout = [(f"{n}.{part}", f32, (len(v), size)) for n, v in found.items() for part, size in (("in_sum2", v.shape[1]), ("counts", 1))]
    samples, ctx = calibration.tokens.shape
    keys = {
        "general.type": "imatrix",
        "imatrix.datasets": [Path(dataset).name],
        "imatrix.chunk_count": np.uint32(samples),
        "imatrix.chunk_size": np.uint32(ctx),
    }
    with Writer(out, keys, layout) as writer:
        for n, v in found.items():
            writer.write(f"{n}.in_sum2", np.float32(v * tokens))  # readers divide by the count
            writer.write(f"{n}.counts", np.full(len(v), tokens, np.float32))
