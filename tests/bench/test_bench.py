"""gwq-bench: the roof, rows of kernels and of files, and llama.cpp beside ours."""

import csv
import functools
import importlib.util
import io
import json
import statistics
import subprocess
import sys

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.bench import cases, contender, kernels, models, roof
from gwq_export.bench.cases import MATRIX_TYPES, Case, build, random_matrix
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.native.library import Pool
from gwq_export.native.ops import Ops
from tests.support.cli import assert_one_line, call

NORMS = 9 * 256 * 4  # bytes of the bundled model's vectors
PEER = importlib.util.find_spec("xllamacpp") is not None
needs_peer = pytest.mark.skipif(not PEER, reason="needs the interop extra: pip install xllamacpp")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roof, "WORKING_SET", 4 << 20)
    monkeypatch.setattr(roof, "ROUNDS", 1)


# --- the roof ---


def test_roof_tries_every_way_and_keeps_the_best(monkeypatch):
    speed = {(s, a): 1.0 + s + a / 1e4 for s in roof.STREAMS for a in roof.DISTANCES}
    clock, reads = [0.0], []

    def read(pool, buffer, streams, ahead):
        reads.append((streams, ahead))
        clock[0] += buffer.nbytes / 1e9 / speed[streams, ahead]

    monkeypatch.setattr(roof, "read_roof", read)
    monkeypatch.setattr(roof.time, "perf_counter", lambda: clock[0])
    roofs = roof.Roofs()
    first = roofs[2]
    assert {(r["streams"], r["ahead"]): pytest.approx(r["gbps"]) for r in roofs.rows()} == speed
    assert {r["threads"] for r in roofs.rows()} == {2}
    assert set(reads) == set(speed)
    assert roofs[2] is first
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


# --- kernels ---


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
        if name not in ("matmul", "attention", "rmsnorm", "rope", "activate", "add"):
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
        call_()
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
    ticks = []
    rows, cells = kernels.kernel_rows(SMALL[:3], [1, 2], 3, 1 << 20, lambda *a: ticks.append(a))
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


# --- files ---


@pytest.mark.parametrize("format", ["md", "json", "jsonl", "csv"])
def test_file(exported, capsys, format):
    path, result = exported(type="gwq4")
    threads = "1,2" if format == "md" else "1"
    status, out, err = call(
        capsys, "bench", path, "-p", 6, "-n", 2, "-r", 2, "-t", threads, "-o", format, "--json"
    )
    assert status == 0, err
    *_, last = out.splitlines()
    rows, text = json.loads(last)["rows"], out[: out.rindex(last)]
    assert [(r["n_prompt"], r["n_gen"], r["n_threads"]) for r in rows] == [
        (p, g, int(t)) for t in threads.split(",") for p, g in ((6, 0), (0, 2))
    ]
    row = rows[1]
    assert len(row["samples_ts"]) == 2
    assert row["avg_ts"] == pytest.approx(np.mean(row["samples_ts"]))
    assert row["avg_ts"] == pytest.approx(np.mean([2e9 / ns for ns in row["samples_ns"]]), rel=1e-4)
    assert row["model_size"] == path.stat().st_size
    assert row["model_n_params"] == result["params"]
    assert row["model_type"] == "llama gwq4"
    # tied: the embedding is the head
    assert row["bytes_per_token"] == sum(t.nbytes for t in Reader(path).tensors.values()) - NORMS
    assert row["gbps"] == pytest.approx(
        row["bytes_per_token"] * statistics.median(row["samples_ts"]) / 1e9, rel=1e-4
    )
    assert row["of_roof"] > 0
    assert row["times_as_fast"] is None
    assert row["backends"].startswith("gwq-")
    assert 0 < row["load_ns"] < row["first_token_ns"] < 60e9 and 20e6 < row["peak_bytes"] < 1e9
    if format == "md":
        assert "| test |" in text
        assert "pp6" in text
        assert "tg2" in text
        assert "times as fast" not in text
    else:
        parse = {
            "json": json.loads,
            "jsonl": lambda t: list(map(json.loads, t.split("\n")[:-1])),
            "csv": lambda t: list(csv.DictReader(io.StringIO(t))),
        }
        found = parse[format](text)
        assert [(str(r["n_prompt"]), r["model_filename"]) for r in found] == [
            ("6", str(path)),
            ("0", str(path)),
        ]


