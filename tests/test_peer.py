"""Stock llama.cpp (PyPI: xllamacpp) reads our unquantized files, computes what we compute, and refuses our tile types by name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REFERENCE, TINY_MODELS

import gwq_export
from gwq_export.evaluate import log_softmax
from gwq_export.format import TYPES
from gwq_export.tokenizer import Tokenizer
from gwq_export.vocabulary import PROBE, to_metadata
from gwq_export.writer import Writer

pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")

IDS = [1200, 300, 45, 2000, 77, 512, 901, 33, 4000, 8000, 17]
PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = sys.argv[1], 128, 1, 2
server = xllamacpp.Server(params)
request = {"prompt": json.loads(sys.argv[2]), "n_predict": 1, "temperature": 0, "n_probs": 50, "cache_prompt": False}
print(json.dumps(server.handle_completions(request)))
"""


def peer(path):
    """The finished process that asked llama.cpp for the 50 likeliest tokens after IDS."""
    return subprocess.run([sys.executable, "-c", PEER, str(path), json.dumps(IDS)], capture_output=True, text=True, timeout=120)


# llama.cpp knows Gemma's factor of the scores by the number of blocks alone, and lets experts' weights always add up to 1
SAME = [name for name in TINY_MODELS if name not in ("gemma2-scalar", "qwen3moe-plain")]


@pytest.mark.parametrize("name, type", [(name, "f32") for name in SAME] + [("reference", type) for type in ("f32", "f16", "bf16", "q8_0")])
def test_same_logprobs(tiny, exported, name, type):
    path, _ = exported(REFERENCE if name == "reference" else tiny(name), type=type)
    done = peer(path)
    assert done.returncode == 0, done.stderr[-2000:]
    top = json.loads(done.stdout.splitlines()[-1])["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    ours = log_softmax(gwq_export.load(path).logits(IDS)[-1])
    # llama.cpp computes F16, BF16 and Q8_0 matrices with rounded activations, we with float32 ones; its KV cache is F16
    tolerance = {"f32": 1e-2, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.15}[type]
    assert len(top) == 50
    assert np.abs([ours[t["id"]] - t["logprob"] for t in top]).max() < tolerance


def test_tile_types_are_refused_by_name(exported):
    done = peer(exported(type="gwq4")[0])
    assert "blk.0.attn_q.weight" in done.stderr and "invalid ggml type 877745991" in done.stderr


TOKENIZE = """
import json, os, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = sys.argv[1], 64, 1, 1
server = xllamacpp.Server(params)
body = json.dumps({"content": sys.argv[2], "add_special": False, "parse_special": False}).encode()
request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request).read().decode(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "gpt-4o", "deepseek-v3", "kimi-k2", "bloom"])
def test_stock_names_mean_the_same(tmp_path, name):
    """Our words are llama.cpp's, in a model of one small block with our vocabulary and the name of another pre-tokenizer."""
    shapes = {"token_embd": (8192, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{part}": (32, 32) for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    numbers = {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32, "attention.head_count": 2}
    numbers |= {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 16}
    keys = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in numbers.items()}}
    vocabulary = to_metadata(REFERENCE, 8192) | {"tokenizer.ggml.pre": name}
    with Writer(tmp_path / "m.gguf", keys | vocabulary, [(f"{n}.weight", TYPES["f32"], shape) for n, shape in shapes.items()]) as writer:
        for tensor, shape in shapes.items():
            writer.write(f"{tensor}.weight", np.full(shape, 0.01, np.float32).view(np.uint8).reshape(-1))
    text = PROBE.read_bytes().decode().replace("\0", "")
    done = subprocess.run([sys.executable, "-c", TOKENIZE, str(tmp_path / "m.gguf"), text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] == Tokenizer(vocabulary).encode(text, special=False, bos=False)
