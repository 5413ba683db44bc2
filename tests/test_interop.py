"""Files for llama.cpp: ggml types coded under the curvature, the importance file, and bridge
files.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE, TINY
from reference import dequantized_model, kl_divergence, logits, original_model
from test_cli import assert_one_line, call
from test_encoder import layer, output_error

import gwq_export
from gwq_export import GwqError
from gwq_export.format import bridge
from gwq_export.format.ggml_types import decode_ggml, encode_ggml, pack_codes
from gwq_export.format.reader import Reader
from gwq_export.format.types import LEVELS, TYPES
from gwq_export.pipeline.options import options
from gwq_export.quantization.curvature import Curvature
from gwq_export.quantization.deltas import corrections
from gwq_export.quantization.encoder import encode

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import stock

each_level_type = pytest.mark.parametrize(
    "type", [TYPES[name] for name in LEVELS], ids=list(LEVELS)
)
IDS = np.random.default_rng(5).integers(3, 8192, 120)
needs_peer = pytest.mark.skipif(
    not stock.library_path().exists(), reason=f"no {stock.library_path()}: run tools/build_ggml"
)


# --- the types --------------------------------------------------------------------------------------------------------


def test_a_block_by_hand():
    for name, at in (("q4_0", 0.5 * (15 - 8)), ("iq4_nl", 0.5 * 113)):
        codes = np.zeros((1, 32), np.uint8)
        codes[0, 3], codes[0, 16 + 3], codes[0, 31] = 15, 2, 8
        data = pack_codes(TYPES[name], np.float16([0.5]), codes)
        assert data[:2].tobytes() == b"\x00\x38" and (data[2], data[2 + 3], data[2 + 15]) == (
            0,
            0x2F,
            0x80,
        )
        assert decode_ggml(TYPES[name], data, 1, 32)[0, 3] == at


@each_level_type
def test_gguf_decodes_the_same(type):
    gguf = pytest.importorskip("gguf")
    weight = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    weight[0, :32] = 0
    data, kind = encode_ggml(type, weight), gguf.GGMLQuantizationType(type.id)
    assert np.array_equal(
        decode_ggml(type, data, 40, 96), gguf.quants.dequantize(data.reshape(40, -1), kind)
    )
    if type.name == "q4_0":
        assert np.array_equal(data.reshape(40, -1), gguf.quants.quantize(weight, kind))
    largest = (
        np.abs(weight).reshape(-1, 32).max(1)
    )  # half the widest step of the table, which the largest weight scales
    error = np.abs(decode_ggml(type, data, 40, 96) - weight).reshape(-1, 32).max(1)
    assert (error <= largest * np.diff(type.levels).max() / -type.levels[0] * 1.01).all()


def test_what_cannot_be_held_is_refused():
    with pytest.raises(GwqError, match="multiple of 32, got 40"):
        encode_ggml(TYPES["q4_0"], np.ones((2, 40), np.float32))
    with pytest.raises(GwqError, match="too large for FP16"):
        encode_ggml(TYPES["q4_0"], np.full((1, 32), 1e6, np.float32))


# --- codes under the curvature ----------------------------------------------------------------------------------------


@each_level_type
def test_each_step_lowers_the_output_error(type, monkeypatch):
    from gwq_export.quantization import encoder

    weight, h, rows = layer(96, 352)
    curvature = Curvature(h)

    def run(**options):
        found = encode(weight, type, type.levels, curvature=curvature, row_weight=rows, **options)
        held = decode_ggml(type, pack_codes(type, found.scales, found.codes), *weight.shape)
        assert np.array_equal(held, found.values)
        return output_error(weight, held, curvature.matrix[:352, :352], rows)

    plain = output_error(
        weight,
        decode_ggml(type, encode_ggml(type, weight), *weight.shape),
        curvature.matrix[:352, :352],
        rows,
    )
    fitted = run(feedback=False)
    with monkeypatch.context() as m:
        m.setattr(encoder.GgmlCodes, "refit", lambda self, h: None)
        fed, swept = run(sweeps=0), run(sweeps=1)
    assert (
        fitted < 0.97 * plain
        and fed < 0.8 * fitted
        and swept < 0.95 * fed
        and run(sweeps=1) < swept
    )


@each_level_type
def test_scales_follow_the_columns_that_count(type):
    weight, _, _ = layer(16, 32)
    column_weight = np.where(np.arange(32) < 4, 100, 1).astype(np.float32)
    found, plain = (
        encode(weight, type, type.levels, curvature=c, feedback=False)
        for c in (Curvature(np.diag(column_weight)), None)
    )
    error = [((e.values - weight) ** 2)[:, :4].sum() for e in (found, plain)]
    assert error[0] < 0.8 * error[1]


def test_corrections_take_most_of_what_they_can():
    """Half of the deltas at random, or values that ignore each other, gain less."""
    type, (weight, h, rows) = TYPES["q4_0"], layer(64, 96)
    curvature = Curvature(h)
    coded = encode(weight, type, type.levels, curvature=curvature, row_weight=rows, sweeps=1).values
    row, col, value = corrections(weight, coded, curvature, rows, 300)
    assert len(row) == 300 and value.dtype == np.float16 and (np.diff(row * 96 + col) > 0).all()

    def error(row, col, value):
        changed = coded.copy()
        changed[row, col] += value
        return output_error(weight, changed, curvature.matrix[:96, :96], rows)

    found, before = error(row, col, value), error([], [], [])
    restored = error(
        row, col, (weight - coded)[row, col]
    )  # the weights as they were, whatever their errors stood in for
    rng = np.random.default_rng(0)
    elsewhere = np.divmod(np.sort(rng.permutation(weight.size)[:300]), 96)
    best_single = error(
        *elsewhere,
        -(curvature.matrix[:96, :96] @ (coded - weight).T / np.diag(curvature.matrix)[:96, None]).T[
            elsewhere
        ],
    )
    assert found < 0.8 * before and found < restored and found < best_single


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kld():
    """kld(path, base) -> KL divergence of the bundled model with the decoder that the file holds."""
    before, known = logits(original_model(REFERENCE), IDS), {}

    def measure(path, base=False):
        if (path, base) not in known:
            model = dequantized_model(REFERENCE, path, gwq_export.open_gguf(path, base), ends=False)
            known[path, base] = kl_divergence(before, logits(model, IDS))
        return known[path, base]

    return measure


def peer_kld(name, importance):
    """The same of llama.cpp's own quantization."""
    import compare

    from gwq_export.hf.source import Source

    original = original_model(REFERENCE)
    model, _ = compare.stock_model(original, Source(REFERENCE), name, importance(original))
    return kl_divergence(logits(original, IDS), logits(model, IDS))


