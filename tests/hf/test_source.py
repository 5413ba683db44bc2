"""Models from the hub: the local cache, and what a file says of its origin.

Nothing here needs a network.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.hf.hub import commit, resolve
from gwq_export.hf.source import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture
def home(tmp_path, tiny):
    """A Hugging Face home whose cache holds the model some/tiny, its files links to blobs as the
    hub client makes them.
    """
    cache = tmp_path / "home" / "hub" / "models--some--tiny"
    shutil.copytree(tiny("llama"), cache / "blobs")
    (cache / "refs").mkdir()
    for name, hash in (("main", COMMIT), ("older", OTHER)):
        (cache / "refs" / name).write_text(hash)
        (cache / "snapshots" / hash).mkdir(parents=True)
        for file in tiny("llama").iterdir():
            (cache / "snapshots" / hash / file.name).symlink_to(f"../../blobs/{file.name}")
    return tmp_path / "home"


def test_hub_ids_come_from_the_cache_with_their_commit(tmp_path, home):
    """In a process of its own: the hub client reads the environment once."""
    command = [
        sys.executable,
        "-m",
        "gwq_export.cli",
        "export",
        "some/tiny",
        "--out",
        tmp_path / "m.gguf",
        "--type",
        "gwq4",
        "--saliency",
        "magnitude",
        "--samples",
        "1",
        "--ctx",
        "16",
        "--revision",
        "older",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    meta = gwq_export.open_gguf(tmp_path / "m.gguf").metadata
    assert meta["gwq.source_revision"] == OTHER
    assert meta["gwq.source_name"] == meta["general.name"] == "some/tiny"


def test_revisions(home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    for revision, wanted in ((None, COMMIT), ("main", COMMIT), ("older", OTHER), (OTHER, OTHER)):
        assert commit(resolve("some/tiny", revision)) == wanted
    for model, revision in (("some/tiny", "newer"), ("some/other", None)):
        with pytest.raises(GwqError, match="the hub download failed"):
            resolve(model, revision)


def test_a_folder_has_no_revision(tmp_path, tiny):
    with pytest.raises(GwqError, match="is a folder here, which has none"):
        gwq_export.export(tiny("llama"), tmp_path / "m.gguf", revision="main")
    gwq_export.export(tiny("llama"), tmp_path / "m.gguf", samples=1, ctx=16)
    assert "gwq.source_revision" not in gwq_export.open_gguf(tmp_path / "m.gguf").metadata


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [False, True])
def test_shards_of_any_float_type(tmp_path, tiny, dtype, tied):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        tiny("llama-bias" if tied else "llama"), dtype=getattr(torch, dtype)
    )
    model.save_pretrained(tmp_path, max_shard_size="200kB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2 and ("lm_head.weight" in index) != tied
    source = Source(tmp_path)
    assert source.tied == tied and {name for name, *_ in source.files} >= set(index.values())
    for name in index:
        assert torch.equal(source.tensor(name), model.get_parameter(name).detach().float())
    shard = Path(tmp_path / index["model.norm.weight"])
    shard.unlink()
    with pytest.raises(GwqError, match=f"{shard.name}: cannot be read"):
        Source(tmp_path)
