"""The pipeline: the file holds what was asked for, to the byte; failures leave nothing behind."""

import json
import shutil

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.sources import CALIBRATION, read_calibration
from gwq_export.evaluation.perplexity import evaluate
from gwq_export.evaluation.predictors import runtime_logits
from gwq_export.format.outliers import unpack_outliers
from gwq_export.hf.source import Source
from studies.oracle import unpermute
from tests.support.models import save_tiny
from tests.support.paths import DATA, REFERENCE


@pytest.mark.parametrize(
    "type, fraction", [("gwq4", 0.01), ("gwq3", 0.005), ("gwq2", 0.02), ("gwq4", 0.0)]
)
def test_every_linear_is_what_was_asked(tiny, exported, type, fraction):
    for folder in (REFERENCE, tiny("llama"), tiny("qwen2")):
        path, result = exported(folder, type=type, outliers=fraction, samples=1, ctx=64)
        reader = gwq_export.open_gguf(path)
        reader.check()
        linear = [
            t for t in reader.tensors.values() if len(t.shape) == 2 and t.name.startswith("blk.")
        ]
        assert len(linear) == 7 * Source(folder).layers
        assert {t.type.name for t in linear} == {type}
        kept, weights = sum(t.outlier_count for t in linear), sum(np.prod(t.shape) for t in linear)
        assert kept == pytest.approx(fraction * weights, rel=0.01)
        assert result["outlier_fraction"] == pytest.approx(kept / weights)
        assert result["bytes"] == path.stat().st_size == reader.nbytes
        assert result["bpw"] == pytest.approx(8 * reader.nbytes / result["params"])
        held = sum(
            t.nbytes
            for t in reader.tensors.values()
            if t.name.startswith("blk.") and t.type.name != "f32"
        )
        assert result["bpw_linear"] == pytest.approx(8 * held / weights)
        assert reader.metadata["gwq.type"] == type and reader.metadata["gwq.saliency"] == "loss"


def test_unquantized_weights_are_exact(tiny, exported):
    folder = tiny("llama-bias")
    source = Source(folder)
    reader = gwq_export.open_gguf(exported(folder, type="f32")[0])
    # llama.cpp permutes Q and K of llama models
    for name, heads in [("q_proj", 6), ("k_proj", 2), ("v_proj", 0)]:
        gguf = f"blk.1.attn_{name[0]}"
        for part in ("weight", "bias"):
            got = reader.tensors[f"{gguf}.{part}"].dequantize()
            expected = source.tensor(f"model.layers.1.self_attn.{name}.{part}").numpy()
            assert np.array_equal(unpermute(got, heads) if heads else got, expected)
    assert "output.weight" not in reader.tensors  # tied
    assert not any(key.startswith("gwq.") for key in reader.metadata)  # an ordinary file
    assert reader.alignment == 32
    # llama-quantize would keep the key and pad to 32
    assert "general.alignment" not in reader.metadata


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_architectures_that_turn_halves_keep_their_order(tiny, exported, name):
    source = Source(tiny(name))
    reader = gwq_export.open_gguf(exported(tiny(name), type="f32")[0])
    for i in range(source.layers):
        for row, hf in source.block(i).items():
            assert np.array_equal(
                reader.tensors[f"blk.{i}.{row.gguf}"].dequantize(), source.tensor(hf).numpy()
            ), hf


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_outliers_are_the_largest_weights_in_the_permuted_order(exported, preset):
    """With the weight's FP16 value where the table has a zero to stand beneath them and no errors
    of others are fed to them.
    """
    reader = gwq_export.open_gguf(
        exported(type="gwq2", preset=preset, saliency="magnitude", fast=True)[0]
    )
    tensor = reader.tensors["blk.2.attn_q.weight"]
    weight = Source(REFERENCE).tensor("model.layers.2.self_attn.q_proj.weight").numpy().reshape(-1)
    count = round({"paper": 0.01, "default": 0.0025}[preset] * weight.size)
    mask = np.zeros(tensor.shape, bool)
    (row, col, _) = unpack_outliers(*tensor.outliers, tensor.shape)
    mask[row, col] = True
    top = np.flatnonzero(unpermute(mask, 4))
    # some are equal
    assert np.array_equal(np.sort(np.abs(weight[top])), np.sort(np.abs(weight))[-count:])
    if preset == "paper":
        got = unpermute(tensor.dequantize(), 4).reshape(-1)
        assert np.array_equal(got[top], weight[top].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    "preset, rule", [("paper", "grad"), ("default", "loss"), ("default", "fisher-loss")]
)
def test_statistics_follow_their_rows(exported, preset, rule):
    """Outliers are those that the rule picks in transformers' order of rows: weights and statistics
    are permuted alike.
    """
    from gwq_export.calibration.gradients import gradients
    from gwq_export.calibration.text import draw_calibration
    from gwq_export.quantization.curvature import Curvature
    from gwq_export.quantization.saliency import SALIENCY
    from gwq_export.tokenizer.from_hf import to_metadata
    from gwq_export.tokenizer.tokenizer import Tokenizer

    source = Source(REFERENCE)
    wanted = "model.layers.2.self_attn.k_proj.weight"
    text = read_calibration(Tokenizer(to_metadata(REFERENCE, source.vocab)))
    calibration = draw_calibration(text, 4, 256, 0)
    found = {
        name: (w, s)
        for name, w, s in gradients(source, calibration, ("abs", "square", "hessian", "rows"))
    }
    weight, statistics = found[wanted]
    statistics["hessian"] = Curvature(statistics["hessian"], calibration.tokens.numel())
    score = SALIENCY[rule].score(weight, statistics, None, None).reshape(-1)
    tensor = gwq_export.open_gguf(
        exported(type="gwq4", preset=preset, saliency=rule, fast=True)[0]
    ).tensors["blk.2.attn_k.weight"]
    mask = np.zeros(tensor.shape, bool)
    (row, col, _) = unpack_outliers(*tensor.outliers, tensor.shape)
    mask[row, col] = True
    chosen = np.flatnonzero(unpermute(mask, 2))
    best = np.argsort(-score)[: len(chosen)]
    # float32 sums may differ where scores are nearly equal
    assert len(np.intersect1d(chosen, best)) >= 0.99 * len(chosen)


