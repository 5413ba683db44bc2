"""A small file of ours."""

import numpy as np
import pytest

from gwq_export.format.outliers import pack_outliers
from gwq_export.format.tiles import pack_tiles
from gwq_export.format.types import TYPES
from tests.support.gguf_files import write


@pytest.fixture
def small(tmp_path):
    """A small file of ours: a tile tensor with two outliers, and a vector; (path, bytes)."""
    records, offsets = pack_outliers([0, 3], [1, 2], np.array([1, 2], np.float16), (4, 64))
    type = TYPES["gwq4"]
    tensors = [
        ("w", type, (4, 64)),
        ("w.outliers", TYPES["i8"], records.shape),
        ("w.outlier_offsets", TYPES["i32"], offsets.shape),
        ("n", TYPES["f32"], (3,)),
    ]
    head = np.zeros(16, np.int8), np.ones(4, np.float16)
    dense = pack_tiles(type, *head, np.ones((16, 4), np.int8), np.zeros((16, 64), np.uint8))
    data = {"w": dense, "w.outliers": records, "w.outlier_offsets": offsets}
    data["n"] = np.ones(3, np.float32)
    metadata = {
        "general.architecture": "llama",
        "words": ["a", "bc", "def"],
        "ints": np.arange(5, dtype=np.int32),
        "x": 1.5,
    }
    path = write(tmp_path / "small.gguf", metadata, tensors, data)
    return path, path.read_bytes()
