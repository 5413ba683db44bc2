"""Writes tests/data/golden: run once for a format version, never again: `python tests/make_golden.py`."""

from pathlib import Path

import numpy as np

from gwq_export import tiles
from gwq_export.format import BLOCK, TYPES, padded_rows
from gwq_export.side_table import pack_outliers
from gwq_export.writer import Writer

GOLDEN = Path(__file__).parent / "data" / "golden"
SHAPES = {"w.weight": (21, 330), "v.weight": (8, 70)}  # full and narrow tiles, padding on both sides


def matrix(type, name, rng):
    """[(tensor name, TensorType, shape, bytes)] and the float32 weights of a random matrix."""
    shape = (rows, cols) = SHAPES[name]
    padded = padded_rows(rows), -(-cols // BLOCK) * BLOCK
    table, scales = rng.integers(-32, 32, 16), rng.integers(-32, 32, (padded[0], padded[1] // type.sub)).astype(np.int8)
    table[5], table[9] = -32, 0
    row_scales = (rng.standard_normal(rows) * 10.0 ** rng.integers(-7, 2, rows)).astype(np.float16)  # subnormal ones too
    data = tiles.pack_tiles(type, table, row_scales, scales, rng.integers(0, 1 << type.bits, padded, np.uint8))
    parts, side = [(name, type, shape, data)], None
    if name == "w.weight":
        row, col = np.nonzero(rng.random(shape) < 0.03)
        value = rng.standard_normal(len(row)).astype(np.float16)
        value[:3] = 0, 6e-8, -1e-5
        side = records, offsets = pack_outliers(row, col, value, shape)
        parts += [
            (f"{name}.outliers", TYPES["i8"], records.shape, records),
            (f"{name}.outlier_offsets", TYPES["i32"], offsets.shape, offsets),
        ]
    return parts, tiles.dequantize(type, data, shape, side)


def main():
    GOLDEN.mkdir(exist_ok=True)
    metadata = {"general.architecture": "llama", "general.name": "golden", "tokenizer.ggml.tokens": ["a", "b"]}
    for type in (t for t in TYPES.values() if t.bits):
        rng = np.random.default_rng(type.bits)
        made = [matrix(type, name, rng) for name in SHAPES]
        parts = [part for found, _ in made for part in found]
        with Writer(GOLDEN / f"{type.name}.gguf", metadata, [part[:3] for part in parts]) as writer:
            for name, _, _, data in parts:
                writer.write(name, data)
        (GOLDEN / f"{type.name}.f32").write_bytes(b"".join(weight.astype("<f4").tobytes() for _, weight in made))


if __name__ == "__main__":
    main()
