"""GGUF files with types that the runtime does not know.

They are evaluated as gguf-py decodes them, and refused everywhere else.
"""

import json
import sys

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation import predictors, reference
from gwq_export.evaluation.perplexity import evaluate, log_softmax, windows
from gwq_export.format import foreign
from gwq_export.format.header import GGML_TYPES
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from studies.oracle import dequantized_model, logits, perplexity
from tests.support.cli import assert_one_line, call
from tests.support.gguf_files import descriptor, raw_file
from tests.support.models import save_tiny
from tests.support.paths import DATA

gguf = pytest.importorskip("gguf", reason="needs gguf-py, which the export extra installs")
from tests.support.ggml_files import MIXED, decoded, rewrite  # noqa: E402

IDS = np.random.default_rng(5).integers(3, 1024, 70)
TEXT = (DATA / "eval.txt").read_text()[:2500]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama whose widths K-quants divide."""
    settings = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "head_dim": 32,
        "num_hidden_layers": 2,
    }
    return save_tiny(
        tmp_path_factory.mktemp("wide"), "LlamaConfig", tie_word_embeddings=False, **settings
    )


@pytest.fixture(scope="module")
def f32(folder, exported):
    return exported(folder, type="f32")[0]


@pytest.fixture(scope="module")
def mixed(f32, tmp_path_factory):
    """Path of a file that has another type in every kind of matrix."""
    return rewrite(f32, tmp_path_factory.mktemp("stock") / "mixed.gguf", MIXED)


def test_log_probabilities_equal_transformers_on_dequantized_weights(folder, mixed):
    model = predictors.load(mixed, threads=1)
    oracle = dequantized_model(folder, mixed, decoded(mixed))
    expected, got = (log_softmax(x) for x in (logits(oracle, IDS), model.logits(IDS)))
    assert np.abs(got - expected).max() < 1e-3 < 0.5 < np.ptp(expected)
    assert evaluate(model, TEXT, 128)["ppl"] == pytest.approx(
        perplexity(oracle, windows(model.tokenizer, TEXT, 128)), rel=1e-4
    )


def test_command_against_the_dequantized_model(folder, mixed, f32, tmp_path, capsys):
    """--against takes a Hugging Face folder and any GGUF file."""
    dequantized_model(folder, mixed, decoded(mixed)).save_pretrained(tmp_path / "hf")
    (tmp_path / "t.txt").write_text(TEXT)
    found = {}
    for name, file, against in [
        ("folder", mixed, tmp_path / "hf"),
        ("f32", mixed, f32),
        ("swapped", f32, mixed),
    ]:
        status, out, err = call(
            capsys,
            "eval",
            file,
            "--text",
            tmp_path / "t.txt",
            "--ctx",
            128,
            "--against",
            against,
            "--json",
        )
        assert status == 0, err
        found[name] = json.loads(out.splitlines()[-1])
    assert found["folder"]["kld_mean"] < 1e-6
    assert found["folder"]["ppl_ratio"] == pytest.approx(1, abs=1e-4)
    assert found["f32"]["kld_mean"] > 0.05 and found["f32"]["bytes"] == mixed.stat().st_size
    assert found["f32"]["ppl_ratio"] == pytest.approx(1 / found["swapped"]["ppl_ratio"])


def test_known_types_stay_in_the_map(mixed):
    raw = Reader(mixed, foreign.foreign_type)
    opened = foreign.open_any(mixed)
    expected = decoded(mixed)
    assert {t.type.name for t in raw.tensors.values()} == {"f32"} | {
        t.name.lower() for t in MIXED.values()
    }
    for name, tensor in opened.tensors.items():
        assert tensor.shape == raw.tensors[name].shape
        assert tensor.type.name == (
            raw.tensors[name].type.name if raw.tensors[name].type.name in TYPES else "f32"
        )
        assert np.array_equal(tensor.dequantize(), expected.tensors[name].dequantize()), name


def test_same_log_probabilities_as_llama_cpp(mixed):
    """llama.cpp computes these types with activations rounded to 8 bits, hence the tolerance."""
    pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")
    from tests.support.llama_cpp import IDS as prompt
    from tests.support.llama_cpp import peer

    done = peer(mixed)
    assert done.returncode == 0, done.stderr[-2000:]
    top = json.loads(done.stdout.splitlines()[-1])["choices"][0]["logprobs"]["content"][0][
        "top_logprobs"
    ]
    ours = log_softmax(predictors.load(mixed).logits(prompt)[-1])
    apart = np.abs([ours[t["id"]] - t["logprob"] for t in top])
    assert len(top) == 50 and apart.mean() < 0.1 and apart.max() < 0.4 < np.ptp(ours) / 20


def test_commands_that_compute_say_which_take_the_file(mixed, capsys):
    for name, args in [("run", ["-p", "x"]), ("bench", [])]:
        status, _, err = call(capsys, name, mixed, *args)
        assert_one_line(name, status, err, "ggml type q" if name == "run" else "")
    with pytest.raises(GwqError, match=r"ggml type q.*gwq-export.*makes a file of it.*gwq-eval"):
        gwq_export.load(mixed)


def test_info_lists_every_stock_type(mixed, tmp_path, capsys):
    """Names and sizes without gguf-py; --check decodes values; a folder can be made of it."""
    status, out, err = call(capsys, "info", mixed, "--json", "--check")
    assert status == 0, err
    facts = json.loads(out.splitlines()[-1])
    expected = {t.name: t for t in gguf.GGUFReader(mixed).tensors}
    for t in facts["tensors"]:
        assert t["type"] == expected[t["name"]].tensor_type.name.lower()
        assert t["bytes"] == expected[t["name"]].n_bytes
    assert "q4_k" in out and "only llama.cpp computes with this; gwq-export FILE.gguf" in out
    status, _, err = call(capsys, "info", mixed, "--to-safetensors", tmp_path / "hf")
    assert status == 0, err
    assert reference.transformers_logits(tmp_path / "hf").ctx == 256
    status, out, _ = call(capsys, "info", mixed, "--report", tmp_path / "r.html")
    assert status == 0 and "q4_k" in (tmp_path / "r.html").read_text().lower()


def test_sizes_are_gguf_pys():
    sizes = {int(t): size for t, size in gguf.GGML_QUANT_SIZES.items()}
    for id, type in GGML_TYPES.items():
        if id in sizes and type.name != "q8_1":  # no file has it; gguf-py counts it otherwise
            assert (type.unit, type.unit_bytes) == sizes[id], type


def test_a_type_that_gguf_py_does_not_decode(tmp_path, capsys):
    """Q2_0 is of llama.cpp's: 2-bit codes of 64 columns and their FP16 scale."""
    path = tmp_path / "m.gguf"
    name = "token_embd.weight"
    raw_file(path, descriptors=[descriptor(name, (4, 64), 42, 0)], data=bytes(4 * 18))
    status, out, err = call(capsys, "info", path)
    assert status == 0 and "q2_0" in out and "72 bytes" in out, err
    for command, args in [
        ("eval", ["--text", DATA / "eval.txt"]),
        ("export", ["--out", tmp_path / "out.gguf"]),
        ("info", ["--check"]),
    ]:
        status, _, err = call(capsys, command, path, *args)
        assert_one_line(command, status, err, "ggml type q2_0 (42) is llama.cpp's")
        assert "llama-quantize --allow-requantize" in err
    status, _, err = call(capsys, "run", path, "-p", "x")
    assert_one_line("run", status, err, "ggml type q2_0 (42)")


