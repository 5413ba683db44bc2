"""Changed copies of model folders, and whether their exports compute what transformers does."""

import json
import shutil

import numpy as np

import gwq_export

IDS = np.random.default_rng(1).integers(5, 1000, 60).tolist()


def edited(model, folder, change, file="config.json"):
    """A copy of a folder; change: takes what its JSON file holds and changes it."""
    shutil.copytree(model, folder)
    path = folder / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return folder


def expected_logits(folder):
    """By transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def exported_logits(folder):
    """By our runtime, from an export in float32."""
    out = folder / "out.gguf"
    gwq_export.export(folder, out, type="f32")
    return gwq_export.load(out).logits(IDS)


def agrees(folder):
    """The exported file computes what transformers does."""
    expected = expected_logits(folder)
    error = np.abs(exported_logits(folder) - expected).max() / np.abs(expected).max()
    assert error < 2e-4
