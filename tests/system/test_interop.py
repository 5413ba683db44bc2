"""Files for llama.cpp: ggml types coded under the curvature, importance files, bridge files."""

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.format import bridge
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.reader import Reader
from gwq_export.format.types import LEVELS, TYPES
from gwq_export.pipeline.options import ExportOptions
from gwq_export.pipeline.presets import recipe_of
from studies import ggml
from studies.oracle import dequantized_model, kl_divergence, logits, original_model
from tests.support.cli import assert_one_line, call
from tests.support.models import TINY
from tests.support.paths import REFERENCE

IDS = np.random.default_rng(5).integers(3, 8192, 120)


needs_peer = pytest.mark.skipif(
    not ggml.library_path().exists(), reason=f"no {ggml.library_path()}: run tools/build_ggml"
)


@pytest.fixture(scope="module")
def kld():
    """kld(path, base) -> KL divergence of the bundled model with the decoder of that file."""
    before = logits(original_model(REFERENCE), IDS)
    known = {}

    def measure(path, base=False):
        if (path, base) not in known:
            model = dequantized_model(REFERENCE, path, gwq_export.open_gguf(path, base), ends=False)
            known[path, base] = kl_divergence(before, logits(model, IDS))
        return known[path, base]

    return measure


def peer_kld(name, importance):
    """The same of llama.cpp's own quantization."""
    from gwq_export.hf.source import Source
    from studies import compare

    original = original_model(REFERENCE)
    model, _ = compare.ggml_model(original, Source(REFERENCE), name, importance(original))
    return kl_divergence(logits(original, IDS), logits(model, IDS))


def test_plain_q4_0_is_ggmls(exported):
    path, result = exported(type="q4_0")
    reader = gwq_export.open_gguf(path)
    kinds = {}
    for t in reader.tensors.values():
        kinds.setdefault(t.type.name, []).append(t.name)
    assert set(kinds) == {"q4_0", "q8_0", "f32"}
    assert kinds["q8_0"] == ["token_embd.weight"]
    assert result["bpw_linear"] == 4.5
    assert reader.metadata["general.file_type"] == 2
    assert "gwq.type" not in reader.metadata
    assert "calibration_loss" not in result
    original = gwq_export.open_gguf(exported(type="f32")[0])
    name = "blk.2.ffn_down.weight"
    assert np.array_equal(
        reader.tensors[name].data, encode_ggml(TYPES["q4_0"], original.tensors[name].dequantize())
    )


@needs_peer
@pytest.mark.parametrize("name", list(LEVELS))
def test_nearer_than_llama_cpps_own(exported, kld, name):
    """Of the same type and size, with and without its importance vector from as much text."""
    path, result = exported(stock=name)
    assert result["bpw_linear"] == 4.5 and result["outlier_fraction"] == 0
    text = np.arange(1024).reshape(4, 256) * 7
    plain = peer_kld(name, lambda m: {})
    weighted = peer_kld(name, lambda m: ggml.importance(m, text))
    assert kld(path) < 0.75 * min(plain, weighted)


@pytest.fixture(scope="module")
def linked(exported):
    return exported(type="bridge", outliers=0.02)[0]


def test_a_bridge_is_the_stock_file_and_more(exported, linked, kld):
    plain = gwq_export.open_gguf(exported(stock="q4_0")[0])
    base = gwq_export.open_gguf(linked, base=True)
    full = gwq_export.open_gguf(linked)
    full.check()
    base.check()
    assert list(base.tensors) == list(plain.tensors)
    assert not any(t.outliers for t in base.tensors.values())
    for name, tensor in plain.tensors.items():
        assert np.array_equal(tensor.data, base.tensors[name].data)
        assert np.array_equal(tensor.data, full.tensors[name].data)
    linear = [t for t in full.tensors.values() if t.outliers]
    assert {t.type.name for t in linear} == {"q4_0"}
    assert sum(t.outlier_count for t in linear) == pytest.approx(0.02 * 3.145e6, rel=0.01)
    assert kld(linked) < 0.95 * kld(linked, True)
    oracle = logits(dequantized_model(REFERENCE, linked), IDS)  # transformers with base plus deltas
    found = [
        np.abs(gwq_export.load(linked, base=without).logits(IDS) - oracle).max()
        for without in (False, True)
    ]
    assert found[0] < 0.2 * found[1]


