"""gwq-bench-native: the same bits as the runtime, a document like gwq-bench's, damaged files."""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time

import numpy as np
import pytest

from gwq_export.bench import compare, document, kernels, record, roof, schema, suite
from gwq_export.bench.cases import CASES, Case
from gwq_export.bench.files import decode_bytes
from gwq_export.format.reader import Reader
from gwq_export.native.library import isas
from gwq_export.report.benchmark import page
from gwq_export.sensors.identity import describe
from gwq_export.sensors.system import System
from native import build as native_build
from tests.native.test_emulated import COMPILERS, emulated
from tests.support.cli import assert_one_line, call

ARCHS = ["llama-bias", "mistral", "longrope", "gemma2", "gpt2", "gptneox", "cohere2", "granite4"]
ARCHS += ["lfm2", "lfm3"]
EXPERTS = ["mixtral", "qwen2moe"]  # the second one has experts of all tokens
SAME = "8 of the first 8 tokens are those of the machine that recorded the model"
MUTATIONS = 150  # of a record, and of the model's file


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return native_build.build_program(tmp_path_factory.mktemp("program"))


def run(program, *args, **options):
    command = [program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def recorded(path, folder, prompts=(8,), gen=4, depths=(16,)):
    out = folder / "model.pass"
    record.record(path, out, prompts, gen, depths)
    return out


def assert_refused(done, words=""):
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done
    assert lines[0].startswith("gwq-bench-native: error: ") and words in lines[0], lines[0]


@pytest.mark.parametrize("name", [*ARCHS, *EXPERTS])
def test_the_same_bits(program, tiny, exported, tmp_path, name):
    path = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)[0]
    out = recorded(path, tmp_path, prompts=(200, 230))  # batches of 192, then few and many tokens
    done = run(program, path, out, "--check", "-t", 2)
    assert done.returncode == 0 and SAME in done.stderr, done.stderr
    assert done.stderr.endswith("logits differ by at most 0\n")


@pytest.mark.parametrize("type", ["gwq2", "gwq5", "f32"])
def test_the_same_bits_of_the_bundled_model(program, exported, tmp_path, type):
    path = exported(type=type)[0]
    done = run(program, path, recorded(path, tmp_path), "--check")
    assert done.returncode == 0 and "at most 0\n" in done.stderr, done.stderr


def section(data, number):
    """Where one of the eight sections of a record begins."""
    return record.HEAD.unpack(data[: record.HEAD.size])[-16:][2 * number]


def test_other_tokens_are_told(program, exported, tmp_path):
    path = exported(type="gwq4")[0]
    out = recorded(path, tmp_path)
    data = bytearray(out.read_bytes())
    at = section(data, 7)  # the tokens to compare with
    id, logit = struct.unpack_from("<if", data, at)
    struct.pack_into("<if", data, at, id, logit + 0.5)
    out.write_bytes(data)
    assert run(program, path, out, "--check").stderr.endswith("at most 0.5\n")
    struct.pack_into("<if", data, at, id, logit + 2)
    struct.pack_into("<i", data, at + 56, struct.unpack_from("<i", data, at + 56)[0] ^ 1)
    out.write_bytes(data)
    done = run(program, path, out, "--check")
    assert done.stderr.startswith("7 of the first 8 tokens") and done.returncode == 2, done
    assert "error: more than rounding" in done.stderr


@pytest.mark.parametrize("isa", [isa for isa in isas() if isa != "scalar"])
def test_other_instruction_sets_differ_by_rounding(program, exported, tmp_path, isa):
    path = exported(type="gwq4")[0]
    out = recorded(path, tmp_path)
    done = run(program, path, out, "--check", env=os.environ | {"GWQ_ISA": isa})
    assert f"{isa} here" in done.stderr and done.returncode == 0, done
    assert float(done.stderr.split()[-1]) < 0.5
    assert_refused(run(program, path, out, env={"GWQ_ISA": "none"}), "not one that this machine")


@pytest.fixture(scope="module")
def measured(program, exported, tmp_path_factory):
    """(document, path of its file, what was printed) of the bundled model."""
    path = exported(type="gwq4")[0]
    folder = tmp_path_factory.mktemp("measured")
    out = folder / "result.json"
    args = ["-r", 2, "-t", "1,2", "-n", 4, "--depth", 16, "--out", out]
    done = run(program, path, recorded(path, folder), *args)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out, done.stdout


