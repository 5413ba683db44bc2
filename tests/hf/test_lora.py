"""Adapters that are added to a model's weights when they are read."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gwq_export
from gwq_export import GwqError
from gwq_export.hf.lora import Adapter
from gwq_export.hf.opened import open_model
from gwq_export.hf.source import Source
from tests.support.folders import IDS

WEIGHTS = "adapter_model.safetensors"
LAYER = "model.layers.1"
LLAMA = (f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.down_proj", "lm_head")
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "task_type": "CAUSAL_LM"}


def saved(folder, pairs, config):
    folder.mkdir(exist_ok=True)
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def adapter(folder, model, modules=LLAMA, config=CONFIG, rank=4, ranks=None, dtype=torch.float32):
    """Random matrices for modules of the folder `model`: (folder, {module: (A, B)})."""
    weights = load_file(model / "model.safetensors")
    random = torch.Generator().manual_seed(3)
    pairs = {}
    for module in modules:
        shape = weights[f"{module}.weight"].shape
        rows, cols = shape[::-1] if "c_" in module else shape  # GPT-2's lie transposed
        r = (ranks or {}).get(module, rank)
        a, b = (0.2 * torch.randn(n, generator=random) for n in ((r, cols), (rows, r)))
        pairs[module] = a.to(dtype), b.to(dtype)
    return saved(folder, pairs, config), pairs


def merged(model, lora, pairs, scale):
    """The source of both has the sum for every module, and the model's own tensors elsewhere."""
    plain, source = Source(model), Source(model)
    source.adapt(Adapter(lora))
    changed = {f"{module}.weight": module for module in pairs}
    for name in load_file(model / "model.safetensors"):
        meant = plain.tensor(name)
        if name in changed:
            a, b = (t.float() for t in pairs[changed[name]])
            delta = scale(changed[name]) * (b @ a)
            meant = meant + (delta.T if "c_" in name else delta)
        torch.testing.assert_close(source.tensor(name), meant, rtol=1e-5, atol=1e-6)
    return source


def test_products_are_added(tmp_path, tiny):
    lora, pairs = adapter(tmp_path / "a", tiny("llama"))
    source = merged(tiny("llama"), lora, pairs, lambda module: 6 / 4)
    assert source.provenance == {"source_lora": "a"}
    assert [name for name, *_ in source.files if WEIGHTS in name] == [str(lora / WEIGHTS)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_halves(tmp_path, tiny, dtype):
    lora, pairs = adapter(tmp_path / "a", tiny("llama"), dtype=dtype)
    merged(tiny("llama"), lora, pairs, lambda module: 6 / 4)


def test_scales_of_their_own(tmp_path, tiny):
    config = CONFIG | {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 9, "proj": 5},  # the second is the end of no module's name
        "alpha_pattern": {r"layers\.\d+\.mlp\.down_proj": 3, ".*_proj": 1.5},
    }
    ranks = {LLAMA[0]: 9}
    lora, pairs = adapter(tmp_path / "a", tiny("llama"), config=config, ranks=ranks)
    scales = {LLAMA[0]: 1.5 / 3, LLAMA[1]: 3 / 2, LLAMA[2]: 6 / 2}
    merged(tiny("llama"), lora, pairs, scales.get)


def test_matrices_that_lie_transposed(tmp_path, tiny):
    modules = ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj")
    config = CONFIG | {"fan_in_fan_out": True}
    lora, pairs = adapter(tmp_path / "a", tiny("gpt2"), modules, config)
    merged(tiny("gpt2"), lora, pairs, lambda module: 6 / 4)


def test_matrices_that_the_source_takes_apart(tmp_path, tiny):
    """Granite 4 has gate and up in one."""
    module = "model.layers.1.shared_mlp.input_linear"
    lora, pairs = adapter(tmp_path / "a", tiny("granite4"), [module])
    plain, source = Source(tiny("granite4")), Source(tiny("granite4"))
    source.adapt(Adapter(lora))
    a, b = pairs[module]
    for i, projection in enumerate(("gate", "up")):
        (name,) = (n for n in source.block(1).values() if f"{projection}_proj" in n)
        delta = (source.tensor(name) - plain.tensor(name)) / 1.5
        assert torch.allclose(delta, b.chunk(2)[i] @ a, atol=1e-5)


def test_the_bytes_do_not_depend_on_threads(tmp_path, tiny):
    rank = {"r": 64}
    lora, _ = adapter(tmp_path / "a", tiny("llama"), config=CONFIG | rank, rank=64)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        source = Source(tiny("llama"))
        source.adapt(Adapter(lora))
        found.append([source.tensor(f"{module}.weight") for module in LLAMA])
    torch.set_num_threads(before)
    assert all(
        torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True)
    )


