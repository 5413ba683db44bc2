"""Stock llama.cpp (PyPI: xllamacpp) reads our unquantized files, computes what we compute, and refuses our tile types by name."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REFERENCE, TINY_MODELS

import gwq_export
from gwq_export.evaluate import log_softmax

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


@pytest.mark.parametrize("name", [*SAME, "reference"])
@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_same_logprobs(tiny, exported, name, type):
    if name not in ("reference", "qwen3moe") and type != "f32":
        pytest.skip("types are tried on the trained model, and on one with experts")
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