def test_stock_readers_see_the_base(linked):
    gguf = pytest.importorskip("gguf")
    base = gwq_export.open_gguf(linked, base=True)
    seen = {t.name: t for t in gguf.GGUFReader(linked).tensors}
    assert list(seen) == list(base.tensors)
    assert all(
        np.array_equal(seen[name].data.reshape(-1).view(np.uint8), t.data)
        for name, t in base.tensors.items()
    )


def rewritten(path, out):
    """As gguf-py's tools copy a file: all keys, all tensors that its header names."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(
                name,
                field.contents(),
                field.types[0],
                sub_type=field.types[-1] if len(field.types) > 1 else None,
            )
    writer.add_uint32("another.key", 1)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out.read_bytes()


def test_deltas_that_are_not_whole_are_refused(linked, tmp_path, capsys):
    """Every command says what is wrong and how to do without; asked to, it does."""
    data = linked.read_bytes()
    reader = gwq_export.open_gguf(linked)
    offset = reader.metadata[bridge.OFFSET_KEY]
    key = data.index(bridge.VERSION_KEY.encode()) + len(bridge.VERSION_KEY) + 4
    middle = offset + (len(data) - offset) // 2
    expected = gwq_export.load(linked, base=True).logits(IDS[:20])
    out = tmp_path / "bad.gguf"
    for content, words in [
        (data[:offset], "another tool has rewritten it"),
        (rewritten(linked, out), "another tool has rewritten it"),
        (data[: offset + 10], "cut short"),
        (data[:-1], "cut short"),
        (data + b"\0", "1 unknown bytes follow"),
        (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "checksum"),
        (data[:key] + b"\2" + data[key + 1 :], "version 2"),
    ]:
        out.write_bytes(content)
        for command, args in [
            ("info", []),
            ("run", ["-p", "The", "-n", 1]),
            ("eval", ["--text", __file__]),
        ]:
            status, _, err = call(capsys, command, out, *args)
            assert_one_line(command, status, err, words)
            assert "--base" in err and "bad.gguf" in err
        assert np.array_equal(gwq_export.load(out, base=True).logits(IDS[:20]), expected)
    assert call(capsys, "run", out, "--base", "-p", "The", "-n", 1)[0] == 0
    assert call(capsys, "info", out, "--base", "--check")[0] == 0


def test_a_hostile_tail(linked, tmp_path):
    """Deltas with the right checksum that name a tensor of the base, or one that is not there."""
    import hashlib

    data = linked.read_bytes()
    reader = gwq_export.open_gguf(linked)
    offset = reader.metadata[bridge.OFFSET_KEY]
    sha = reader.metadata[bridge.SHA256_KEY].encode()
    for old, new in [
        (b"blk.0.attn_q.weight.outliers", b"blk.0.attn_q.weight.outlierz"),
        (b"blk.0.attn_q.weight.out", b"blk.9.attn_q.weight.out"),
    ]:
        tail = data[offset:].replace(old, new)
        assert tail != data[offset:]
        (tmp_path / "bad.gguf").write_bytes(
            data[:offset].replace(sha, hashlib.sha256(tail).hexdigest().encode()) + tail
        )
        with pytest.raises(GwqError, match="side-table"):
            Reader(tmp_path / "bad.gguf")


def test_a_dry_run_predicts(tmp_path):
    """The loss of a type, the less the better it fits."""
    losses = [
        gwq_export.export(REFERENCE, tmp_path / "x.gguf", **kind, samples=2, ctx=64, dry_run=True)[
            "predicted_loss"
        ]
        for kind in ({"stock": "q4_0"}, {"stock": "iq4_nl"}, {"type": "gwq4", "outliers": 0.0})
    ]
    assert losses[0] > losses[1] > losses[2] > 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given, words",
    [
        ({"type": "gwq4", "stock": "q4_0"}, "--stock names the type"),
        ({"stock": "q4_0", "outliers": 0.01}, "--stock names the type"),
        ({"stock": "q4_k"}, "--stock q4_k: choose one of q4_0, iq4_nl"),
        ({"type": "bridge", "stock": "f16"}, "--stock f16: choose one of"),
        ({"type": "bridge", "saliency": "grad"}, "--type bridge chooses"),
        ({"type": "bridge", "outliers": 0.0}, "--type bridge chooses"),
        ({"type": "q4_2"}, "--type q4_2: choose one of"),
    ],
)
def test_options_that_contradict(given, words):
    with pytest.raises(GwqError, match=words):
        recipe_of(ExportOptions(ctx=64, **given))


def test_no_tile_type_in_a_stock_file(tiny, tmp_path):
    with pytest.raises(GwqError, match="cannot load gwq3 beside q4_0"):
        gwq_export.export(REFERENCE, tmp_path / "x.gguf", stock="q4_0", tensor_type="attn_v=gwq3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"type": "q8_0"}, {"type": "q4_0"}, {"stock": "iq4_nl"}])
def test_widths_that_a_block_does_not_divide(tiny, tmp_path, caplog, options):
    """Such matrices become F16, and a warning names them; llama.cpp's own quantizer does alike."""
    out = tmp_path / "x.gguf"
    gwq_export.export(tiny("llama"), out, samples=1, ctx=32, **options)
    assert TINY["intermediate_size"] == 200 and TINY["hidden_size"] == 96
    (asked,) = options.values()
    for name, tensor in gwq_export.open_gguf(out).tensors.items():
        if len(tensor.shape) > 1 and name.startswith("blk."):
            assert tensor.type.name == ("f16" if "ffn_down" in name else asked), name
    (said,) = (r.getMessage() for r in caplog.records if "stored in f16" in r.getMessage())
    assert all(f"blk.{i}.ffn_down.weight" in said for i in range(3)) and "ffn_up" not in said
    assert said.startswith(f"{asked} holds widths that are multiples of 32 only, so 3 matrices")
    assert gwq_export.load(out).logits([5, 6]).shape == (2, TINY["vocab_size"])