def test_an_export_is_one_of_the_merged_model(tmp_path, tiny, calib):
    """Calibrated and quantized: the same bytes as from a folder of the sums."""
    import shutil

    lora, _ = adapter(tmp_path / "a", tiny("llama"))
    folder = shutil.copytree(tiny("llama"), tmp_path / "m")
    source = Source(tiny("llama"))
    source.adapt(Adapter(lora))
    names = load_file(folder / "model.safetensors")
    save_file({n: source.tensor(n) for n in names}, folder / "model.safetensors", {"format": "pt"})
    options = {"type": "gwq4", "samples": 2, "ctx": 64, "calib": calib}
    gwq_export.export(tiny("llama"), tmp_path / "a.gguf", lora=lora, **options)
    gwq_export.export(folder, tmp_path / "b.gguf", **options)
    one, two = (gwq_export.open_gguf(tmp_path / f) for f in ("a.gguf", "b.gguf"))
    assert one.metadata["gwq.source_lora"] == "a"
    assert list(one.tensors) == list(two.tensors)
    assert all(np.array_equal(t.data, two.tensors[n].data) for n, t in one.tensors.items())


def test_a_gguf_file_as_the_model(tmp_path, tiny):
    base = tmp_path / "base.gguf"
    gwq_export.export(tiny("llama"), base, type="f32")
    lora, pairs = adapter(tmp_path / "a", tiny("llama"))
    expected = Source(tiny("llama"))
    expected.adapt(Adapter(lora))
    for source in (open_model(base, lora=lora), open_model(tiny("llama"), base, lora=lora)):
        source = source.source
        for name in (f"{module}.weight" for module in pairs):
            assert torch.equal(source.tensor(name), expected.tensor(name))
        assert source.provenance["source_lora"] == "a"


def test_the_text_model_of_a_larger_one(tmp_path, caplog):
    """Its modules have one of several names, whatever the checkpoint's are."""
    import transformers

    from tests.support.models import TINY, save_tokenizer

    text = transformers.Qwen2Config(**TINY).to_dict()
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 96}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    model = transformers.AutoModelForMultimodalLM.from_config(config)
    model.save_pretrained(tmp_path / "m")
    save_tokenizer(tmp_path / "m", TINY["vocab_size"])
    a, b = torch.ones(4, 96), torch.ones(96, 4)
    plain = Source(tmp_path / "m").tensor(f"{LLAMA[0]}.weight")
    for inside in ("model.language_model.layers", "language_model.model.layers", "model.layers"):
        module = LLAMA[0].replace("model.layers", inside)
        source = Source(tmp_path / "m")
        source.adapt(Adapter(saved(tmp_path / "a", {module: (a, b)}, CONFIG)))
        assert torch.allclose(source.tensor(f"{LLAMA[0]}.weight"), plain + 6)


@pytest.mark.parametrize(
    "name, modules",
    [
        ("llama", LLAMA[:2]),
        ("qwen2", LLAMA),
        ("gpt2", ["transformer.h.0.mlp.c_fc", "transformer.h.2.attn.c_proj"]),
    ],
)
def test_logits_are_those_of_peft(tmp_path, tiny, name, modules):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    ends = sorted({module.rpartition(".")[2] for module in modules})
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=ends,
        rank_pattern={ends[0]: 7},
        alpha_pattern={ends[-1]: 11},
        init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
    )
    torch.manual_seed(5)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    again = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    whole = peft.PeftModel.from_pretrained(again, tmp_path / "a").eval()
    with torch.no_grad():
        expected = whole(torch.tensor([IDS])).logits[0].numpy()
    gwq_export.export(tiny(name), tmp_path / "m.gguf", type="f32", lora=tmp_path / "a")
    error = np.abs(gwq_export.load(tmp_path / "m.gguf").logits(IDS) - expected).max()
    assert error < 2e-4 * np.abs(expected).max()


