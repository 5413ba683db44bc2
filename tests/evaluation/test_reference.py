"""gwq-eval --against: what is no reference is refused in one line, before anything is scored."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.support.cli import assert_one_line, call
from tests.support.models import save_tiny, save_tokenizer

TEXT = "The city lay by the river, and the river by the sea. " * 60


@pytest.fixture(scope="module")
def compare(exported, tiny, tmp_path_factory):
    """compare(capsys, reference) -> what gwq-eval returns, for a file of the model "llama"."""
    path, _ = exported(tiny("llama"), type="f16")
    text = tmp_path_factory.mktemp("text") / "t.txt"
    text.write_text(TEXT)
    return lambda capsys, reference: call(
        capsys, "eval", path, "--text", text, "--ctx", 64, "--against", reference, "--json"
    )


def edit(folder, file, change):
    path = folder / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def drop_head(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def gptq(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj."
    weight = weights.pop(f"{name}weight")
    weights[f"{name}qweight"] = weight.int()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder, "config.json", lambda c: c.update(quantization_config=GPTQ))


def fp8(folder):
    """Without their scales the codes would be taken for weights."""
    import torch

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    weights[f"{name}_scale_inv"] = torch.ones(2, 1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder, "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))


def swap_tokens(folder):
    def swap(spec):
        vocab = spec["model"]["vocab"]
        a, b = list(vocab)[500:502]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    edit(folder, "tokenizer.json", swap)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BAD = {  # change of the original's folder -> words of the refusal
    "no head": (drop_head, "lm_head.weight"),
    "gptq": (gptq, "its weights are quantized (gptq, tensor model.layers.0.mlp.up_proj.qweight)"),
    "fp8": (fp8, "gwq-export --type f32, and give that"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot load"),
    "another vocabulary": (swap_tokens, "vocabulary"),
    "another task": (
        lambda f: edit(
            f, "config.json", lambda c: c.update(architectures=["LlamaForSequenceClassification"])
        ),
        "not a causal language model",
    ),
    "damaged config": (lambda f: (f / "config.json").write_text("{"), "cannot load"),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_no_reference(tmp_path, tiny, capsys, compare, what):
    change, words = BAD[what]
    folder = shutil.copytree(tiny("llama"), tmp_path / "reference")
    change(folder)
    status, _, err = compare(capsys, folder)
    assert_one_line("eval", status, err, words)
    assert "--against" in err


@pytest.mark.parametrize("claims", [True, False])
def test_an_encoder_is_no_reference(tmp_path, capsys, compare, claims):
    """A masked language model; without `architectures` transformers gives it a new head."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1024,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, 1024)
    if not claims:
        edit(tmp_path, "config.json", lambda c: c.update(architectures=None))
    status, _, err = compare(capsys, tmp_path)
    assert_one_line(
        "eval", status, err, "not a causal language model" if claims else "sees later tokens"
    )


@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("vocab", [900, 1100])
def test_a_vocabulary_of_another_size(tmp_path, capsys, compare, vocab, tokenizer):
    folder = save_tiny(tmp_path, "LlamaConfig", vocab_size=vocab)
    if not tokenizer:
        (folder / "tokenizer.json").unlink()
    status, _, err = compare(capsys, folder)
    assert_one_line("eval", status, err, f"{vocab} tokens, the file has 1024")


def test_references(tmp_path, tiny, capsys, compare, caplog):
    """The original, also with unused rows and a quantization_config left over from a training."""
    import torch
    from transformers import AutoModelForCausalLM

    padded = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    padded.resize_token_embeddings(1040)
    padded.save_pretrained(tmp_path / "padded")
    save_tokenizer(tmp_path / "padded", 1024)
    left = shutil.copytree(tiny("llama"), tmp_path / "left")
    edit(left, "config.json", lambda c: c.update(quantization_config=GPTQ))
    bare = shutil.copytree(tiny("llama"), tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    for reference in (tiny("llama"), tmp_path / "padded", left, bare):
        status, out, err = compare(capsys, reference)
        assert status == 0, err
        assert ("no tokenizer.json" in caplog.text) == (reference == bare)
        assert json.loads(out.splitlines()[-1])["kld_mean"] < 1e-3