def test_memory_of_a_file_is_that_of_its_process(exported):
    """F32 has 10 MiB more of matrices than F16, all of them read; this process has far more memory
    than either.
    """
    peaks = []
    for type in ("f16", "f32"):
        rows, _ = models.model_rows(exported(type=type)[0], 0, 1, [1], 1)
        peaks.append(rows[0]["peak_bytes"])
    assert 5e6 < peaks[1] - peaks[0] < 20e6


def test_two_of_ours(exported, monkeypatch, capsys):
    monkeypatch.setattr(contender, "have_peer", lambda: False)
    a, b = exported(type="gwq4")[0], exported(type="f16")[0]
    status, out, err = call(
        capsys,
        "bench",
        a,
        "--against",
        b,
        "--against",
        a,
        "-p",
        8,
        "-n",
        0,
        "-r",
        3,
        "-t",
        1,
        "--json",
    )
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [r["model_filename"] for r in rows] == [str(a), str(b), str(a)]
    assert {r["backends"][:4] for r in rows} == {"gwq-"}
    first, second, _ = rows
    ratios = [y / x for x, y in zip(first["samples_ns"], second["samples_ns"], strict=True)]
    assert first["times_as_fast"] is None
    assert second["times_as_fast"] == pytest.approx(statistics.median(ratios), rel=1e-3)
    assert (
        min(ratios) * 0.999
        < second["times_as_fast_q1"]
        <= second["times_as_fast"]
        <= second["times_as_fast_q3"]
        < max(ratios) * 1.001
    )
    assert "times as fast" in out


def test_files_take_turns(exported, monkeypatch):
    """A, B, A, B, with the roof between all, and nobody runs but who is asked."""
    order = []
    run, now = contender.Contender.run, roof.Roof.now

    def state(c):
        with open(f"/proc/{c._process.pid}/stat") as f:
            return f.read().rsplit(") ", 1)[1][0]

    def noted(self, prompt, gen):
        contenders.add(self)
        answer = run(self, prompt, gen)
        order.append(self.reader.path)
        return answer

    def roof_now(self):
        order.append("roof")
        for c in contenders:  # T: stopped
            for _ in range(1000):
                if state(c) == "T":
                    break
            assert state(c) == "T"
        return now(self)

    contenders = set()
    monkeypatch.setattr(contender.Contender, "run", noted)
    monkeypatch.setattr(roof.Roof, "now", roof_now)
    a, b = str(exported(type="gwq4")[0]), str(exported(type="f32")[0])
    monkeypatch.setattr(contender, "have_peer", lambda: False)
    models.model_rows(a, 4, 0, [1], 2, [b])
    assert order == [a, b, "roof", a, "roof", b, "roof", a, "roof", b, "roof"]


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "either a GGUF file or --kernels"),
        (["m.gguf", "--kernels"], "either a GGUF file or --kernels"),
        (["--kernels", "--types", "gwq9"], "--types gwq9: choose from f32"),
        (["--kernels", "--shapes", "1x1"], "2048x2048, 4096x11008"),
        (["--kernels", "--ops", "add", "--types", "gwq4"], "nothing to measure"),
        (["--kernels", "--against", "m.gguf"], "FILE.gguf instead"),
        (["m.gguf", "--types", "gwq4"], "give --kernels"),
        (["none.gguf"], "none.gguf does not exist"),
        (["--kernels", "-r", "0"], "at least 1"),
    ],
)
def test_mistakes(capsys, args, words):
    status, _, err = call(capsys, "bench", *args)
    assert_one_line("bench", status, err, words)


def test_mistakes_with_files(capsys, exported, tmp_path):
    path = exported(type="gwq4")[0]
    (tmp_path / "text.gguf").write_text("no model")
    for args, words in [
        (["-p", "99999"], "context"),
        (["-t", "0"], "1 to 256"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["--against", tmp_path / "none.gguf"], "none.gguf does not exist"),
        (["--against", tmp_path / "text.gguf"], "not a GGUF file"),
    ]:
        status, _, err = call(capsys, "bench", path, *args)
        assert_one_line("bench", status, err, words)


# --- llama.cpp ---