def test_same_input_same_bytes(exported):
    a, b, c, d = (
        exported(type="gwq3", saliency="random", samples=2, ctx=64, seed=s, calib=x)[0].read_bytes()
        for s, x in [
            (0, None),
            (0, str(CALIBRATION)),
            (1, None),
            (1, str(CALIBRATION)),
        ]
    )
    assert a == b and c == d and a != c


def test_gradients_make_the_choice(exported):
    """The rules differ from one another."""
    files = {
        s: exported(type="gwq4", saliency=s)[0]
        for s in ("loss", "grad", "fisher", "magnitude", "random")
    }
    tables = {
        s: gwq_export.open_gguf(p).tensors["blk.0.ffn_up.weight"].outliers[0].tobytes()
        for s, p in files.items()
    }
    assert len(set(tables.values())) == len(files)


def test_tensor_types(tiny, exported):
    path, _ = exported(
        type="gwq4",
        tensor_type=["token_embd=gwq3", r"ffn_down=q8_0", r"blk\.0\.=gwq2"],
        samples=1,
        ctx=64,
    )
    types = {t.name: t.type.name for t in gwq_export.open_gguf(path).tensors.values()}
    assert types["token_embd.weight"] == "gwq3" and types["blk.0.ffn_down.weight"] == "gwq2"
    assert types["blk.1.ffn_down.weight"] == "q8_0" and types["blk.1.attn_q.weight"] == "gwq4"
    assert types["blk.0.attn_norm.weight"] == "f32"
    assert np.isfinite(gwq_export.load(path).logits([5, 6])).all()
    # untied: each end alone, too
    for pattern in ("^output\\.weight|token_embd", "^output\\.weight", "token_embd"):
        path, _ = exported(
            tiny("llama"), type="gwq4", tensor_type=[f"{pattern}=gwq4"], samples=1, ctx=64
        )
        tensors = gwq_export.open_gguf(path).tensors
        for name, hf in [
            ("output.weight", "lm_head.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ]:
            weight = Source(tiny("llama")).tensor(hf).numpy()
            got = tensors[name].dequantize()
            # most tokens were never seen
            assert ((got - weight) ** 2).mean() < 0.02 * (weight**2).mean(), name


def test_presets(exported):
    _, result = exported(type="gwq4", preset="paper", samples=None)
    assert result["calibration_tokens"] == 256  # one sample
    meta = gwq_export.open_gguf(exported(type="gwq4", preset="paper", samples=None)[0]).metadata
    assert [meta[f"gwq.{k}"] for k in ("preset", "saliency", "table", "error_feedback")] == [
        "paper",
        "grad",
        "grid",
        False,
    ]
    assert meta["gwq.outlier_fraction"] == pytest.approx(0.01)
    meta = gwq_export.open_gguf(exported(type="gwq4", samples=None)[0]).metadata
    assert [meta[f"gwq.{k}"] for k in ("preset", "saliency", "table", "error_feedback")] == [
        "default",
        "loss",
        "trellis",
        True,
    ]
    assert (meta["gwq.outlier_fraction"], meta["gwq.calibration_samples"]) == (
        pytest.approx(0.0025),
        32,
    )


@pytest.fixture(scope="module")
def divergence(exported):
    """divergence(**options of export) -> KL divergence of such an export of the bundled model, on a
    few windows.
    """
    text = (DATA / "eval.txt").read_text()[:12000]
    against = runtime_logits(gwq_export.load(exported(type="f32")[0]))
    return lambda **options: evaluate(gwq_export.load(exported(**options)[0]), text, 256, against)[
        "kld_mean"
    ]


def test_outliers_pay(divergence):
    """Those of the largest expected loss, against none and against as many random ones."""
    found = {
        s: divergence(type="gwq2", samples=8, saliency=s, outliers=0.01) for s in ("loss", "random")
    }
    found["none"] = divergence(type="gwq2", samples=8, outliers=0.0)
    assert found["loss"] < 0.95 * min(found["random"], found["none"]), found


@pytest.mark.parametrize("type", ["gwq4", "gwq3", "gwq2"])
def test_the_default_preset_is_worth_its_work(divergence, type):
    """At fewer bytes than the published recipe."""
    default = divergence(type=type, samples=8)
    paper = divergence(type=type, samples=None, preset="paper")
    assert default < 0.45 * paper, (default, paper)


def test_dry_run_is_exact_and_writes_nothing(tmp_path, exported):
    planned = gwq_export.export(
        REFERENCE, tmp_path / "m.gguf", type="gwq4", samples=4, ctx=256, dry_run=True
    )
    assert not list(tmp_path.iterdir())
    assert planned["bytes"] == exported(type="gwq4")[1]["bytes"]


def test_sharded_and_half_precision_sources(tmp_path, tiny, exported):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("qwen3"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="200kB")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny("qwen3") / file, tmp_path / file)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    path, _ = exported(tmp_path, type="bf16")
    got = gwq_export.open_gguf(path).tensors["blk.2.ffn_up.weight"].dequantize()
    assert np.array_equal(
        got, model.get_parameter("model.layers.2.mlp.up_proj.weight").float().detach().numpy()
    )


def broken(tmp_path, name):
    """A copy of a tiny model with one thing wrong; returns its folder."""
    folder = save_tiny(tmp_path / "model", "LlamaConfig")
    config = json.loads((folder / "config.json").read_text())
    match name:
        case "architecture":
            config["architectures"] = ["BertModel"]
        case "activation":
            config["hidden_act"] = "gelu"
        case "rope":
            config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        case "layers":
            config["num_hidden_layers"] = 5
        case "size":
            config["intermediate_size"] = 300
        case "heads":
            config["num_key_value_heads"] = 4
        case "no heads":
            config["num_key_value_heads"] = 0
        case "text for a number":
            config["hidden_size"] = "96"
        case "epsilon":
            config["rms_norm_eps"] = "small"
        case "a list":
            config = [config]
        case "list of lists":
            config["architectures"] = [["LlamaForCausalLM"]]
        case "model type":
            config["model_type"] = "nonsense"
        case "bias":
            config["attention_bias"] = True
        case "linear":
            config["rope_parameters"] = {"rope_type": "linear", "rope_theta": 1e4}
        case "no config":
            (folder / "config.json").unlink()
            return folder
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "truncated weights":
            (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:5000]
            )
        case "nan":
            from safetensors.torch import load_file, save_file

            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
            save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("type", ["gwq4", "f16"])
