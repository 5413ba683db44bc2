"""GGUF files of others as MODEL: what is made of them computes and tokenizes as in llama.cpp.

GWQ_REAL_GGUF, paths separated by colons, names real files that are compared too.
"""

import os
import unicodedata

import numpy as np
import pytest

import gwq_export
from gwq_export.calibration.sources import CALIBRATION
from gwq_export.evaluation import predictors
from gwq_export.evaluation.perplexity import log_softmax
from gwq_export.hf.opened import open_model
from gwq_export.tokenizer.from_hf import PROBE
from gwq_export.tokenizer.tokenizer import Tokenizer
from tests.support.llama_cpp import IDS, likeliest, peer, tokens
from tests.support.models import save_tiny

gguf = pytest.importorskip("gguf", reason="needs gguf-py, which the export extra installs")
from tests.support.ggml_files import MIXED, rewrite  # noqa: E402

REAL = [path for path in os.environ.get("GWQ_REAL_GGUF", "").split(":") if path]
TEXT = 250_000  # bytes whose ids are compared


def apart(path, logits, ids=IDS):
    """|difference| between llama.cpp's likeliest log-probabilities after `ids` and those of
    `logits`, float32 (vocab,).
    """
    done = peer(path, [ids])
    assert done.returncode == 0, done.stderr[-2000:]
    ours = log_softmax(logits)
    return np.abs([ours[t["id"]] - t["logprob"] for t in likeliest(done.stdout.splitlines()[-1])])


@pytest.mark.parametrize("config_class", ["LlamaConfig", "Gemma3TextConfig", "Qwen3MoeConfig"])
def test_a_stock_file_computes_what_llama_cpp_computes_from_it(tmp_path, config_class):
    """Widths that K-quants divide; llama.cpp rounds activations to 8 bits, hence the tolerance."""
    settings = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    settings |= {"head_dim": 32, "num_hidden_layers": 2}
    if "Gemma" in config_class:  # another scale of the scores has no key in llama.cpp
        settings |= {"query_pre_attn_scalar": 32}
    if "Moe" in config_class:  # a router's choice must not hang on the rounding
        settings |= {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    folder = save_tiny(tmp_path / "hf", config_class, **settings)
    gwq_export.export(folder, tmp_path / "f32.gguf", type="f32")
    stock = rewrite(tmp_path / "f32.gguf", tmp_path / "stock.gguf", MIXED)
    gwq_export.export(stock, tmp_path / "again.gguf", type="f32")
    again = gwq_export.load(tmp_path / "again.gguf", threads=1)
    found = again.logits(IDS)[-1]
    assert apart(tmp_path / "again.gguf", found).max() < 1e-2
    difference = apart(stock, found)
    assert difference.mean() < 0.1 and difference.max() < 0.4 < np.ptp(log_softmax(found)) / 20
    assert np.abs(found - predictors.load(stock, threads=1).logits(IDS)[-1]).max() < 1e-4


@pytest.mark.parametrize("path", REAL, ids=os.path.basename)
def test_real_tokens(path):
    """Ids of text in several languages, with digits, code and white space.

    llama.cpp does not normalize text, as Qwen's own tokenizer does, and takes "</s>" for a special
    token by its name, which is an HTML tag to Gemma.
    """
    text = PROBE.read_bytes().decode().replace("\0", "")
    text = (text + CALIBRATION.read_text() * 2).encode()[:TEXT].decode(errors="ignore")
    text = unicodedata.normalize("NFC", text.replace("</s>", ""))
    found = Tokenizer(open_model(path).keys).encode(text, special=False, bos=False)
    assert found == tokens(path, text)


@pytest.mark.parametrize("path", REAL, ids=os.path.basename)
def test_real_logits(path, tmp_path):
    """Of the float32 file closely; of the file itself llama.cpp rounds activations to 8 bits."""
    gwq_export.export(path, tmp_path / "f32.gguf", type="f32")
    model = gwq_export.load(tmp_path / "f32.gguf")
    ids = model.tokenizer.encode("The city lies on both banks of the river, and its old bridge")
    found = model.logits(ids)[-1]
    assert np.abs(found - predictors.load(path).logits(ids)[-1]).max() < 0.5  # Q8_0 stays it
    assert apart(tmp_path / "f32.gguf", found, ids).max() < 0.05
    assert apart(path, found, ids).mean() < 0.25
