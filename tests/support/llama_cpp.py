"""llama.cpp (PyPI: xllamacpp) in a process of its own, asked for its likeliest tokens."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("xllamacpp", reason="needs the interop extra: pip install xllamacpp")

# no model answers to these with the end of text or half a character
IDS = [967, 641, 701, 919, 593, 794, 854, 232, 59, 309, 294]
PEER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 128
params.n_parallel = 1
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
for prompt in json.loads(sys.argv[2]):
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": False}
    request["n_probs"] = int(sys.argv[3])
    print(json.dumps(server.handle_completions(request)))
"""

TOKENIZE = """
import json, os, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 64
params.n_parallel = 1
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
text = sys.stdin.buffer.read().decode()
body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
header = {"Content-Type": "application/json"}
request = urllib.request.Request(server.listening_address + "/tokenize", body, header)
print(urllib.request.urlopen(request).read().decode(), flush=True)
os._exit(0)
"""


def tokens(path, text):
    """Its token ids of a text, without bos and blind to special tokens."""
    args = [sys.executable, "-c", TOKENIZE, str(path)]
    done = subprocess.run(args, input=text.encode(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["tokens"]


def peer(path, prompts=(IDS,), count=50):
    """The finished process that asked for the `count` likeliest tokens after each prompt."""
    args = [sys.executable, "-c", PEER, str(path), json.dumps(prompts), str(count)]
    return subprocess.run(args, capture_output=True, text=True, timeout=120)


def likeliest(line):
    """[{"id", "logprob"}] of a line that it has printed."""
    return json.loads(line)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
