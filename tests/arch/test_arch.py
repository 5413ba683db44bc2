"""Architectures at export: order of rows and statistics, ggml files, variants refused by name."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.arch.config import read_config
from gwq_export.arch.spec import gguf_name
from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import draw_calibration
from gwq_export.format.outliers import unpack_outliers
from gwq_export.hf.source import Source
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies.oracle import checkpoint_weight, logits, original_model
from tests.support.models import save_tiny


@pytest.mark.parametrize("name", ["gpt2", "gptneox", "phi", "granite"])
def test_weights_and_statistics_move_alike(tiny, exported, name):
    """Transposed, regrouped, fused and permuted: weights equal the checkpoint's, outliers are those
    of its largest gradients.
    """
    source = Source(tiny(name))
    exact = gwq_export.open_gguf(exported(tiny(name), type="f32")[0]).tensors
    tiled = gwq_export.open_gguf(
        exported(tiny(name), type="gwq4", preset="paper", samples=2, ctx=64)[0]
    ).tensors
    text = read_calibration(Tokenizer(to_metadata(tiny(name), source.vocab)))
    calibration = draw_calibration(text, 2, 64, 0)
    found = {
        hf: statistics["abs"] for hf, _, statistics in gradients(source, calibration, ("abs",))
    }
    for row, hf in source.block(1).items():
        gguf = gguf_name(1, row)
        assert np.array_equal(
            checkpoint_weight(exact[gguf].dequantize(), source, row), source.tensor(hf).numpy()
        ), hf
        if row.linear:
            at, column, _ = unpack_outliers(*tiled[gguf].outliers, tiled[gguf].shape)
            mask = np.zeros(tiled[gguf].shape, np.float32)
            mask[at, column] = 1
            chosen = checkpoint_weight(mask, source, row) == 1
            assert len(at) > 20 and found[hf][chosen].min() >= 0.999 * found[hf][~chosen].max(), hf


def test_norms_of_gemma_are_stored_whole(tiny, exported):
    source = Source(tiny("gemma3"))
    tensors = gwq_export.open_gguf(exported(tiny("gemma3"), type="f32")[0]).tensors
    for hf, gguf in [
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.2.self_attn.k_norm.weight", "blk.2.attn_k_norm.weight"),
    ]:
        assert np.array_equal(tensors[gguf].dequantize(), source.tensor(hf).numpy() + np.float32(1))


def test_a_checkpoint_of_the_bare_decoder(tiny, exported, tmp_path):
    """GPT-2's on the Hub names its tensors without the decoder's prefix, and carries its masks."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("gpt2"), tmp_path / "bare")
    tensors = {
        name.removeprefix("transformer."): t
        for name, t in load_file(tiny("gpt2") / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = tensors["wte.weight"][:4, :4].clone()
    save_file(tensors, tmp_path / "bare" / "model.safetensors")
    a, b = (exported(folder, type="f32")[0] for folder in (tiny("gpt2"), tmp_path / "bare"))
    a, b = (gwq_export.open_gguf(path).tensors for path in (a, b))
    assert list(a) == list(b)
    assert all(np.array_equal(a[name].dequantize(), b[name].dequantize()) for name in a)


def ggml_config(arch, **keys):
    """read_config of a file with these keys after the architecture's name; "__" stands for "."."""
    usual = {
        "block_count": 2,
        "embedding_length": 96,
        "feed_forward_length": 200,
        "attention.head_count": 6,
        "context_length": 256,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": 32,
        "attention.value_length": 32,
    }
    meta = usual | {key.replace("__", "."): value for key, value in keys.items()}
    meta = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in meta.items()}
    return read_config(
        SimpleNamespace(
            path="m.gguf",
            metadata=meta,
            tensors={"token_embd.weight": SimpleNamespace(shape=(500, 96))},
        )
    )


def test_what_stock_files_leave_to_the_architecture():
    """llama.cpp's rules: Gemma of 27B scales scores by the width over the heads, windows alternate,
    sliding blocks have their own base.
    """
    small = ggml_config("gemma2", attention__sliding_window=64)
    large = ggml_config("gemma2", block_count=46)
    assert small.attention_scale == pytest.approx(32**-0.5)
    assert large.attention_scale == pytest.approx(16**-0.5)
    assert small.embedding_scale == pytest.approx(96**0.5)
    assert small.windows == (64, 0) and not any(large.windows)
    gemma3 = ggml_config("gemma3", block_count=7, attention__sliding_window=64, rope__freq_base=1e6)
    assert gemma3.windows == (64, 64, 64, 64, 64, 0, 64)
    assert (gemma3.rope.base, gemma3.rope_swa.base) == (1e6, 1e4)
    assert ggml_config(
        "gemma3", attention__sliding_window=8, attention__sliding_window_pattern=2
    ).windows == (8, 0)
    assert ggml_config("llama", attention__sliding_window=8).windows == (8, 8)
    listed = ggml_config(
        "exaone4",
        attention__sliding_window=8,
        attention__sliding_window_pattern=np.array([False, True]),
    )
    assert listed.windows == (0, 8) and listed.turned == (False, True)
    assert ggml_config("exaone4").turned == (True, True)
    assert ggml_config("granite", logit_scale=4.0).logit_scale == 0.25
    mixed = ggml_config("lfm2", attention__head_count_kv=np.array([0, 2]), shortconv__l_cache=3)
    assert (mixed.kinds, mixed.kv_heads, mixed.taps) == (("conv", "attention"), 2, 3)
    assert ggml_config("lfm2", attention__head_count_kv=2).kinds == ("attention",) * 2


@pytest.mark.parametrize(
    "arch, keys, words",
    [
        ("llama", {"rope__scaling__type": "other"}, "rope scaling 'other'"),
        ("llama", {"rope__dimension_count": 40}, "dimension_count is 40"),
        ("llama", {"rope__dimension_count": 7}, "7 rotated"),
        ("granite", {"logit_scale": 0.0}, "logit_scale is 0.0"),
        ("gemma2", {"attn_logit_softcapping": "x"}, "softcapping is 'x'"),
        ("gemma3", {"attention__sliding_window_pattern": -1}, "is -1"),
        (
            "gptneox",
            {"use_parallel_residual": 1, "attention__layer_norm_epsilon": 1e-5},
            "use_parallel_residual is 1",
        ),
        ("phi3", {"attention__value_length": 16}, "does not compute"),
        ("gpt2", {}, "layer_norm_epsilon is None"),
        ("exaone4", {"attention__sliding_window_pattern": [True]}, "window_pattern is .True"),
        ("lfm2", {"attention__head_count_kv": np.array([0, 2, 0])}, "head_count_kv is array"),
        ("lfm2", {"attention__head_count_kv": np.array([2, 3])}, r"head_count_kv is \[2, 3\]"),
        ("lfm2", {"attention__head_count_kv": np.array([-1, 2])}, "head_count_kv is array"),
        ("lfm2", {"attention__head_count_kv": np.array([0, 4])}, "does not compute"),
        ("lfm2", {"attention__head_count_kv": np.array([0, 2])}, "l_cache is None"),
        (
            "lfm2",
            {"attention__head_count_kv": np.array([0, 2]), "shortconv__l_cache": 33},
            "l_cache is 33",
        ),
        ("llama", {"attention__head_count_kv": np.array([0, 2])}, "head_count_kv is array"),
    ],
)
def test_keys_that_cannot_be_are_refused(arch, keys, words):
    with pytest.raises(GwqError, match=words):
        ggml_config(arch, **keys)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
PROPORTIONAL = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e4, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}, "no_rope_layers"),
        ("granite", {"mlp_bias": True}, "mlp_bias"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        ("olmo2", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("phi", {"rope_parameters": LONGROPE}, "long_factor"),
        ("phi", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "'longrope'.*linear"),
        ("phi", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": YARN | {"mscale": 1.0}}, "mscale"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "truncate"),
        ("llama", {"rope_parameters": YARN | {"attention_factor": 1.0}}, "attention_factor"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "layer_types",
        ),
        (
            "gemma2",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "layer_types",
        ),
        ("gemma2", {"attn_logit_softcapping": None}, "softcapping is None"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit"),
        ("ernie", {"use_bias": True}, "use_bias = True"),
        ("cohere2", {"attention_bias": True}, "attention_bias"),
        ("olmo3", {"layer_types": ["full_attention", "chunked_attention"] * 2 + ["x"]}, "chunked"),
        ("hunyuan", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "'default'"),
        ("ministral3", {"rope_parameters": YARN | {"mscale": 0.5, "mscale_all_dim": 1}}, "mscale"),
        ("ministral3", {"rope_parameters": YARN}, "llama_4_scaling_beta"),
        ("lfm2", {"conv_bias": True}, "conv_bias = True"),
        ("lfm2", {"conv_L_cache": 33}, "conv_L_cache = 33"),
        ("lfm2", {"layer_types": ["sliding_attention"] * 5}, "attention, conv$"),
        ("lfm3", {"sliding_window": None}, "layer_types"),
        ("lfm3", {"rope_parameters": PROPORTIONAL}, "'proportional' with .* and factor 2"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ("gpt2", {"n_layer": "3"}, "does not accept it .*'n_layer'"),
        ("gptneox", {"hidden_act": "gelu_fast"}, "gelu_fast"),
        ("gptneox", {"attention_bias": False}, "attention_bias"),
    ],
)
def test_variants_are_refused_by_name(tiny, tmp_path, name, changes, words):
    folder = tmp_path / name
    shutil.copytree(tiny(name), folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(GwqError, match=words):
        gwq_export.export(folder, tmp_path / "m.gguf", type="f32")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    "config_class, part, rotated",
    [
        ("GPTNeoXConfig", 0.8, 12),
        ("Phi3Config", 0.93, 14),
        ("Phi3Config", 0.45, None),
        ("GPTNeoXConfig", 0.07, None),
        ("LlamaConfig", 0.5, None),
    ],
)
def test_part_of_a_head_turns(tmp_path, config_class, part, rotated):
    """Of 16 values: a fraction is rounded down like in transformers; an odd number, or less than
    two, is refused.
    """
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part}
    folder = save_tiny(
        tmp_path / "hf", config_class, num_hidden_layers=1, pad_token_id=None, rope_parameters=rope
    )
    if rotated is None:
        with pytest.raises(
            GwqError,
            match="turns 7 of a head's 16 values"
            if part == 0.45
            else f"partial_rotary_factor {part} is not",
        ):
            gwq_export.export(folder, tmp_path / "m.gguf", type="f32")
        return
    gwq_export.export(folder, tmp_path / "m.gguf", type="f32")
    model = gwq_export.load(tmp_path / "m.gguf")
    ids = np.arange(5, 60) * 7
    expected = logits(original_model(folder), ids)
    assert model.weights.config.rope.rotated == rotated
    assert np.abs(model.logits(ids) - expected).max() <= 1e-4 * np.abs(expected).max()
