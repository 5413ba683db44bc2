"""llama-quantize (tools/build_llama_quantize) with the importance file of an export."""

import os
import subprocess
from pathlib import Path

import pytest

import gwq_export
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.predictors import load, runtime_logits
from tests.support.paths import DATA

PROGRAM = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gwq-export", "llama-quantize"
)
pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason=f"no {PROGRAM}: run tools/build_llama_quantize"
)


@pytest.fixture(scope="module")
def importance(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("importance") / "imatrix.gguf"
    exported(type="f16", imatrix=path, samples=8, ctx=128)
    return path


def quantized(source, out, type, *options):
    """The GGUF file `out` and all that llama-quantize said of it."""
    done = subprocess.run(
        [PROGRAM, *options, source, out, type],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return out, done.stdout


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q2_K"])
def test_it_takes_the_importance_of_every_matrix(exported, importance, tmp_path, type):
    """It misses only the embedding's, which our file has not; the model gains by the rest."""
    pytest.importorskip("gguf", reason="needs gguf-py, which the export extra installs")

    source, text = exported(type="f16")[0], (DATA / "eval.txt").read_text()[:8000]
    against = runtime_logits(gwq_export.load(source))
    (plain, _), (weighted, said) = (
        quantized(source, tmp_path / name, type, *options)
        for name, options in (("plain", ()), ("weighted", ("--imatrix", importance)))
    )
    assert "loaded 28 importance matrix entries" in said and "computed on 8 chunks" in said
    assert [line.split()[-1] for line in said.splitlines() if "did not find weights" in line] == [
        "token_embd.weight"
    ]
    assert not any(word in said.lower() for word in ("warning", "error", "mismatch", "fail")), said
    before, after = (
        evaluate(load(path), text, 256, against)["kld_mean"] for path in (plain, weighted)
    )
    assert 0 < after < before, (before, after)


def test_llama_cpp_runs_the_result(exported, importance, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")
    from tests.support.llama_cpp import likeliest, peer

    source = exported(type="f16")[0]
    path, _ = quantized(source, tmp_path / "m.gguf", "Q4_K_M", "--imatrix", importance)
    before, after = (peer(p) for p in (source, path))
    assert after.returncode == 0, after.stderr[-2000:]
    expected, got = (
        {t["id"]: t["logprob"] for t in likeliest(done.stdout.splitlines()[-1])}
        for done in (before, after)
    )
    both = expected.keys() & got.keys()
    assert len(both) >= 40 and max(abs(expected[id] - got[id]) for id in both) < 0.6