def test_plain_q4_0_is_ggmls(exported):
    path, result = exported(type="q4_0")
    reader, kinds = gwq_export.open_gguf(path), {}
    for t in reader.tensors.values():
        kinds.setdefault(t.type.name, []).append(t.name)
    assert (
        set(kinds) == {"q4_0", "q8_0", "f32"}
        and kinds["q8_0"] == ["token_embd.weight"]
        and result["bpw_linear"] == 4.5
    )
    assert (
        reader.metadata["general.file_type"] == 2
        and "gwq.type" not in reader.metadata
        and "calibration_loss" not in result
    )
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
    plain, weighted = (
        peer_kld(name, lambda m: {}),
        peer_kld(name, lambda m: stock.importance(m, text)),
    )
    assert kld(path) < 0.75 * min(plain, weighted)


@pytest.fixture(scope="module")
def linked(exported):
    return exported(type="bridge", outliers=0.02)[0]


def test_a_bridge_is_the_stock_file_and_more(exported, linked, kld):
    plain, base, full = (
        gwq_export.open_gguf(exported(stock="q4_0")[0]),
        gwq_export.open_gguf(linked, base=True),
        gwq_export.open_gguf(linked),
    )
    full.check()
    base.check()
    assert list(base.tensors) == list(plain.tensors) and not any(
        t.outliers for t in base.tensors.values()
    )
    for name, tensor in plain.tensors.items():
        assert np.array_equal(tensor.data, base.tensors[name].data) and np.array_equal(
            tensor.data, full.tensors[name].data
        )
    linear = [t for t in full.tensors.values() if t.outliers]
    assert {t.type.name for t in linear} == {"q4_0"} and sum(
        t.outlier_count for t in linear
    ) == pytest.approx(0.02 * 3.145e6, rel=0.01)
    assert kld(linked) < 0.85 * kld(linked, True)
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
    data, reader = linked.read_bytes(), gwq_export.open_gguf(linked)
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
    """Deltas whose checksum is right but that name a tensor of the base, or one that is not there."""
    import hashlib

    data, reader = linked.read_bytes(), gwq_export.open_gguf(linked)
    offset, sha = reader.metadata[bridge.OFFSET_KEY], reader.metadata[bridge.SHA256_KEY].encode()
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
    usual = {
        "preset": "default",
        "type": None,
        "outliers": None,
        "saliency": None,
        "samples": None,
        "ctx": 64,
        "seed": 0,
    }
    with pytest.raises(GwqError, match=words):
        options(**usual | given)


def test_no_tile_type_in_a_stock_file(tiny, tmp_path):
    with pytest.raises(GwqError, match="cannot load gwq3 beside q4_0"):
        gwq_export.export(REFERENCE, tmp_path / "x.gguf", stock="q4_0", tensor_type="attn_v=gwq3")
    with pytest.raises(GwqError, match="multiple of 32, got 200"):  # TINY's
        gwq_export.export(tiny("llama"), tmp_path / "x.gguf", stock="q4_0")
    assert TINY["intermediate_size"] == 200 and not list(tmp_path.iterdir())


# --- importance -------------------------------------------------------------------------------------------------------


def test_importance_is_the_fisher_information_of_columns(tiny, tmp_path, capsys):
    """As autograd gives it token by token, in the keys and shapes of llama.cpp's files."""
    gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
    from gwq_export.calibration.text import draw_calibration
    from gwq_export.hf.source import Source
    from gwq_export.tokenizer.from_hf import to_metadata
    from gwq_export.tokenizer.tokenizer import Tokenizer

    folder, out = tiny("llama"), tmp_path / "imatrix.gguf"
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
    assert len(found) == 2 * 7 * TINY["num_hidden_layers"] and all(
        t.tensor_type == 0 for t in reader.tensors
    )
    source, model = Source(folder), original_model(folder)
    tokens = draw_calibration(Tokenizer(to_metadata(folder, source.vocab)), None, 2, 32, 0).tokens
    module, seen, total = model.model.layers[1].mlp.down_proj, {}, 0
    module.register_forward_hook(lambda m, x, z: seen.update(x=x[0], z=z))
    for ids in tokens:
        loss = model(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1)
        (g,) = torch.autograd.grad(loss, seen["z"])
        total += torch.stack(
            [torch.outer(a, b) ** 2 for a, b in zip(g[0], seen["x"][0], strict=True)]
        ).sum((0, 1))  # tokens, rows
    got, count = found["blk.1.ffn_down.weight.in_sum2"], found["blk.1.ffn_down.weight.counts"]
    assert (
        count.data.item() == tokens.numel()
        and list(got.shape) == [TINY["intermediate_size"], 1]
        and list(count.shape) == [1, 1]
    )
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