def test_importance_is_the_fisher_information_of_columns(tiny, tmp_path, capsys):
    """As autograd gives it token by token, in the keys and shapes of llama.cpp's files."""
    gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
    from gwq_export.calibration.sources import read_calibration
    from gwq_export.calibration.text import draw_calibration
    from gwq_export.hf.source import Source
    from gwq_export.tokenizer.from_hf import to_metadata
    from gwq_export.tokenizer.tokenizer import Tokenizer

    folder = tiny("llama")
    out = tmp_path / "imatrix.gguf"
    args = ["--type", "f16", "--samples", 2, "--ctx", 32]
    status, _, err = call(
        capsys, "export", folder, "--out", tmp_path / "f16.gguf", "--imatrix", out, *args
    )
    assert status == 0, err
    reader = gguf.GGUFReader(out)
    assert {
        k: v.contents()
        for k, v in reader.fields.items()
        if k.startswith(("general.type", "imatrix."))
    } == {
        "general.type": "imatrix",
        "imatrix.datasets": ["calibration.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 32,
    }
    found = {t.name: t for t in reader.tensors}
    assert len(found) == 2 * 7 * TINY["num_hidden_layers"]
    assert all(t.tensor_type == 0 for t in reader.tensors)
    source = Source(folder)
    model = original_model(folder)
    text = read_calibration(Tokenizer(to_metadata(folder, source.vocab)))
    tokens = draw_calibration(text, 2, 32, 0).tokens
    module = model.model.layers[1].mlp.down_proj
    seen = {}
    total = 0
    module.register_forward_hook(lambda m, x, z: seen.update(x=x[0], z=z))
    for ids in tokens:
        loss = model(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1)
        (g,) = torch.autograd.grad(loss, seen["z"])
        total += torch.stack(
            [torch.outer(a, b) ** 2 for a, b in zip(g[0], seen["x"][0], strict=True)]
        ).sum((0, 1))  # tokens, rows
    got, count = found["blk.1.ffn_down.weight.in_sum2"], found["blk.1.ffn_down.weight.counts"]
    assert count.data.item() == tokens.numel()
    assert list(got.shape) == [TINY["intermediate_size"], 1]
    assert list(count.shape) == [1, 1]
    total = total.detach().numpy()
    np.testing.assert_allclose(got.data.reshape(-1), total + 1e-3 * total.mean(), rtol=1e-3)
    status, _, err = call(
        capsys,
        "export",
        folder,
        "--out",
        tmp_path / "f16.gguf",
        "--imatrix",
        tmp_path / "f16.gguf",
        *args,
    )
    assert_one_line("export", status, err, "--imatrix")
