"""gwq-bench: rows of files, each in a process of its own."""

import csv
import io
import json
import statistics
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.bench import contender, files, models, roof, runs
from gwq_export.bench.models import Plan
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from tests.support.cli import assert_one_line, call

NORMS = 9 * 256 * 4  # bytes of the bundled model's vectors


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


@pytest.mark.parametrize("format", ["md", "jsonl", "csv"])
def test_rows_are_printed_as_they_come(exported, capsys, monkeypatch, format):
    """When the second test begins, the row of the first one is there."""
    printed, phases = [], []
    run = runs.Runs.run

    def watched(self):
        out, err = capsys.readouterr()
        printed.append(out)
        phases.append(err)
        return run(self)

    monkeypatch.setattr(runs.Runs, "run", watched)
    status, _, err = call(
        capsys, "bench", exported(type="f16")[0], "-p", 3, "-n", 2, "-r", 2, "-t", 1, "-o", format
    )
    assert status == 0, err
    # each test runs once to warm up and twice to be timed
    assert printed[:3] == [""] * 3 and printed[4:] == [""] * 2
    head = {"md": 2, "csv": 1, "jsonl": 0}[format]
    assert len(printed[3].splitlines()) == head + 1 and "llama F16" in printed[3]
    assert all(phase in "".join(phases) + err for phase in ("memory roof", "load", "bench"))


def test_lengths_fit_the_context(exported, tiny):
    """Unless they were asked for: then they are refused."""
    path = exported(tiny("llama"), type="f16")[0]  # a context of 256
    rows, _ = models.model_rows(path, Plan(gen=2, threads=[1], repeats=1))
    assert [(r["n_prompt"], r["n_gen"]) for r in rows] == [(256, 0), (0, 2)]
    with pytest.raises(GwqError, match="the model's is 256"):
        models.model_rows(path, Plan([512], threads=[1], repeats=1))


def test_file_types_are_those_of_llama_cpp():
    gguf = pytest.importorskip("gguf")
    names = {int(t): t.name.partition("_")[2] for t in gguf.LlamaFileType}
    assert {n: files.FILE_TYPES.get(n, "") for n in names} == names | {1024: ""}


@pytest.mark.parametrize(
    "key, types, expected",
    [
        (15, {"attn_q": "iq4_nl", "ffn_up": "q8_0"}, "llama Q4_K_M"),  # of a width with fallbacks
        (0, {"attn_q": "f32", "ffn_up": "f32"}, "llama F32"),
        (0, {"attn_q": "q8_0", "ffn_up": "q8_0"}, "llama q8_0"),  # the key is of another file
        (1024, {"attn_q": "gwq4", "ffn_up": "q8_0"}, "llama q8_0+gwq4"),
        (None, {"attn_q": "gwq4", "ffn_up": "gwq4"}, "llama gwq4"),
    ],
)
def test_names_of_files(key, types, expected):
    shape = (64, 64)
    tensors = {
        f"blk.0.{name}.weight": SimpleNamespace(
            name=f"blk.0.{name}.weight",
            type=TYPES[type],
            shape=shape,
            companion=False,
            nbytes=TYPES[type].size(shape),
        )
        for name, type in types.items()
    }
    keys = {"general.architecture": "llama"} | ({} if key is None else {"general.file_type": key})
    assert files.model_type(SimpleNamespace(metadata=keys, tensors=tensors)) == expected


def test_memory_of_a_file_is_that_of_its_process(exported):
    """F32 has 10 MiB more of matrices than F16, all of them read; this process has far more memory
    than either.
    """
    peaks = []
    for type in ("f16", "f32"):
        rows, _ = models.model_rows(exported(type=type)[0], Plan([0], 1, threads=[1], repeats=1))
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

    def noted(self, prompt, gen, depth):
        contenders.add(self)
        answer = run(self, prompt, gen, depth)
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
    models.model_rows(a, Plan([4], 0, threads=[1], repeats=2), [b])
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
        (["-p", "x"], "give numbers of tokens"),
        (["--depth", "-5"], "give numbers of tokens"),
        (["--depth", "999999"], "use smaller numbers"),
        (["--ops-profile", "--depth", "4"], "leave out"),
        (["--against", tmp_path / "none.gguf"], "none.gguf does not exist"),
        (["--against", tmp_path / "text.gguf"], "not a GGUF file"),
    ]:
        status, _, err = call(capsys, "bench", path, *args)
        assert_one_line("bench", status, err, words)


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