@pytest.mark.parametrize(
    "name, words",
    [
        ("architecture", "BertModel is not supported"),
        ("activation", "hidden_act = 'gelu'"),
        ("rope", "'dynamic' is not supported"),
        ("layers", "layers.3.input_layernorm.weight is missing"),
        ("size", "would fit the config"),
        ("heads", "cannot be"),
        ("no heads", "num_key_value_heads is 0"),
        ("text for a number", "does not accept it .*hidden_size"),
        ("epsilon", "does not accept it .*rms_norm_eps"),
        ("a list", "not an object"),
        ("list of lists", "is not supported"),
        ("model type", "transformers does not accept it"),
        ("bias", "bias is missing"),
        ("linear", "factor"),
        ("no config", "no config.json"),
        ("no tokenizer", "tokenizer"),
        ("no weights", "no model.safetensors"),
        ("truncated weights", "download the model again"),
        ("nan", "NaN or infinity"),
    ],
)
def test_bad_models_are_refused_and_leave_nothing(tmp_path, name, words, type):
    folder = broken(tmp_path, name)
    out = tmp_path / "m.gguf"
    with pytest.raises(GwqError, match=words):
        gwq_export.export(folder, out, type=type, samples=1, ctx=32)
    assert not out.exists() and not list(tmp_path.glob("*.part"))