def test_a_document(measured, exported):
    found, out, text = measured
    assert schema.mistake(found) is None
    assert document.read(out) == found
    assert found["complete"] and {s["state"] for s in found["steps"]} == {"done"}
    tests = [(r["step"], r["n_prompt"], r["n_gen"], r["n_depth"]) for r in found["rows"]]
    after = [("speed", 8, 0, 0), ("speed", 0, 4, 0), ("depth", 0, suite.SWEEP, 16)]
    assert tests == [("threads", 0, suite.SWEEP, 0)] * 2 + after
    assert text.count("\n") == 2 + len(tests)
    reader = Reader(exported(type="gwq4")[0])
    for r in found["rows"]:
        tokens = r["n_prompt"] or r["n_gen"]
        speed = [tokens / ns * 1e9 for ns in r["samples_ns"]]
        assert np.allclose(r["samples_ts"], speed, rtol=1e-3) and len(speed) == 2
        assert r["median_ts"] == pytest.approx(np.median(r["samples_ts"]))
        assert r["bytes_per_token"] == (decode_bytes(reader) if r["n_gen"] else None)
        assert not r["n_gen"] or r["gbps"] == pytest.approx(
            decode_bytes(reader) * r["median_ts"] / 1e9, rel=0.01
        )
        assert 0 < r["load_ns"] < r["ready_ns"] < r["start_ns"] and r["peak_bytes"] > 1 << 20
    assert found["rows"][-2]["localscore"] > 0
    assert [s["cold"] for s in found["starts"]] == [True] * 3 + [False] * 3
    assert all(s["start_ns"] or s["why_not"] for s in found["starts"])
    assert len(found["roof"]) == 2 * len(roof.STREAMS) * len(roof.DISTANCES)
    assert found["checked"]["same"] == found["checked"]["tokens"] == record.FIRST


def test_it_describes_what_gwq_bench_describes(measured, exported):
    found = measured[0]
    device = describe(System()) | {"gpu": None}
    for name in set(device) - {"load_average", "cores", "memory_bytes", "clusters"}:
        assert found["device"][name] == device[name], name
    cpus = [c["cpus"] for c in device["clusters"]]
    assert [c["cpus"] for c in found["device"]["clusters"]] == cpus
    path = exported(type="gwq4")[0]
    with suite.Watch() as watch:
        model = document.new("edge", Reader(path), watch, "")["model"]
    assert found["model"] == model


def test_gwq_bench_shows_and_compares_it(measured, capsys):
    found, out, _ = measured
    assert "without Python" in page(found)
    status, _, err = call(capsys, "bench", "--page", out)
    assert status == 0, err
    assert out.with_suffix(".html").read_text() == page(found)
    rows = compare.compare([("a", found), ("b", found)])
    assert {r["what"] for r in rows} >= {"pp8", "tg4", "tg32 @ d16", "peak memory"}
    assert all(r["ratio"] == pytest.approx(1, rel=0.3) for r in rows if r["unit"] == "MiB")


