"""Writes the files of tests/data/golden that are missing: `python -m tests.support.make_golden`.

The files of a format version are written once.
"""

import numpy as np

from gwq_export.format.decoding import dequantize
from gwq_export.format.outliers import pack_outliers
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import BLOCK, TYPES, padded_rows
from gwq_export.format.writer import Writer
from tests.support.paths import DATA

GOLDEN = DATA / "golden"
TILES = [type for type in TYPES.values() if type.bits]
# name -> (seed, [(tensor, type, shape)]): full and narrow tiles, short blocks, padded rows
FILES = {
    **{
        type.name: (type.bits, [("w.weight", type, (21, 330)), ("v.weight", type, (8, 112))])
        for type in TILES
    },
    "experts": (5, [(f"{type.name}.weight", type, (3, 19, 70)) for type in TILES]),
}


def matrix(type, shape, outliers, rng):
    """(bytes, records, offsets, float32 weights) of a random matrix.

    outliers: how many, None for a random number, 0 for no table.
    """
    rows, cols = shape
    padded = padded_rows(rows), -(-cols // BLOCK) * BLOCK
    table = rng.integers(-32, 32, 16)
    scales = rng.integers(-32, 32, (padded[0], padded[1] // type.sub)).astype(np.int8)
    table[5], table[9] = -32, 0
    # subnormal ones too
    row_scales = (rng.standard_normal(rows) * 10.0 ** rng.integers(-7, 2, rows)).astype(np.float16)
    data = pack_tiles(
        type,
        table,
        row_scales,
        scales,
        rng.integers(0, 1 << type.bits, padded, np.uint8),
        exponent=int(rng.integers(-24, 12)),
        cols=cols,
    )
    if outliers == 0:
        return data, None, None, dequantize(type, data, shape)
    chosen = (
        rng.random(shape) < 0.03
        if outliers is None
        else rng.permuted(np.arange(rows * cols) < outliers).reshape(shape)
    )
    row, col = np.nonzero(chosen)
    value = rng.standard_normal(len(row)).astype(np.float16)
    value[:3] = 0, 6e-8, -1e-5
    side = pack_outliers(row, col, value, shape)
    return data, *side, dequantize(type, data, shape, side)


def tensor(name, type, shape, rng):
    """[(tensor name, TensorType, shape, bytes)] and the float32 weights of a random tensor."""
    if len(shape) == 2:
        data, records, offsets, weights = matrix(
            type, shape, None if name == "w.weight" else 0, rng
        )
    else:
        every = [matrix(type, shape[1:], 40, rng) for _ in range(shape[0])]
        data, records, offsets, weights = (np.stack(part) for part in zip(*every, strict=True))
    parts = [(name, type, shape, data)]
    if records is not None:
        parts.append((f"{name}.outliers", TYPES["i8"], records.shape, records))
        parts.append((f"{name}.outlier_offsets", TYPES["i32"], offsets.shape, offsets))
    return parts, weights


def main():
    GOLDEN.mkdir(exist_ok=True)
    metadata = {
        "general.architecture": "llama",
        "general.name": "golden",
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    for file, (seed, tensors) in FILES.items():
        if (GOLDEN / f"{file}.gguf").exists():
            continue
        rng = np.random.default_rng(seed)
        made = [tensor(*one, rng) for one in tensors]
        parts = [part for found, _ in made for part in found]
        with Writer(GOLDEN / f"{file}.gguf", metadata, [part[:3] for part in parts]) as writer:
            for name, _, _, data in parts:
                writer.write(name, data)
        (GOLDEN / f"{file}.f32").write_bytes(
            b"".join(weight.astype("<f4").tobytes() for _, weight in made)
        )


if __name__ == "__main__":
    main()
