"""The commands as a user meets them: exit status, one line per mistake, JSON last on stdout."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from tests.support.cli import assert_one_line, call, command
from tests.support.paths import DATA, REFERENCE


def test_export(small):
    path, result = small
    assert set(result) >= {
        "out",
        "bytes",
        "params",
        "bpw",
        "bpw_linear",
        "outlier_fraction",
        "seconds",
        "peak_rss_bytes",
    }
    assert result["bytes"] == path.stat().st_size and result["params"] == 5245184
    assert 50e6 < result["peak_rss_bytes"] < 3e9


def test_info(small, capsys):
    status, out, _ = call(capsys, "info", small[0], "--json", "--check")
    info = json.loads(out.splitlines()[-1])
    assert status == 0
    assert info["check"] == "ok"
    assert info["arch"] == "llama"
    assert info["params"] == 5245184
    assert (
        info["header_bytes"] + sum(t["bytes"] for t in info["tensors"]) + info["alignment_bytes"]
        == info["bytes"]
        == small[0].stat().st_size
    )
    assert info["bpw"] == pytest.approx(small[1]["bpw"])
    linear = [t for t in info["tensors"] if t["type"] == "gwq4"]
    assert len(linear) == 28
    assert sum(t["outliers"] for t in linear) == pytest.approx(7864, abs=30)  # 0.25 %
    assert set(linear[0]) == {"name", "type", "shape", "bytes", "outliers"}


def test_run(small, capsys):
    status, out, err = call(capsys, "run", small[0], "-p", "The city", "-n", 8, "--raw", "--json")
    result = json.loads(out.splitlines()[-1])
    assert status == 0
    assert result["tokens"] == 8
    assert result["decode_tps"] > 0
    assert result["prompt_tps"] > 0
    assert out.startswith(result["text"]) and "t/s" in err
    done = command("run", small[0], "-p", "-", "-n", 8, "--raw", "--json", input="The city")
    assert json.loads(done.stdout.splitlines()[-1])["text"] == result["text"]


def test_eval(small, capsys, tmp_path):
    (tmp_path / "t.txt").write_text((DATA / "eval.txt").read_text()[:6000])
    status, out, _ = call(
        capsys,
        "eval",
        small[0],
        "--text",
        tmp_path / "t.txt",
        "--ctx",
        256,
        "--against",
        REFERENCE,
        "--json",
    )
    folder = json.loads(out.splitlines()[-1])
    assert status == 0
    assert set(folder) >= {"ppl", "nll", "tokens", "ctx", "kld_mean", "kld_p99", "top1_agreement"}
    assert folder["ppl"] == pytest.approx(np.exp(folder["nll"]))
    assert 0 < folder["kld_mean"] < 0.2
    assert folder["top1_agreement"] > 0.7
    _, out, _ = call(
        capsys,
        "eval",
        small[0],
        "--text",
        tmp_path / "t.txt",
        "--ctx",
        256,
        "--against",
        small[0],
        "--json",
    )
    same = json.loads(out.splitlines()[-1])
    assert same["kld_mean"] == pytest.approx(0, abs=1e-9)
    assert same["top1_agreement"] == 1
    assert same["ppl"] == folder["ppl"]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--outliers", "2"], "fraction from 0 to"),
        (["--outliers", "x"], "not a number"),
        (["--type", "gwq9"], "choose one of"),
        (["--saliency", "best"], "choose one of loss"),
        (["--preset", "none"], "choose one of paper"),
        (["--samples", "0"], "at least 1"),
        (["--calib", "no/such/file"], "cannot be read"),
        (["--calib", os.devnull], "empty"),
        (["--tensor-type", "ffn"], "expected REGEX=TYPE"),
        (["--tensor-type", "(=gwq4"], "no regular expression"),
        (["--tensor-type", "nothing=gwq4"], "no matrix has such a name"),
        (["--device", "tpu"], "choose cpu or cuda"),
        (["--seed", "-1"], "number from 0"),
        (["--seed", str(2**70)], "number from 0"),
        (["--tensor-type", "output_norm=gwq4"], "no matrix has such a name"),
        (["--no-such-flag"], "unrecognized arguments"),
    ],
)
def test_export_mistakes(capsys, tmp_path, args, words):
    status, _, err = call(capsys, "export", REFERENCE, "--out", tmp_path / "m.gguf", *args)
    assert_one_line("export", status, err, words)
    assert not list(tmp_path.iterdir())


def test_paths_that_are_wrong(capsys, tmp_path, small):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, args, words in [
        ("export", [tmp_path / "none", "--out", tmp_path / "m"], "no such folder"),
        ("export", [tmp_path / "empty", "--out", tmp_path / "m"], "no config.json"),
        ("export", [tmp_path / "file", "--out", tmp_path / "m"], "is a file"),
        ("export", [REFERENCE, "--out", tmp_path / "none" / "m"], "none"),
        ("export", [REFERENCE, "--out", tmp_path / "empty"], "empty"),
        ("export", [REFERENCE], "--out"),
        ("run", [tmp_path / "none.gguf", "-p", "x"], "none.gguf"),
        ("run", [tmp_path / "file", "-p", "x"], "file"),
        ("run", [tmp_path / "empty", "-p", "x"], "empty"),
        ("run", [small[0], "-p", ""], "prompt is empty"),
        ("run", [small[0], "-p", "x", "-t", "0"], "1 to 256"),
        ("run", [small[0], "-p", "x", "--temp", "-1"], "must not be negative"),
        ("run", [small[0], "-p", "x", "--seed", "-1"], "number from 0"),
        ("run", ["x" * 5000, "-p", "x"], "give the path"),
        ("export", ["x" * 5000, "--out", tmp_path / "m"], "name too long"),
        ("eval", [small[0], "--text", DATA / "eval.txt", "--against", "x" * 5000], "name too long"),
        ("eval", [small[0], "--text", tmp_path / "none.txt"], "cannot be read"),
        ("eval", [small[0], "--text", os.devnull], "fewer than one window"),
        (
            "eval",
            [small[0], "--text", DATA / "eval.txt", "--against", tmp_path / "empty"],
            "transformers cannot load",
        ),
        ("bench", [], "either a GGUF file or --kernels"),
        ("bench", [small[0], "-p", "99999"], "context"),
        ("bench", [small[0], "-t", "0"], "1 to 256"),
        ("info", [tmp_path / "none.gguf"], "none.gguf"),
    ]:
        status, _, err = call(capsys, name, *args)
        assert_one_line(name, status, err, words)


@pytest.mark.parametrize(
    "phase, samples, number, said",
    [
        ("forward", 100, signal.SIGINT, "interrupted"),
        ("write", 1, signal.SIGTERM, "interrupted by SIGTERM"),
        ("backward", 10, signal.SIGINT, "interrupted"),
    ],
)
def test_interrupted_export_leaves_the_old_file(tmp_path, phase, samples, number, said):
    """Ctrl-C in every phase, or a kill, given at the first sign of it on stderr."""
    out = tmp_path / "m.gguf"
    out.write_text("old")
    arguments = ["export", str(REFERENCE), "--out", str(out), "--samples", str(samples)]
    # a shell that starts the tests in the background makes its children ignore SIGINT: undo that
    child = subprocess.Popen(
        [sys.executable, "-m", "gwq_export.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    err = ""
    while phase not in err and child.poll() is None:
        err += child.stderr.read(1)
    child.send_signal(number)
    err += child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number and "Traceback" not in err, err
    assert err.endswith(f"gwq-export: {said}\n")
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("after", ["raises", "goes on", "reports"])
def test_ctrl_c_outranks_what_it_was_turned_into(after, capsys):
    """C code may answer Ctrl-C with an error of its own, or not at all."""
    from gwq_export.commands.arguments import Parser, add_common
    from gwq_export.commands.console import run_command

    def work(args, progress):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if after == "raises":
            raise ValueError("could not determine the shape")
        if after == "reports":
            progress("phase", 1, 2)
            raise AssertionError("the report did not stop it")
        return {}

    def parser():
        p = Parser("gwq-x", "")
        add_common(p)
        return p

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_command("gwq-x", parser, work, ["--json"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert out == "" and err == "gwq-x: interrupted\n"


def test_long_ctx_is_cut_and_said(tmp_path):
    done = command(
        "export",
        REFERENCE,
        "--out",
        tmp_path / "m.gguf",
        "--samples",
        1,
        "--ctx",
        5000,
        "--dry-run",
        "--json",
    )
    assert done.returncode == 0 and "cut to 2048" in done.stderr


def test_contexts_are_cut_and_said(small, tmp_path):
    (tmp_path / "t.txt").write_text((DATA / "eval.txt").read_text()[:12000])
    for args in (
        ["run", small[0], "-p", "x", "-n", 2, "--ctx", 99999],
        ["eval", small[0], "--text", tmp_path / "t.txt", "--ctx", 4096],
    ):
        done = command(*args)
        assert "cut to 2048" in done.stderr and done.returncode == 0, done.stderr


def test_a_terminal_without_unicode(small, tmp_path):
    (tmp_path / "t.txt").write_text((DATA / "eval.txt").read_text()[:6000])
    done = command(
        "eval",
        small[0],
        "--text",
        tmp_path / "t.txt",
        "--ctx",
        256,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and "perplexity" in done.stdout


def test_faults_of_ours_are_status_1(capsys, monkeypatch):
    def fault(args, progress):
        raise ZeroDivisionError

    monkeypatch.setattr("gwq_export.commands.info.command", fault)
    status, _, err = call(capsys, "info", "x.gguf")
    assert status == 1 and "ZeroDivisionError" in err and "please report" in err


def test_a_forced_instruction_set(small):
    texts = set()
    for isa in ("scalar", "avx2"):
        done = command(
            "run", small[0], "-p", "The city", "-n", 6, "--raw", env=os.environ | {"GWQ_ISA": isa}
        )
        if done.returncode:
            assert isa != "scalar" and "what this machine supports" in done.stderr
        else:
            texts.add(done.stdout)
    assert len(texts) == 1
    done = command("run", small[0], "-p", "x", env=os.environ | {"GWQ_ISA": "mmx"})
    assert_one_line("run", done.returncode, done.stderr, "GWQ_ISA=mmx")


def test_progress_as_json_lines(tmp_path, capsys, tiny):
    arguments = [
        "export",
        tiny("llama"),
        "--out",
        tmp_path / "m.gguf",
        "--samples",
        2,
        "--ctx",
        32,
        "--bpw",
        6,
        "--outliers",
        0,
        "--progress",
    ]
    status, _, err = call(capsys, *arguments, "jsonl")
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert status == 0
    assert all(set(line) == {"phase", "done", "total", "seconds", "eta"} for line in lines)
    assert {line["phase"] for line in lines} == {
        "forward",
        "backward",
        "embedding and head",
        "quantize",
        "write",
    }
    for a, b in pairwise(lines):
        assert (
            b["done"] > a["done"] and b["seconds"] >= a["seconds"]
            if a["phase"] == b["phase"]
            else a["done"] == a["total"]
        )
    assert lines[0]["eta"] is None and lines[1]["eta"] > 0 and lines[-1]["eta"] == 0
    status, _, err = call(capsys, *arguments, "none")
    assert status == 0 and "forward" not in err and "takes" in err
    status, _, err = call(capsys, *arguments, "loud")
    assert_one_line("export", status, err, "invalid choice: 'loud'")
