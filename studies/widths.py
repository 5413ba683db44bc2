"""Narrow matrices: what a budget makes of every width from 33 to 130, beside Q4_0 and IQ4_NL.

    studies/widths [--widths 33-130] [--rows 96]

For each width, some random layers with correlated inputs are stored in the 4-bit ggml type, their
codes found as for our own types (with error feedback, which ggml's quantizer has not). Where 32
does not divide the width, llama.cpp stores F16; here the ggml type then gets columns of zeros up to
the next 32, which no GGUF file can have. The same bytes are then spent as
`gwq-export --size` spends them. Printed is the loss, 1/2 sum_i s_i E_i H E_i^T summed over the
layers, by the budget's choice relative to the ggml type's.
"""

import argparse
from collections import Counter
from functools import partial

import numpy as np

from gwq_export.format.decoding import dequantize
from gwq_export.format.ggml_types import decode_ggml
from gwq_export.format.types import TYPES
from gwq_export.pipeline.plan import file_bytes
from gwq_export.quantization.allocate import allocate, fill
from gwq_export.quantization.loss_model import Sample, choices, offered
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe

LAYERS = 14  # matrices of two blocks
TYPES_OF_GGML = ("q4_0", "iq4_nl")
GGML_BLOCK = 32


def layer(rows, cols, seed):
    """A weight, and the statistics of correlated inputs and of the rows, float32."""
    rng = np.random.default_rng([seed, rows, cols])
    x = rng.normal(size=(4 * cols, 8)) @ rng.normal(size=(8, cols))
    x += rng.normal(size=x.shape) * rng.uniform(0.2, 2, cols)
    statistics = {
        "hessian": (x.T @ x / len(x)).astype(np.float32),
        "rows": rng.uniform(0.1, 2, rows).astype(np.float32),
    }
    return rng.normal(size=(rows, cols)).astype(np.float32), statistics


def loss(weight, statistics, recipe):
    """The loss of storing a matrix by a recipe, as `calibration.statistics` defines it."""
    parts = quantize(weight, statistics, recipe)
    if recipe.type.bits:
        side = (parts[1], parts[2].view(np.int32)) if len(parts) > 1 else None
        stored = dequantize(recipe.type, parts[0], weight.shape, side)
    else:
        stored = decode_ggml(recipe.type, parts[0], *weight.shape)
    error = (stored - weight).astype(np.float64)
    by_row = (error @ statistics["hessian"] * error).sum(1)
    return float((by_row * statistics["rows"]).sum()) / 2


def padded(weight, statistics):
    """The same layer with columns of zeros up to the next whole block of the ggml types."""
    more = -weight.shape[1] % GGML_BLOCK
    hessian = np.pad(statistics["hessian"], [(0, more)] * 2)
    return np.pad(weight, [(0, 0), (0, more)]), {**statistics, "hessian": hessian}


def ratios(cols, rows=96):
    """{ggml type: (loss by budget / its loss, {type: how often it was taken})} of one width."""
    layers = [layer(rows, cols, seed) for seed in range(LAYERS)]
    wide = [padded(*layer) for layer in layers]
    size = partial(file_bytes, "w", (rows, cols))
    options = [
        choices(Sample(*layer), Recipe(TYPES["gwq4"]), size, offered(cols)) for layer in layers
    ]
    out = {}
    for name in TYPES_OF_GGML:
        recipe = Recipe(TYPES[name])
        nbytes = LAYERS * file_bytes("w", wide[0][0].shape, recipe)
        recipes = fill(options, allocate(options, nbytes), [size] * LAYERS, nbytes)
        ours = sum(loss(*layer, r) for layer, r in zip(layers, recipes, strict=True))
        theirs = sum(loss(*layer, recipe) for layer in wide)
        out[name] = ours / theirs, Counter(r.type.name for r in recipes)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--widths", default="33-130", help="first-last (%(default)s)")
    p.add_argument("--rows", type=int, default=96)
    args = p.parse_args()
    first, _, last = args.widths.partition("-")
    print("width " + "".join(f"{'beside ' + name:30}" for name in TYPES_OF_GGML))
    worst = 0.0
    for cols in range(int(first), int(last or first) + 1):
        found = ratios(cols, args.rows)
        worst = max(worst, *(ratio for ratio, _ in found.values()))
        cells = [
            f"{r:.3f} {' '.join(f'{n} {t}' for t, n in sorted(c.items()))}"
            for r, c in found.values()
        ]
        print(f"{cols:5} " + "".join(f"{cell:30}" for cell in cells), flush=True)
    print(f"worst: {worst:.3f}")


if __name__ == "__main__":
    main()
