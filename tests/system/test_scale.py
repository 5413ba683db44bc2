"""At sizes that matter: memory does not grow with depth, and kernels earn their place."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gwq_export
from gwq_export.bench.cases import random_matrix
from gwq_export.format.types import TYPES
from gwq_export.native import library as native
from gwq_export.native.library import F32, Pool
from gwq_export.native.matrix import Linear
from gwq_export.native.ops import Ops
from studies.synthetic import write_llama

SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}


def peak(folder, out):
    """peak_rss_bytes that an export in a process of its own reports. Arrays go back to the system
    at once (glibc), so that holes between those that live do not count.
    """
    command = [
        sys.executable,
        "-m",
        "gwq_export.cli",
        "export",
        folder,
        "--out",
        out,
        "--samples",
        "1",
        "--ctx",
        "64",
        "--json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["peak_rss_bytes"]


def test_export_memory_is_that_of_one_block(tmp_path):
    """8 blocks of 3.9 million weights (7.8 MB each in the files, 15.6 MB in float32) need hardly
    more than 2.
    """
    peaks = []
    for layers in (2, 8):
        write_llama(tmp_path / str(layers), layers, SHAPE)
        peaks.append(peak(tmp_path / str(layers), tmp_path / "m.gguf"))
    assert peaks[1] - peaks[0] < 25e6, peaks


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_peak_memory_is_this_process_alone():
    """A process that a large one starts does not report that one's memory, as ru_maxrss does."""
    ballast = np.ones(100_000_000)  # 800 MB
    code = "from gwq_export.machine import peak_rss; print(peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5e6 < int(done.stdout) < ballast.nbytes / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_goes_back():
    """Also what lies below memory that is in use."""
    code = """if True:
        import numpy as np
        from pathlib import Path
        from gwq_export.machine import release_memory

        def pages():
            return int(Path("/proc/self/statm").read_text().split()[1])

        pieces = [np.ones(8000) for _ in range(1000)]  # 64 kB each, from the heap
        last = np.ones(8000)
        del pieces
        held = pages()
        release_memory()
        print(held - pages())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * os.sysconf("SC_PAGE_SIZE") > 50e6


def test_an_export_gives_back_what_it_freed(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("gwq_export.pipeline.run.release_memory", lambda: given.append(1))
    write_llama(tmp_path / "model", 2, SHAPE)
    reports = []
    options = {"samples": 1, "ctx": 32, "progress": lambda *report: reports.append(report)}
    gwq_export.export(tmp_path / "model", tmp_path / "m.gguf", type="gwq2", tune=0, **options)
    assert len(given) == len(reports) > 5


def seconds(linears, x, y, ops, repeats=7):
    """Median time of one pass over the matrices."""
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        for linear in linears:
            linear(ops, x.ptr, 1, y.ptr)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


def test_kernels_earn_their_place():
    """GEMV of 4-bit tiles with 1 % outliers: far faster than the scalar path, and faster than F16
    from memory.

    The bounds are far below what `gwq-bench --kernels` shows, because other processes may be
    running.
    """
    if len(native.isas()) < 2:
        pytest.skip("this machine has the scalar path only")
    rng = np.random.default_rng(0)
    shape = (2048, 2048)
    ops = Ops(Pool(1))
    x = F32(rng.normal(size=(1, shape[1])))
    y = F32((1, shape[0]))
    tiles = [Linear([random_matrix(TYPES["gwq4"], shape, 0.01, rng)]) for _ in range(24)]
    halves = [Linear([random_matrix(TYPES["f16"], shape, 0, rng)]) for _ in range(24)]  # 200 MB
    lib = native.lib()
    chosen = native.isa()
    try:
        assert lib.gwq_isa_select(b"scalar") == 0
        scalar = seconds(tiles[:2], x, y, ops, 4) / 2
    finally:
        lib.gwq_isa_select(chosen.encode())
    fast, half = seconds(tiles, x, y, ops) / 24, seconds(halves, x, y, ops) / 24
    assert scalar > 4 * fast, (scalar, fast)
    assert half > 1.3 * fast, (half, fast)
