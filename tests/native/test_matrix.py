"""Matrices in every instruction set: checked, and decoded to the bits of numpy.

GWQ_LIBRARY=/path/to/libgwq.so tests another build, GWQ_SIMDE_LIBRARY another SIMDe build.
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwq_export.bench.cases import MATRIX_TYPES, TILE_TYPES
from gwq_export.format import types as fmt
from gwq_export.format.types import ffi
from gwq_export.native.library import pointer
from tests.support.kernel_cases import (
    PATTERNS,
    SHAPES,
    SPARSE_TYPES,
    Loaded,
    guarded,
    make,
    patterns,
    random,
    same_bits,
    width_fits,
)
from tests.support.paths import ISAS


@functools.cache
def cached(type_name, rows, cols, pattern):
    """A case and its weights, shared by the instruction sets."""
    case = make(type_name, rows, cols, pattern)
    return case, case.full


@pytest.mark.parametrize("type_name", MATRIX_TYPES)
def test_dequantize_is_exact(lib, pool, type_name):
    for rows, cols in SHAPES:
        if width_fits(type_name, cols):
            for pattern in patterns(type_name):
                case, full = cached(type_name, rows, cols, pattern)
                same_bits(Loaded(lib, case).dequantize(lib, pool(2)), full)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MATRIX_TYPES),
    st.integers(1, 70),
    st.integers(1, 600),
    st.sampled_from(PATTERNS),
    st.integers(0, 2**32 - 1),
)
def test_every_isa_dequantizes_to_the_same_bits(select, type_name, rows, cols, pattern, seed):
    if not width_fits(type_name, cols):
        cols = -(-cols // 32) * 32
    case = make(type_name, rows, cols, pattern if type_name in SPARSE_TYPES else PATTERNS[0], seed)
    for isa in ISAS:
        try:
            lib = select(isa)
        except pytest.skip.Exception:
            continue
        same_bits(Loaded(lib, case).dequantize(lib, ffi.NULL), case.full)


def status(lib, **changes):
    """gwq_matrix_check of a good gwq3 matrix of 20 x 100 with `changes` to it."""
    loaded = Loaded(lib, make("gwq3", 20, 100, random))
    table = changes.pop("table", {})
    for at, entry in table.items():
        loaded.data[at] = entry & 255
    for name, value in changes.items():
        setattr(loaded.host, name, getattr(loaded.host, name) + value)
    return ffi.typeof("enum gwq_status").elements[lib.gwq_matrix_check(loaded.host)]


def test_damaged_matrices_are_refused(lib):
    assert status(lib) == status(lib, table={0: -32, 15: 31}) == "GWQ_OK"
    for at in range(fmt.TABLE):
        assert (
            status(lib, table={at: 32})
            == status(lib, table={at: -33})
            == status(lib, table={at: -128})
            == "GWQ_E_TABLE"
        )
    assert status(lib, table={fmt.EXPONENT_AT: 64}) == "GWQ_OK"
    for exponent in (65, -65, -128):
        assert status(lib, table={fmt.EXPONENT_AT: exponent}) == "GWQ_E_EXPONENT"
    assert (
        status(lib, data_bytes=-1)
        == status(lib, data_bytes=1)
        == status(lib, rows=16)
        == status(lib, cols=64)
        == "GWQ_E_SIZE"
    )
    assert status(lib, rows=-20) == status(lib, cols=-100) == "GWQ_E_SHAPE"
    assert status(lib, outlier_bytes=-1) == status(lib, offset_bytes=4) == "GWQ_E_OFFSETS"


def test_sizes_are_those_of_python(lib):
    for type in (fmt.TYPES[name] for name in TILE_TYPES):
        for rows, cols in [*SHAPES, (151936, 896), (2**31 - 1, 64)]:
            assert lib.gwq_matrix_bytes(type.id, rows, cols) == type.nbytes(rows, cols)
    assert lib.gwq_matrix_bytes(fmt.TYPES["gwq4"].id, 2**31 - 1, 2**31 - 1) == fmt.TYPES[
        "gwq4"
    ].nbytes(2**31 - 1, 2**31 - 1)


def test_embedding_rows(lib):
    """Rows by number, in any order and repeatedly."""
    for type_name in MATRIX_TYPES:
        case = make(type_name, 50, 96, random)
        ids = np.array([49, 0, 17, 17, 31, 48], np.int32)
        group = guarded(np.empty((fmt.ROWS, 96), np.float32))
        out = guarded(np.empty((len(ids), 96), np.float32))
        m = Loaded(lib, case)
        assert (
            lib.gwq_embed(
                m.struct, pointer(ids, "int32_t *"), len(ids), pointer(group), pointer(out)
            )
            == 0
        )
        same_bits(out, case.full[ids])
