"""studies/real_models: the reference, what is scored, what a kill leaves, the page."""

import re
import subprocess
import sys

import gguf
import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation.perplexity import PROTOCOLS, log_softmax, windows
from gwq_export.format.foreign import foreign_type
from gwq_export.format.reader import Reader
from gwq_export.format.tensor import Tensor
from gwq_export.format.types import TYPES
from studies import oracle, real_files, real_models, real_page, real_reference, real_scores
from tests.support.ggml_files import MIXED, rewrite
from tests.support.paths import DATA, REFERENCE, ROOT

TEXT = DATA / "eval.txt"
Q = gguf.GGMLQuantizationType
GROUPS = {"q2_k": 16, "q3_k": 16, "q6_k": 16}  # type -> weights that share one step
# type -> where its FP16 scales are, if not at 0
SCALES = {
    "q4_1": (0, 2),
    "q5_1": (0, 2),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}


def tensor(name, blocks=64):
    """A Tensor of random blocks, whose FP16 scales are between 2^-9 and 2^-7."""
    type = TYPES.get(name) or foreign_type(Q[name.upper()].value)
    data = np.random.default_rng(0).integers(0, 256, (blocks, type.unit_bytes), np.uint8)
    for at in SCALES.get(name, (0,)):
        data[:, at + 1] = 0x18 + data[:, at + 1] % 8
    shape = (blocks, type.unit)
    return Tensor("blk.0.ffn_up.weight", type, shape, 0, data.nbytes, data.reshape(-1), None, 0, "")


@pytest.mark.parametrize("name", real_reference.CODES)
def test_a_step_is_the_distance_of_neighbouring_levels(name):
    """Against all the values that gguf-py decodes of blocks with other codes."""
    found = tensor(name)
    steps = real_reference.steps(found)
    first, end, count = real_reference.CODES[name]
    group = GROUPS.get(name, 32)
    levels = []
    for seed in range(200):  # the same scales, other codes
        data = found.data.reshape(-1, found.type.unit_bytes).copy()
        codes = np.random.default_rng(seed).integers(0, 256, (len(data), end - first))
        data[:, first:end] = codes
        levels.append(gguf.quants.dequantize(data, Q[name.upper()]))
    levels = np.array(levels).transpose(1, 2, 0).reshape(-1, group * 200)
    same = steps.reshape(-1, group)
    assert (same == same[:, :1]).all()
    for values, step in zip(levels, same[:, 0].astype(float), strict=True):
        values = np.unique(values)
        if name.startswith("iq4"):
            assert step == pytest.approx((values[-1] - values[0]) / count, rel=1e-5)
        elif step == 0:
            assert len(values) == 1
        else:
            assert np.diff(values).min() == pytest.approx(step, rel=1e-3)


def test_a_type_whose_step_is_not_known_is_refused():
    with pytest.raises(GwqError, match="the step of type iq2_s is not known"):
        real_reference.steps(tensor("iq2_s"))


