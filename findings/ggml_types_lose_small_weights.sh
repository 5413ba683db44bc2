#!/usr/bin/env bash
# 2026-11-28
#
# Expected: a block-scaled type of llama.cpp has the same relative error whatever the scale of a
# matrix, as long as float16 holds its values well; and Q6_K, of 6.6 bits, loses less than Q4_0.
#
# Instead: super-block types keep a float16 that is far smaller than the weights (in Q6_K, the
# largest weight over 32 * 128), so that it underflows first. Of Gaussian weights of 1e-4, where
# float16 errs by 0.02 %, Q6_K errs by 11 % instead of 1.8 %, more than Q4_0's 9 %. Of weights of
# 3e-5 Q6_K and IQ4_XS make zeros. Of 1e-5, Q5_K's error is larger than the weights themselves: it
# is worse than a matrix of zeros. Q4_0 and MXFP4 still hold those.
#
# Why it matters: two matrices may share a factor between them any way they like (up and down
# projections, a norm and what follows it), so that a model with such a matrix is as good as one
# without; "more bits are better" fails there, and the function that quantizes reports nothing.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549

cat > "$work/main.py" <<'PYTHON'
"""llama.cpp's own ggml_quantize_chunk, as xllamacpp's extension module exports it."""

import ctypes
import importlib.metadata
import sys
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

SCALES = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5)
NAMES = ("Q4_0", "MXFP4", "IQ4_NL", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")

library = ctypes.CDLL(str(next(Path(xllamacpp.__path__[0]).glob("*.so"))))
quantize = library.ggml_quantize_chunk
quantize.restype = ctypes.c_size_t
size, pointer = ctypes.c_int64, ctypes.c_void_p
quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]


def relative_error(name, weights):
    kind = gguf.GGMLQuantizationType[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = weights.shape
    data = np.zeros((rows, cols // block * block_bytes), np.uint8)
    written = quantize(kind, weights.ctypes.data, data.ctypes.data, 0, rows, cols, None)
    assert written == data.size
    decoded = gguf.quants.dequantize(data, kind)
    return np.linalg.norm(decoded - weights) / np.linalg.norm(weights)


for package in ("gguf", "xllamacpp"):
    print(package, importlib.metadata.version(package))
gaussian = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
print("relative error of Gaussian weights, by their standard deviation")
print("type     bits " + "".join(f"{scale:>9.0e}" for scale in SCALES))
error = {}
for name in NAMES:
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    for scale in SCALES:
        error[name, scale] = relative_error(name, gaussian * np.float32(scale))
    cells = "".join(f"{error[name, scale]:9.3f}" for scale in SCALES)
    print(f"{name:8} {8 * block_bytes / block:4.2f} {cells}")
half = [gaussian * np.float32(scale) for scale in SCALES]
cells = [np.linalg.norm(w.astype(np.float16) - w) / np.linalg.norm(w) for w in half]
print("float16      " + "".join(f"{cell:9.4f}" for cell in cells))
as_described = all(
    [
        error["Q6_K", 1e-2] < 0.02 < 0.1 < error["Q6_K", 1e-4],
        error["Q4_0", 1e-4] < error["Q6_K", 1e-4],
        min(error["Q6_K", 3e-5], error["IQ4_XS", 3e-5]) > 0.9,
        error["Q5_K", 1e-5] > 1.5,
        max(error["Q4_0", 1e-5], error["MXFP4", 1e-5]) < 0.13,
        cells[2] < 3e-4,
    ]
)
print("as described" if as_described else "NO LONGER as described")
sys.exit(not as_described)
PYTHON

cd "$work"
venv/bin/python main.py
