"""llama.cpp (PyPI: xllamacpp) in a process of its own, asked for its likeliest tokens."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")

IDS = [
    967,
    641,
    701,
    919,
    593,
    794,
    854,
    232,
    59,
    309,
    294,
]  # no model answers with the end of text or half a character
PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = sys.argv[1], 128, 1, 2
server = xllamacpp.Server(params)
for prompt in json.loads(sys.argv[2]):
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": int(sys.argv[3]), "cache_prompt": False}
    print(json.dumps(server.handle_completions(request)))
"""


def peer(path, prompts=(IDS,), count=50):
    """The finished process that asked llama.cpp for the `count` likeliest tokens after each prompt."""
    args = [sys.executable, "-c", PEER, str(path), json.dumps(prompts), str(count)]
    return subprocess.run(args, capture_output=True, text=True, timeout=120)


def likeliest(line):
    """[{"id", "logprob"}] of a line that it has printed."""
    return json.loads(line)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
