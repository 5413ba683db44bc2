"""studies/bench_synthetic: the files it makes and the page it writes."""

import re

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from studies import bench_synthetic, ggml


def test_our_files(exported, tmp_path):
    """They run, are whole, and have the types and the outliers of a real export."""
    f16 = gwq_export.open_gguf(exported(type="f16")[0])
    ends = f"token_embd|^output\\.={bench_synthetic.ENDS}"
    for name, (type, outliers) in bench_synthetic.OURS.items():
        out = tmp_path / f"{name}.gguf"
        bench_synthetic.write_ours(f16, out, name)
        made = gwq_export.open_gguf(out)
        real = gwq_export.open_gguf(exported(type=type, outliers=outliers, tensor_type=(ends,))[0])
        made.check()
        assert {n: (t.type.name, t.shape) for n, t in made.tensors.items()} == {
            n: (t.type.name, t.shape) for n, t in real.tensors.items()
        }
        assert np.isfinite(gwq_export.load(out, threads=1).logits([5, 6, 7])).all()


def test_which_type_a_stock_matrix_has():
    tensors = [
        "token_embd.weight",
        "output.weight",
        *(f"blk.{i}.{n}.weight" for i in range(8) for n in ("attn_q", "attn_v", "ffn_down")),
    ]
    mixed = bench_synthetic.ggml_types("q4_k_m", tensors, 8)
    assert {n for n, t in mixed.items() if t == "q6_k"} == {
        "output.weight",
        *(f"blk.{i}.{n}.weight" for i in (0, 3, 6, 7) for n in ("attn_v", "ffn_down")),
    }
    assert set(mixed.values()) == {"q4_k", "q6_k"}
    assert set(bench_synthetic.ggml_types("q2_k", tensors[2:], 8).values()) == {"q2_k"}


@pytest.mark.skipif(
    not ggml.library_path().exists(), reason=f"no {ggml.library_path()}: run tools/build_ggml"
)
def test_stock_files(exported, tmp_path):
    from gwq_export.format.foreign import open_any

    f16 = gwq_export.open_gguf(exported(type="f16")[0])
    bench_synthetic.write_ggml(f16, tmp_path / "q4_k_m.gguf", "q4_k_m")
    assert [p.name for p in tmp_path.iterdir()] == ["q4_k_m.gguf"]
    made = open_any(tmp_path / "q4_k_m.gguf")
    for name, t in f16.tensors.items():
        if len(t.shape) == 1:
            assert np.array_equal(made.tensors[name].dequantize(), t.dequantize())
    gate, up = (
        [file.tensors[f"blk.0.ffn_{n}.weight"].dequantize() for file in (made, f16)]
        for n in ("gate", "up")
    )
    assert np.abs(gate[0] - gate[1]).max() < 0.1 * np.abs(gate[1]).max()
    assert np.array_equal(up[0], gate[0])  # of one shape and type: the first one's bytes


def row(file, times=None, threads=1, gen=32):
    return {
        "model_filename": file,
        "model_size": 3 << 20,
        "backends": "llama.cpp",
        "n_prompt": 0 if gen else 64,
        "n_gen": gen,
        "n_depth": 0,
        "n_threads": threads,
        "times_as_fast": times,
        "times_as_fast_q1": 1.25,
        "times_as_fast_q3": 1.75,
    }


def test_the_page(monkeypatch, tmp_path):
    commands = []

    def measure(command, prefix, folder, say):
        commands.append(" ".join(command))
        rows = [
            row("gwq2.gguf"),
            row("q2_k.gguf", 1.5),
            row("gwq2.gguf", gen=0),
            row("q2_k.gguf", 0.5, 2, gen=0),
        ]
        return f"table {len(commands)}", {"rows": rows}

    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(bench_synthetic, "prepare", lambda *_: None)
    monkeypatch.setattr(bench_synthetic, "measure", measure)
    bench_synthetic.main(
        [
            "--folder",
            str(tmp_path),
            "--only",
            "gwq2",
            "--only",
            "kernels",
            "-r",
            "7",
            "--out",
            str(tmp_path / "page.md"),
        ]
    )
    page = (tmp_path / "page.md").read_text()
    assert commands[0] == "gwq-bench gwq2.gguf --against q2_k.gguf -p 128 -n 32 -t 1,2 -r 7"
    assert (
        commands[-1]
        == "gwq-bench --kernels --ops gemv,gemm --shapes 2048x2048,4096x11008 -t 1,2 -r 7"
    )
    assert all(c in page for c in commands)
    assert "table 1" in page
    assert f"table {len(commands)}" in page
    assert "| ours | MiB | other | MiB | by | tg32, 1 thread | pp64, 2 threads |" in page
    assert (
        "| gwq2.gguf | 3 | q2_k.gguf | 3 | llama.cpp | 1.50 (1.25-1.75) | 0.50 (1.25-1.75) |"
        in page
    )


def test_beside_a_busy_process(exported):
    text = bench_synthetic.beside_busy(exported()[0], threads=1, rounds=3, gen=4)
    kept, low, high = map(float, re.findall(r"\d\.\d\d", text))
    assert 0 < low <= kept <= high


def test_what_is_made_for_a_part(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(bench_synthetic.gwq_export, "open_gguf", lambda path: path)
    monkeypatch.setattr(bench_synthetic, "write_ours", lambda f16, out, name: made.append(name))
    monkeypatch.setattr(bench_synthetic, "write_ggml", lambda f16, out, name: made.append(name))
    for name in ("f16", "q4_0"):
        (tmp_path / f"{name}.gguf").touch()
    bench_synthetic.prepare(tmp_path, ["gwq4-0"], lambda text: None)
    assert made == ["gwq4", "gwq4-0"]
    made.clear()
    bench_synthetic.prepare(tmp_path, ["gwq3", "kernels"], lambda text: None)
    assert made == ["gwq3", "iq3_s", "q3_k"]
    made.clear()
    bench_synthetic.prepare(tmp_path, ["busy"], lambda text: None)
    assert made == ["gwq4"]


def test_a_command_is_run_and_its_mistakes_are_said(tmp_path):
    text, result = bench_synthetic.measure(
        ["gwq-bench", "--kernels", "--ops", "rope", "-t", "1", "-r", "1"],
        ["nice"],
        tmp_path,
        lambda text: None,
    )
    assert "| rope | f32 |" in text and result["rows"][0]["op"] == "rope"
    with pytest.raises(GwqError, match=r"none\.gguf does not exist"):
        bench_synthetic.measure(["gwq-bench", "none.gguf"], [], tmp_path, lambda text: None)
