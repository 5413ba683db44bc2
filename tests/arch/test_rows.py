"""Every row of the table against transformers' own class: other random weights, odd shapes."""

import numpy as np
import pytest

import gwq_export
from studies.oracle import logits, original_model
from tests.support.models import TINY_MODELS, save_tiny

# seed -> sizes that no unit of a kernel divides
SHAPES = {
    11: {"hidden_size": 100, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 20},
    12: {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12},
    13: {"hidden_size": 132, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 44},
}
# their settings are for the shapes that they have there
FIXED = ("longrope", "gpt2", "gptneox", "gptneox-serial")


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name not in FIXED])
def test_odd_shapes(tmp_path, name, seed):
    config_class, settings = TINY_MODELS[name]
    sizes = {"intermediate_size": 4 * seed + 40, "vocab_size": 1000 + seed} | SHAPES[seed]
    folder = save_tiny(tmp_path / "hf", config_class, seed, sizes, **settings)
    gwq_export.export(folder, tmp_path / "m.gguf", type="f32")
    ids = np.random.default_rng(seed).integers(3, 1000, 70)
    expected = logits(original_model(folder), ids)
    got = gwq_export.load(tmp_path / "m.gguf").logits(ids)
    assert np.abs(got - expected).max() <= 2e-3 * np.abs(expected).max()