REFUSED = {  # change of the config -> words
    "another kind": ({"peft_type": "IA3"}, "of type 'IA3' is not merged here"),
    "no kind": ({"peft_type": None}, "of type None is not merged here"),
    "DoRA": ({"use_dora": True}, "use_dora = True is not merged here: merge it with peft's"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not"),
    "biases": ({"bias": "all"}, "its bias = 'all' is not merged"),
    "biases of its own": ({"lora_bias": True}, "its lora_bias = True is not merged"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not merged"),
    "experts in one tensor": ({"target_parameters": ["experts.down_proj"]}, "target_parameters ="),
    "what comes next year": ({"use_twisted": 1}, "its use_twisted = 1 is not merged"),
    "no rank": ({"r": 0}, "has rank or alpha 0, expected a positive number"),
    "another rank": ({"r": 5}, "has matrices of 4x96 and .*x4, which do not fit the rank"),
    "alpha of text": ({"lora_alpha": "x"}, "has rank or alpha 'x'"),
    "patterns": ({"rank_pattern": {"(": 4}}, "pattern '.' is no regular expression"),
    "patterns in a list": ({"alpha_pattern": [1]}, "are to be objects"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_configs_that_are_not_merged(tmp_path, tiny, what):
    change, words = REFUSED[what]
    lora, _ = adapter(tmp_path / "a", tiny("llama"), config=CONFIG | change)
    with pytest.raises(GwqError, match=words):
        open_model(tiny("llama"), lora=lora)


def tensors_changed(change):
    def apply(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / WEIGHTS)

    return apply


NAME = f"base_model.model.{LLAMA[0]}"
DAMAGE = {  # what is wrong -> (change of the folder, words)
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"there is no {WEIGHTS}; save it"),
    "half of the weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        f"{WEIGHTS}: cannot be read",
    ),
    "one of two": (tensors_changed(lambda t: t.pop(f"{NAME}.lora_A.weight")), "has only one of"),
    "no tensor": (tensors_changed(dict.clear), "holds no tensor"),
    "an embedding": (
        tensors_changed(lambda t: t.update({f"{NAME}.lora_embedding_A": torch.zeros(4, 9)})),
        "its tensor .*lora_embedding_A is not merged here",
    ),
    "an embedding of its own": (
        tensors_changed(
            lambda t: t.update(
                {"base_model.model.model.embed_tokens.weight": torch.zeros(1024, 96)}
            )
        ),
        "its tensor .*embed_tokens.weight is not the model's own",
    ),
    "a module of another model": (
        tensors_changed(lambda t: [rename(t, e, "layers.1.", "layers.9.") for e in "AB"]),
        r"layers\.9\.self_attn\.q_proj is not in the model",
    ),
    "another size": (
        tensors_changed(lambda t: cut(t, f"{NAME}.lora_B.weight")),
        r"changes a matrix of \(90, 96\), the model's is \(96, 96\)",
    ),
    "integers": (
        tensors_changed(
            lambda t: t.update({f"{NAME}.lora_A.weight": torch.zeros(4, 96, dtype=torch.int8)})
        ),
        "lora_A.weight is no matrix of floats",
    ),
}


def rename(tensors, end, old, new):
    name = f"{NAME}.lora_{end}.weight"
    tensors[name.replace(old, new)] = tensors.pop(name)


def cut(tensors, name):
    tensors[name] = tensors[name][:90]


@pytest.mark.parametrize("what", DAMAGE)
def test_folders_that_are_not_whole(tmp_path, tiny, what):
    change, words = DAMAGE[what]
    lora, _ = adapter(tmp_path / "a", tiny("llama"))
    change(lora)
    with pytest.raises(GwqError, match=words):
        open_model(tiny("llama"), lora=lora)


def test_a_tied_head_is_not_changed(tmp_path, tiny):
    pair = {"lm_head": (torch.ones(4, 96), torch.ones(1024, 4))}
    lora = saved(tmp_path / "a", pair, CONFIG)
    with pytest.raises(GwqError, match=r"lm_head is (not in the model|the embedding)"):
        open_model(tiny("gemma2"), lora=lora)


def test_no_folder(tmp_path, tiny):
    with pytest.raises(GwqError, match="no such folder; give the folder of an adapter"):
        gwq_export.export(tiny("llama"), tmp_path / "m.gguf", lora=tmp_path / "none")


def test_numbers_that_are_none(tmp_path, tiny):
    lora, _ = adapter(tmp_path / "a", tiny("llama"))
    tensors_changed(lambda t: t[f"{NAME}.lora_B.weight"].fill_(float("nan")))(lora)
    with pytest.raises(GwqError, match=f"{LLAMA[0]}.weight holds NaN or infinity"):
        open_model(tiny("llama"), lora=lora).source.tensor(f"{LLAMA[0]}.weight")


def test_an_adapter_of_a_quantized_model(tmp_path, tiny):
    """As QLoRA makes them: the sum is one with what the model decodes to."""
    from tests.support.prequantized import quantized

    def encode(weight):
        scale = weight.abs().amax(1)
        codes = (weight / scale[:, None] * 127).round()
        return {"weight": codes.to(torch.int8), "SCB": scale}, codes * scale[:, None] / 127

    folder, meant = quantized(
        tiny("llama"), tmp_path / "m", encode, {"quant_method": "bitsandbytes"}
    )
    lora, pairs = adapter(tmp_path / "a", tiny("llama"))
    source = open_model(folder, lora=lora).source
    a, b = pairs[LLAMA[0]]
    expected = meant[f"{LLAMA[0]}.weight"] + 1.5 * (b @ a)
    assert torch.allclose(source.tensor(f"{LLAMA[0]}.weight"), expected, atol=1e-5)
    assert set(source.provenance) == {"source_quantized", "source_lora"}