@pytest.fixture(scope="module")
def source(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "mixed.gguf"
    rewrite(exported(type="f32")[0], path, MIXED)
    return path


def test_the_reference_lies_half_a_step_around_the_file(source, tmp_path):
    paths = [tmp_path / f"{seed}.gguf" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        types = real_reference.write(source, path, seed)
    assert types["q5_0"] == 4 and sum(types.values()) == 4 * 7 + 1
    before, after, other = (Reader(p, foreign_type) for p in (source, *paths))
    assert list(after.tensors) == list(before.tensors)
    for key in before.metadata:
        if key != "general.file_type" and not key.startswith(real_reference.DROPPED):
            assert np.array_equal(after.metadata[key], before.metadata[key]), key
    for name, theirs in before.tensors.items():
        weight = real_reference.decoded(theirs)
        noise = real_reference.decoded(after.tensors[name]) - weight
        if len(theirs.shape) == 1 or name == "token_embd.weight":
            rounding = np.abs(weight).max() / 2048 if len(theirs.shape) > 1 else 0
            assert np.abs(noise).max() <= rounding, name
            continue
        step = real_reference.steps(theirs)
        assert (np.abs(noise) <= 0.5 * step + np.abs(weight) / 1024 + 1e-7).all(), name
        spread = np.sqrt((noise**2).mean() / (step**2).mean())
        assert spread == pytest.approx(12**-0.5, rel=0.05), name
        assert (after.tensors[name].data != other.tensors[name].data).any(), name


def test_every_file_is_computed_in_float32(exported):
    """Decoded tiles, side-tables included, by whole logits of an F32 file."""
    path, _ = exported(type="gwq3", outliers=0.01)
    ids = np.arange(3, 60)
    exact = gwq_export.load(path)
    ours = real_scores.float_model(path).logits(ids)
    assert {t.type.name for t in exact.weights.reader.tensors.values()} > {"gwq3"}
    whole = oracle.logits(oracle.dequantized_model(REFERENCE, path), ids)
    assert np.abs(ours - whole).max() < 2e-4 * np.abs(whole).max()


def test_scores_are_those_of_whole_logits(exported, tmp_path):
    text = TEXT.read_text()[:8000]
    paths = [exported(type=t)[0] for t in ("f16", "gwq2")]
    judge = real_scores.Judge(paths[0], tmp_path, text, 128, 5)
    assert judge.reference()["windows"] == 5
    assert (tmp_path / "logits.npy").exists()
    judge = real_scores.Judge(paths[0], tmp_path, text, 128, 5)
    judge._predictor = None  # what is on the disk is not computed again
    found = judge.score(paths[1])
    models = [real_scores.float_model(p) for p in paths]
    rows = windows(models[0].tokenizer, text, 128)
    rows = rows[np.linspace(0, len(rows) - 1, 5).round().astype(int)]
    kld = []
    for row in rows:
        logq, logp = (
            log_softmax(m.logits(row[:-1]))[-PROTOCOLS["llama.cpp"].scored(128) :] for m in models
        )
        kld.append((np.exp(logq) * (logq - logp)).sum(1))
    assert found["kld_mean"] == pytest.approx(np.mean(kld), rel=1e-4)
    assert found["kld_p999"] == pytest.approx(np.quantile(kld, 0.999), rel=1e-4)
    means = np.mean(kld, 1)
    assert found["by_window"]["kld"] == pytest.approx(means.tolist(), rel=1e-4)
    assert found["kld_error"] == pytest.approx(means.std(ddof=1) / 5**0.5, rel=1e-4)
    assert judge.score(paths[0])["kld_mean"] == pytest.approx(0, abs=1e-9)


def test_the_error_by_resampling_is_that_of_a_mean():
    values = np.random.default_rng(0).standard_normal((12, 50)) + np.arange(12)[:, None]
    error = real_scores.resampled(lambda draw: values[draw].mean(), 12)
    assert error == pytest.approx(values.mean(1).std(ddof=1) / 12**0.5, rel=0.06)


def study(*options):
    command = [sys.executable, "-m", "studies.real_models", "--text", TEXT, *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)


def test_rows_are_kept_and_a_killed_run_goes_on(source, tmp_path, monkeypatch):
    """What is there is not made again; the line that a kill cut is."""
    tasks = tmp_path / "piqa.jsonl"
    tasks.write_text('{"query": "a", "choices": ["b", "c"], "gold": 1}\n' * 3)
    options = ["--work", str(tmp_path / "w"), "--samples", "2", "--ctx", "64", "--windows", "3"]
    options = [str(source), *options, "--text", str(TEXT), "--tasks", str(tasks)]
    options += ["--rows", "reference|ours/(default|4MB)", "--sizes", "4MB", "--threads", "1"]
    real_models.main(options)
    path = tmp_path / "w" / "mixed.gguf" / "rows.jsonl"
    rows = real_models.read_rows(path)
    assert [r["name"] for r in rows] == ["reference", "ours/default", "ours/4MB"]
    assert rows[0]["ppl"] > 1 and "kld_mean" not in rows[0]
    assert rows[1]["kld_mean"] > 0 and rows[1]["calibration_tokens"] == 128
    assert rows[2]["bytes"] <= 4_000_000 and rows[2]["tasks"][0]["agreement"] >= 0
    assert rows[1]["commit"] and rows[1]["settings"]["seed"] == 0

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    made = []
    make = real_files.Files.make
    monkeypatch.setattr(real_files.Files, "make", lambda f, n: made.append(n) or make(f, n))
    monkeypatch.setattr(gwq_export, "export", None)  # the file is there
    real_models.main(options)
    assert made == ["ours/4MB"]
    again = real_models.read_rows(path)
    assert [r["name"] for r in again] == [r["name"] for r in rows]
    assert again[2]["kld_mean"] == pytest.approx(rows[2]["kld_mean"])

    page = tmp_path / "page.md"
    real_models.main(["--work", str(tmp_path / "w"), "--page", str(page)])
    text = page.read_text()
    assert "## mixed.gguf" in text and text.count("\n| **gwq-export") == 2

    with pytest.raises(SystemExit, match="holds files of another seed"):
        real_models.main([*options, "--seed", "1"])


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "give a GGUF file or a Hugging Face folder"),
        (["nothing.gguf"], "nothing.gguf does not exist"),
        ([REFERENCE, "--rows", "q7"], "--rows q7: no row is called so"),
        ([REFERENCE, "--tasks", "q7"], "--tasks q7: there is no"),
        ([REFERENCE, "--text", "q7"], "q7 cannot be read"),
        (["--page", "page.md", "--work", "q7"], "q7 holds no rows"),
    ],
)
def test_what_cannot_be_done_is_said(options, words, tmp_path):
    done = study("--work", tmp_path, *options)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr, done.stderr