def test_threads_are_those_that_may_run(program, exported, tmp_path):
    path = exported(type="gwq4")[0]
    out = tmp_path / "one.json"
    args = ["-p", 0, "-n", 1, "--depth", 0, "-r", 1, "--out", out]
    cpu = min(os.sched_getaffinity(0))
    args = [path, recorded(path, tmp_path), *args]
    done = run(program, *args, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    found = json.loads(out.read_text())
    assert done.returncode == 0 and found["rows"][0]["n_threads"] == 1
    assert found["device"]["clusters"][0]["cpus"] == [cpu]


def test_ctrl_c_leaves_what_is_measured(program, exported, tmp_path):
    path = exported(type="gwq4")[0]
    out = tmp_path / "part.json"
    args = [path, recorded(path, tmp_path), "-t", "1", "-n", "3", "-r", "1000", "--out", out]
    with subprocess.Popen(
        [program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not out.exists():  # the first step is over
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and f"what was measured is in {out}" in err
    found = json.loads(out.read_text())
    assert schema.mistake(found) is None and not found["complete"]
    states = [s["state"] for s in found["steps"]]
    assert states[1:3] == ["done", "interrupted"] and len(found["starts"]) == 6


def test_it_knows_the_types_of_gwq_bench(program):
    done = run(program, "--kernels", "--types", "none")
    assert_refused(done, "choose from")
    known = done.stderr.split("choose from ")[1].strip().split(",")
    assert set(known) == {c.type for c in CASES}


def test_kernels(program, tmp_path, monkeypatch):
    out = tmp_path / "kernels.json"
    args = ["--types", "gwq3", "--shapes", "2048x2048", "--ops", "gemv", "-r", 1, "-t", 1]
    done = run(program, "--kernels", *args, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    monkeypatch.setattr(roof, "ROUNDS", 1)
    case = Case("gemv", "gwq3", (2048, 2048), 1)
    rows, ways = kernels.kernel_rows([case], [1], repeats=1, working_set=4 << 20)
    assert [list(r) for r in found["rows"]] == [list(rows[0])] * 2
    assert [r["outliers"] for r in found["rows"]] == [0, 0.01]
    assert list(found["roof"][0]) == list(ways[0])
    plain, sparse = found["rows"]
    assert plain["gflops"] == pytest.approx(2 * plain["gweights"], rel=1e-6)
    assert plain["gbps"] * plain["ns"] < sparse["gbps"] * sparse["ns"]  # bytes


@pytest.mark.parametrize(
    "args, words",
    [
        (["-p", "9"], "has no such prompt"),
        (["-n", "5000"], "has room for"),
        (["--depth", "5000"], "has room for"),
        (["-p", "0", "-n", "0", "--depth", "0"], "nothing to measure"),
        (["-t", "0"], "give a number from 1 to 256"),
        (["-r", "many"], "give a number"),
        (["--ops", "gemv"], "choose kernels"),
        (["--nothing"], "is no option"),
        (["--out"], "give its value"),
        (["--out", "/no/folder/x.json"], "cannot be written"),
        (["--out", "/"], "is a folder"),
    ],
)
def test_mistakes(program, exported, tmp_path, args, words):
    path = exported(type="gwq4")[0]
    assert_refused(run(program, path, recorded(path, tmp_path), *args), words)


def test_files_that_do_not_belong_together(program, exported, tmp_path):
    path, other = exported(type="gwq4")[0], exported(type="gwq5")[0]
    out = recorded(path, tmp_path)
    assert_refused(run(program, other, out), "is not the file that")
    assert_refused(run(program, tmp_path / "no.gguf", out), "cannot be opened")
    assert_refused(run(program, path), "model.pass cannot be opened")
    assert_refused(run(program, path, path), "is no recorded forward pass")
    data = bytearray(out.read_bytes())
    data[8] ^= 1  # the hash of the headers
    out.write_bytes(data)
    assert_refused(run(program, path, out), "another version")
    assert_refused(run(program, "--kernels", "--types", "gwq9"), "choose from f32")
    assert_refused(run(program), "give either")


def assert_told(done):
    """It computed something, and said what, or it was refused in one line."""
    lines = [line for line in done.stderr.splitlines() if " of the first " not in line]
    assert (done.returncode, len(lines)) in ((0, 0), (2, 1)), done


def mutations(data, count, seed, spans):
    """Copies with a few bytes changed, a number replaced, or cut short; within (first, end)."""
    rng = random.Random(seed)
    for i in range(count):
        bad = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(*rng.choice(spans))
            if i % 3:
                bad[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, bad[at] ^ 1 << rng.randrange(8)])
            else:
                value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**56 - 1, 2**63, 2**64 - 1])
                bad[at & ~7 : (at & ~7) + 8] = value.to_bytes(8, "little")
        yield bad[: rng.randrange(len(bad))] if i % 10 == 0 else bad


@pytest.mark.parametrize("name", ["qwen2moe", "gpt2"])
def test_damaged_records(program, tiny, exported, tmp_path, name):
    """Nothing of a record is believed: it is refused in one line, or it computes something."""
    path = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)[0]
    data = recorded(path, tmp_path).read_bytes()
    spans = [(0, record.HEAD.size), (section(data, 1), len(data))]
    refused = 0
    for bad in mutations(data, MUTATIONS, 7, spans):
        out = tmp_path / "bad.pass"
        out.write_bytes(bad)
        done = run(program, path, out, "--check", "-t", 2)
        assert_told(done)
        refused += "error" in done.stderr
    assert refused > MUTATIONS / 5


def test_a_damaged_model(program, exported, tmp_path):
    path = exported(type="gwq4", outliers=0.02)[0]
    out = recorded(path, tmp_path)
    data = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    for damaged in mutations(data, MUTATIONS // 3, 11, [(0, len(data))]):
        bad.write_bytes(damaged)
        done = run(program, bad, out, "--check", "-t", 2)
        assert_told(done)


def test_what_cannot_be_recorded(exported, tmp_path, capsys):
    path = exported(type="gwq4")[0]
    out = tmp_path / "x.pass"
    for args, words in (
        (["-p", "5000"], "need a context of 5000 and the model's is"),
        (["--suite", "edge"], "--record measures nothing"),
        (["--device", "cuda"], "for the CPU"),
    ):
        status, _, err = call(capsys, "bench", path, "--record", out, *args)
        assert_one_line("bench", status, err, words)
    assert not out.exists()


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", "max"])
def test_on_arm(exported, tmp_path, tmp_path_factory, cpu):
    """A program without any library runs what an x86 machine has recorded."""
    launcher = emulated("aarch64", cpu)
    cc = COMPILERS["aarch64"]
    if not shutil.which(cc):
        pytest.skip(f"needs {cc} (Debian: gcc-aarch64-linux-gnu)")
    program = native_build.build_program(tmp_path, cc=cc, static=True)
    path = exported(type="gwq4", outliers=0.02)[0]
    out = recorded(path, tmp_path)
    command = [*launcher, program, path, out, "--check", "-t", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "of the first 8 tokens" in done.stderr, done.stderr
    assert float(done.stderr.split()[-1]) < 0.5
