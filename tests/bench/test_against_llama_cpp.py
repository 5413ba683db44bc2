"""gwq-bench --against: llama.cpp beside ours."""

import importlib.util
import json

import pytest

from gwq_export import GwqError
from gwq_export.bench import contender, schema, suite
from tests.support.cli import assert_one_line, call

PEER = importlib.util.find_spec("xllamacpp") is not None


needs_peer = pytest.mark.skipif(not PEER, reason="needs the interop extra: pip install xllamacpp")


@pytest.fixture(scope="module")
def ggml_file(exported, tmp_path_factory):
    """A file with a type that ours do not have: Q4_0, which llama.cpp repacks on most CPUs."""
    gguf = pytest.importorskip("gguf")
    from tests.support.ggml_files import rewrite

    types = dict.fromkeys(
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        gguf.GGMLQuantizationType.Q4_0,
    )
    return rewrite(exported(type="f32")[0], tmp_path_factory.mktemp("stock") / "q4_0.gguf", types)


@needs_peer
def test_against_llama_cpp(exported, ggml_file, capsys):
    ours, f16 = exported(type="gwq4")[0], exported(type="f16")[0]
    runs = ["-p", 256, "-n", 6, "-r", 2, "-t", 1]
    status, out, err = call(
        capsys, "bench", ours, "--against", ggml_file, "--against", f16, *runs, "--json"
    )
    assert status == 0, err
    rows = json.loads(out.splitlines()[-1])["rows"]
    prompt, decode = ([r for r in rows if r["n_prompt"] == p] for p in (256, 0))
    engines = [(r["model_filename"], r["backends"].split("-")[0]) for r in prompt]
    assert [(r["model_filename"], r["backends"].split("-")[0]) for r in decode] == engines
    repacked = [(str(ggml_file), "llama.cpp, no repack")] if len(engines) == 5 else []
    assert engines == [
        (str(ours), "gwq"),
        (str(ggml_file), "llama.cpp"),
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
def test_depth_is_computed_once(exported):
    """The tokens before a test are in the cache, and it is timed from there."""
    reader = contender.open_file(exported(type="f16")[0])
    (c,) = contender.start(reader, ["llama.cpp"], 1, 256)
    try:
        c.run(4, 2, 200)
        deep = min(c.run(4, 2, 200)[0] for _ in range(3))
        long = min(c.run(204, 2)[0] for _ in range(3))
        assert deep < long / 3
        assert min(c.run(0, 2, 200)) > 0
    finally:
        c.close()


@needs_peer
def test_a_suite_and_its_engines(exported, ggml_file, monkeypatch, tmp_path, capsys):
    """llama.cpp beside ours in one document, and their ratios."""
    quick = {"STARTS": 1, "SWEEP": 2, "PROMPTS": (4,), "GEN": 3, "DEPTHS": (16,), "REPEATS": 2}
    for name, value in (quick | {"MINUTES": 0.02, "PROBE": (4, 2)}).items():
        monkeypatch.setattr(suite, name, value)
    out = tmp_path / "both.json"
    status, _, err = call(
        *(capsys, "bench", exported(type="gwq4")[0], "--against", ggml_file),
        *("--suite", "edge", "-t", 1, "--out", out),
    )
    assert status == 0, err
    found = json.loads(out.read_text())
    assert schema.mistake(found) is None and found["complete"]
    assert found["software"]["xllamacpp"]
    engines = {r["backends"] for r in found["rows"] if r["step"] in ("speed", "depth")}
    assert "llama.cpp" in engines and any(e.startswith("gwq-") for e in engines)
    status, text, err = call(capsys, "bench", "--compare", out, "--json")
    assert status == 0, err
    rows = json.loads(text.splitlines()[-1])["rows"]
    assert {"pp4", "tg3", "tg2 @ d16"} <= {r["what"] for r in rows}
    assert {r["first_engine"] for r in rows} == {"gwq"}
    assert "llama.cpp" in {r["second_engine"] for r in rows}


@needs_peer
def test_a_file_that_no_engine_runs(capsys, exported, ggml_file, tmp_path):
    """llama.cpp's own refusal comes as one line: a tensor it needs is missing."""
    from tests.support.ggml_files import rewrite

    broken = rewrite(
        exported(type="f32")[0], tmp_path / "broken.gguf", {}, keys={"llama.block_count": 9}
    )
    reader = contender.open_file(broken)
    with pytest.raises(GwqError, match=r"llama\.cpp cannot load it"):
        contender.start(reader, ["llama.cpp"], 1, 32)


def test_without_the_peer(capsys, monkeypatch, exported, ggml_file):
    monkeypatch.setattr(contender, "have_peer", lambda: False)
    status, _, err = call(capsys, "bench", exported(type="gwq4")[0], "--against", ggml_file)
    assert_one_line(
        "bench",
        status,
        err,
        "q4_0.gguf: this takes llama.cpp, which is not installed: "
        'pip install "gwq-export[interop]"',
    )