def row(name, size, kld, text="a"):
    figures = {"kld_mean": sum(kld) / 2, "kld_error": 0.1, "kld_p999": 1.0, "kld_p999_error": 0.1}
    return {
        "name": name,
        "settings": {"model": "m.gguf", "sha256": "0" * 64, "seed": 0, "ctx": 512, "samples": None},
        "evaluation": {"text": text, "text_sha256": "1" * 64, "windows": 2, "ctx": 512},
        "bytes": size,
        "params": 1_000_000,
        "calibration_tokens": 64,
        "commit": "abc",
        "machine": "cpu",
        "tokens": 510,
        "ppl": 9.0,
        "ppl_error": 0.5,
        "tasks": [],
        "by_window": {"kld": kld},
    } | (figures | {"top1_agreement": 0.9, "top1_error": 0.01} if kld else {})


def test_the_page_pairs_ours_with_the_stock_file_of_its_size():
    rows = [
        row("reference", 2_000_000, []),
        row("stock/Q4_0", 600_000, [9.0, 9.0], text="another evaluation"),
        row("stock/Q4_0", 600_000, [0.9, 0.9]),
        row("stock/Q4_0", 600_000, [0.2, 0.4]),
        row("ours/size-of-Q4_0", 599_990, [0.1, 0.2]),
        row("ours/gwq4", 700_000, [0.1, 0.1]),
    ]
    text = real_page.page([rows, []])
    assert text.count("## ") == 1
    names = re.findall(r"^\| (.*?) \|", text, re.M)
    assert names == [
        "file",
        "---",
        "reference (F16)",
        "**gwq-export --type gwq4**",
        "stock Q4_0",
        "**gwq-export --size of Q4_0's**",
        "at the size of",
        "---",
        "Q4_0",
    ]
    # window by window the ratio is the same: no error
    assert "| Q4_0 | 0.6 | 0.3000 ± 0.1000 | 0.1500 ± 0.1000 | 0.50 ± 0.00 |" in text


def test_stock_files_are_those_of_llama_cpp(tmp_path):
    try:
        real_files.quantizer()
    except GwqError as e:
        pytest.skip(str(e))
    options = ["--work", tmp_path, "--samples", 2, "--ctx", 64, "--windows", 2, "--text", TEXT]
    options += ["--threads", 1, "--rows", "stock|size-of-Q4_0", "--types", "Q4_0,IQ2_S"]
    real_models.main([*map(str, [REFERENCE, *options])])
    rows = real_models.read_rows(tmp_path / REFERENCE.name / "rows.jsonl")
    q4_0, ours, iq2_s = rows
    assert [r["name"] for r in rows] == ["stock/Q4_0", "ours/size-of-Q4_0", "stock/IQ2_S"]
    assert next(iter(q4_0["types"])) == "q4_0"
    assert 0.97 * q4_0["bytes"] < ours["bytes"] <= q4_0["bytes"]
    assert iq2_s["bytes"] < q4_0["bytes"] and iq2_s["kld_mean"] > q4_0["kld_mean"]