@pytest.fixture(scope="module")
def stock_file(exported, tmp_path_factory):
    """A file with a type that ours do not have: Q4_0, which llama.cpp repacks on most CPUs."""
    gguf = pytest.importorskip("gguf")
    from tests.support.ggml_files import rewrite

    types = dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        gguf.GGMLQuantizationType.Q4_0,
    )
    return rewrite(exported(type="f32")[0], tmp_path_factory.mktemp("stock") / "q4_0.gguf", types)


@needs_peer
def test_against_llama_cpp(exported, stock_file, capsys):
    ours, f16 = exported(type="gwq4")[0], exported(type="f16")[0]
    runs = ["-p", 256, "-n", 6, "-r", 2, "-t", 1]
    status, out, err = call(
        capsys, "bench", ours, "--against", stock_file, "--against", f16, *runs, "--json"
    )
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    prompt, decode = ([r for r in rows if r["n_prompt"] == p] for p in (256, 0))
    engines = [(r["model_filename"], r["backends"].split("-")[0]) for r in prompt]
    assert [(r["model_filename"], r["backends"].split("-")[0]) for r in decode] == engines
    repacked = [(str(stock_file), "llama.cpp, no repack")] if len(engines) == 5 else []
    assert engines == [
        (str(ours), "gwq"),
        (str(stock_file), "llama.cpp"),
        *repacked,
        (str(f16), "gwq"),
        (str(f16), "llama.cpp"),
    ]
    assert prompt[1]["model_type"] == "llama q4_0"
    assert prompt[1]["build_commit"].startswith("xllamacpp ")
    assert prompt[1]["type_k"] == "f16"
    for r in rows[1:]:
        assert 10 < r["avg_ts"] < 1e6 and r["load_ns"] > 0 and r["peak_bytes"] > 20e6
        assert (r["times_as_fast"] is None) == (r["model_filename"] == str(ours))


@needs_peer
def test_the_peer_times_what_it_is_asked_to(exported):
    """The process' own clock: a prompt of 96 tokens takes longer than one of 8, 24 steps about
    three times as long as 8.
    """
    reader = contender.open_file(exported(type="f16")[0])
    (c,) = contender.start(reader, ["llama.cpp"], 1, 128)
    try:
        c.run(8, 2)
        few, many = ([c.run(*args) for _ in range(5)] for args in ((8, 8), (96, 24)))
        prompt, gen = ([min(r[i] for r in runs) for runs in (few, many)] for i in (0, 1))
        assert prompt[1] > 3 * prompt[0] and 1.8 < gen[1] / gen[0] < 5
    finally:
        c.close()


@needs_peer
def test_a_file_that_no_engine_runs(capsys, exported, stock_file, tmp_path):
    """llama.cpp's own refusal comes as one line: a tensor it needs is missing."""
    from tests.support.ggml_files import rewrite

    broken = rewrite(
        exported(type="f32")[0], tmp_path / "broken.gguf", {}, keys={"llama.block_count": 9}
    )
    reader = contender.open_file(broken)
    with pytest.raises(GwqError, match=r"llama\.cpp cannot load it"):
        contender.start(reader, ["llama.cpp"], 1, 32)


def test_without_the_peer(capsys, monkeypatch, exported, stock_file):
    monkeypatch.setattr(contender, "have_peer", lambda: False)
    status, _, err = call(capsys, "bench", exported(type="gwq4")[0], "--against", stock_file)
    assert_one_line(
        "bench",
        status,
        err,
        "q4_0.gguf: this takes llama.cpp, which is not installed: "
        'pip install "gwq-export[interop]"',
    )


def test_a_worker_that_dies(exported):
    (c,) = contender.start(contender.open_file(exported(type="f16")[0]), ["gwq"], 1, 8)
    try:
        c._process.kill()
        c._process.wait()
        with pytest.raises(GwqError, match=r"model\.gguf: gwq ended"):
            c.run(1, 1)
    finally:
        c.close()


def test_workers_end_with_their_parent(exported):
    """A process that is killed leaves no stopped worker behind."""
    code = f"""
from gwq_export.bench import contender
(c,) = contender.start(contender.open_file({str(exported(type="f16")[0])!r}), ["gwq"], 1, 8)
print(c._process.pid, flush=True)
__import__("os").kill(__import__("os").getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(1000):
        try:
            with open(f"/proc/{pid}/stat") as f:
                state = f.read().rsplit(") ", 1)[1][0]
        except FileNotFoundError:
            return
        if state in "ZX":
            return
    pytest.fail(f"worker {pid} is still there: {state}")
