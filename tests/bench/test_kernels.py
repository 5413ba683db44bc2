"""gwq-bench: the memory roof and rows of kernels."""

import functools
import json
import statistics

import numpy as np
import pytest

from gwq_export.bench import cases, kernels, roof
from gwq_export.bench.cases import MATRIX_TYPES, Case, build, random_matrix
from gwq_export.format.types import TYPES
from gwq_export.native.library import Pool
from gwq_export.native.ops import Ops
from tests.support.cli import call


def test_roof_tries_every_way_and_keeps_the_best(monkeypatch):
    speed = {(s, a): 1.0 + s + a / 1e4 for s in roof.STREAMS for a in roof.DISTANCES}
    clock, reads = [0.0], []

    def read(pool, buffer, streams, ahead):
        reads.append((streams, ahead))
        clock[0] += buffer.nbytes / 1e9 / speed[streams, ahead]

    monkeypatch.setattr(roof, "read_roof", read)
    monkeypatch.setattr(roof.time, "perf_counter", lambda: clock[0])
    roofs = roof.Roofs()
    first = roofs.made(2)
    assert {(r["streams"], r["ahead"]): pytest.approx(r["gbps"]) for r in roofs.rows()} == speed
    assert {r["threads"] for r in roofs.rows()} == {2}
    assert set(reads) == set(speed)
    assert roofs.made(2) is first
    # what the machine does now; the last is none of the best
    speed |= {(8, 4096): 0.5, (8, 2048): 40.0, (1, 0): 99.0}
    assert first.now() == pytest.approx(40)


def test_shares_are_taken_from_neighbours():
    beside = roof.Beside(nbytes=10e9)
    for seconds, before, after in [(1, 20, 20), (2, 9, 11), (1, 30, 10)]:
        beside.add(seconds, before, after)
    # 0.5, 0.5, 0.5: the machine's speed cancels
    assert beside.row() == {"gbps": 10, "roof_gbps": 20, "of_roof": 0.5}


def test_roof_reads_with_the_library():
    assert all(
        0.01 < r["gbps"] < 10000 for r in [roof.Roof(1, np.ones(1 << 20, np.uint8)).rows()[0]]
    )


@pytest.mark.parametrize("name", MATRIX_TYPES)
def test_random_matrices_are_finite(name):
    m = random_matrix(
        TYPES[name], (48, 320), 0.02 if TYPES[name].bits else 0, np.random.default_rng(1)
    )
    dense = m.dequantize(Pool(1))
    assert np.isfinite(dense).all() and len(np.unique(dense)) > 100
    assert np.array_equal(m.copy().dequantize(Pool(1)), dense)
    assert m.copy().struct.data != m.struct.data


SMALL = [
    Case("gemv", "gwq3", (64, 256), 1, 0.01),
    Case("gemm", "f16", (64, 256), 8),
    Case("attention", "f16", (40, 128), 2),
    Case("rmsnorm", "f32", (8, 256), 8),
    Case("shortconv", "f32", (8, 256), 8),
    Case("rope", "f32", (8, 256), 8),
    Case("activate", "f32", (8, 256), 8),
    Case("add", "f32", (8, 256), 8),
]


class Recorder(Ops):
    """Ops that note which op got which data."""

    def __init__(self, pool):
        super().__init__(pool)
        self.seen = []

    def __getattribute__(self, name):
        method = super().__getattribute__(name)
        if name not in ("matmul", "attention", "rmsnorm", "rope", "activate", "add", "shortconv"):
            return method

        def noted(*args):
            self.seen.append((name, args))
            return method(*args)

        return noted


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.op)
def test_every_call_runs_its_op_on_data_of_its_own(case):
    ops = Recorder(Pool(1))
    calls, nbytes, flops = build(case, ops, 100_000)
    assert len(calls) == 100_000 // nbytes + 1
    for call_ in calls:
        call_(ops)
    assert {name for name, _ in ops.seen} == {"matmul" if case.op.startswith("gem") else case.op}
    # attention: its keys
    data = {
        args[0][0].data if name == "matmul" else args[name == "attention"]
        for name, args in ops.seen
    }
    assert len(data) == len(calls)
    rows, cols = case.shape
    want = {
        "attention": (2 * rows * cols * 2, 4 * 512 * (39 + 40)),
        "activate": (2 * rows * cols * 4, 5 * rows * cols),
        "gemm": (rows * cols * 2, 2 * 8 * rows * cols),
        "gemv": (nbytes, 2 * rows * cols),
        "shortconv": (3 * rows * cols * 4, 7 * rows * cols),
    }
    if case.op in want:
        assert (nbytes, flops) == want[case.op]


def test_the_table_has_every_op_type_and_shape():
    assert {c.op for c in cases.CASES} == set(cases.OPS) == {c.op for c in SMALL}
    assert {(c.type, c.shape) for c in cases.CASES if c.op == "gemv"} == {
        (t, s) for t in MATRIX_TYPES for s in cases.SHAPES
    }
    chosen = cases.select(["gemv"], ["gwq4", "f16"], ["4096x11008"])
    assert {(c.op, c.type, c.shape) for c in chosen} == {
        ("gemv", t, (4096, 11008)) for t in ("gwq4", "f16")
    }
    assert cases.select() == cases.CASES


def test_kernel_rows():
    ticks, seen = [], []
    rows, cells = kernels.kernel_rows(
        SMALL[:3], [1, 2], 3, 1 << 20, lambda *a: ticks.append(a), seen.append
    )
    assert seen == rows
    assert [(r["op"], r["threads"]) for r in rows] == [(c.op, t) for c in SMALL[:3] for t in (1, 2)]
    for r in rows:
        assert 0 < r["ns"] == pytest.approx(statistics.median(r["samples_ns"]), abs=1)
        assert len(r["samples_ns"]) == 3
        assert r["gbps"] > 0 and r["roof_gbps"] > 0 and r["of_roof"] > 0 and r["gflops"] > 0
    assert rows[0]["shape"] == [64, 256]
    assert rows[0]["outliers"] == 0.01
    assert rows[0]["gweights"] > 0
    assert rows[4]["gweights"] is None
    assert len(cells) == 2 * len(roof.STREAMS) * len(roof.DISTANCES)
    assert ticks[-1] == ("kernels", 6, 6)


def test_kernels_command(capsys, monkeypatch):
    monkeypatch.setattr(cases, "CASES", SMALL)
    monkeypatch.setattr(
        kernels, "kernel_rows", functools.partial(kernels.kernel_rows, working_set=1 << 20)
    )
    status, out, err = call(
        capsys, "bench", "--kernels", "--ops", "gemv,add", "-t", "1", "-r", 1, "--json"
    )
    assert status == 0, err
    result = json.loads(out.splitlines()[-1])
    assert [(r["op"], r["type"]) for r in result["rows"]] == [("gemv", "gwq3"), ("add", "f32")]
    assert "| gemv | gwq3 | 64x256 | 1 | 1.0% |" in out
    assert "| 1 | 4096 | " in out
    assert len(result["roof"]) == 25
