"""Writes tests/data/golden: run once for a format version, never again: `python tests/make_golden.py`."""

from pathlib import Path

import numpy as np

from gwq_export import tiles
from gwq_export.format import BLOCK, TYPES, padded_rows
from gwq_export.side_table import pack_outliers
from gwq_export.writer import Writer

GOLDEN = Path(__file__).parent / "data" / "golden"
ROWS, COLS = 21, 330  # two row groups, a full tile and one of two blocks, padding on both sides


def main():
    GOLDEN.mkdir(exist_ok=True)
    for type in (t for t in TYPES.values() if t.bits):
        rng = np.random.default_rng(type.bits)
        rows, cols = padded_rows(ROWS), -(-COLS // BLOCK) * BLOCK
        table, scales = rng.integers(-32, 32, 16), rng.integers(-32, 32, (rows, cols // type.sub)).astype(np.int8)
        row_scales = (rng.standard_normal(ROWS) * 10.0 ** rng.integers(-7, 2, ROWS)).astype(np.float16)  # subnormal ones too
        data = tiles.pack_tiles(type, table, row_scales, scales, rng.integers(0, 1 << type.bits, (rows, cols), np.uint8))
        row, col = np.nonzero(rng.random((ROWS, COLS)) < 0.03)
        records, offsets = pack_outliers(row, col, rng.standard_normal(len(row)).astype(np.float16), (ROWS, COLS))
        layout = [("w.weight", type, (ROWS, COLS)), ("w.weight.outliers", TYPES["i8"], records.shape),
                  ("w.weight.outlier_offsets", TYPES["i32"], offsets.shape)]  # fmt: skip
        with Writer(GOLDEN / f"{type.name}.gguf", {"general.architecture": "llama", "general.name": "golden"}, layout) as writer:
            for (name, _, _), part in zip(layout, (data, records, offsets), strict=True):
                writer.write(name, part)
        weight = tiles.dequantize(type, data, (ROWS, COLS), (records, offsets))
        (GOLDEN / f"{type.name}.f32").write_bytes(weight.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