def test_damage_is_found(mixed, f32, tmp_path, capsys):
    data = mixed.read_bytes()
    out = tmp_path / "bad.gguf"
    raw = Reader(mixed, foreign.foreign_type)
    first = next(t for t in raw.tensors.values() if t.type.name == "q5_0")
    last = max(raw.tensors.values(), key=lambda t: t.offset)

    def with_type(id):
        """The type of `first` in its descriptor: after its name, 4 bytes of dimensions and 2 x 8 of
        shape.
        """
        at = data.index(first.name.encode()) + len(first.name) + 4 + 16
        return data[:at] + id.to_bytes(4, "little") + data[at + 4 :]

    nan = np.float16(np.nan).tobytes()
    for content, words in [
        (data[: last.offset + last.nbytes - 1], "cut short"),
        (with_type(7), "instead of"),  # q5_1 takes more bytes: the offsets do not fit
        (with_type(9), "ggml type q8_1"),  # gguf-py has no decoder
        (with_type(77), "unknown type 77"),
        (
            data[: first.offset] + nan + data[first.offset + 2 :],
            f"tensor {first.name}: a value is not finite",
        ),
    ]:
        out.write_bytes(content)
        status, _, err = call(capsys, "eval", out, "--text", DATA / "eval.txt")
        assert_one_line("eval", status, err, words)
        assert "bad.gguf" in err


def test_without_gguf(mixed, f32, tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text(TEXT)
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, _, err = call(capsys, "eval", mixed, "--text", tmp_path / "t.txt", "--ctx", 128)
    assert_one_line("eval", status, err, 'needs gguf: pip install "gwq-export[export]"')
    assert call(capsys, "eval", f32, "--text", tmp_path / "t.txt", "--ctx", 128)[0] == 0


def test_another_vocabulary_is_no_reference(mixed, f32, tmp_path, capsys):
    tokens = list(gwq_export.open_gguf(f32).metadata["tokenizer.ggml.tokens"])
    tokens[500], tokens[501] = tokens[501], tokens[500]
    other = rewrite(f32, tmp_path / "other.gguf", {}, {"tokenizer.ggml.tokens": tokens})
    status, _, err = call(capsys, "eval", mixed, "--text", DATA / "eval.txt", "--against", other)
    assert_one_line("eval", status, err, "vocabulary")
