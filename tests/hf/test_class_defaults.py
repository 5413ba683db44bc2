"""What config.json leaves out or says in two ways: the model is the one that transformers makes."""

import re

import pytest

from gwq_export import GwqError
from tests.support.folders import agrees, edited, expected_logits, exported_logits
from tests.support.models import TINY_MODELS

# sizes without which the tensors would not fit; everything else may be left out
SIZES = {
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "qkv_bias",
    "mamba_n_heads",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_local_experts",
    "max_position_embeddings",
    "attention_bias",
    "tie_word_embeddings",
    "n_embd",
    "n_inner",
    "n_layer",
    "n_head",
    "n_positions",
    "num_experts_per_tok",
    "pad_token_id",
}
# without which another class of blocks is meant
LFM2 = {"layer_types", "conv_L_cache", "block_multiple_of", "block_auto_adjust_ff_dim"}
KINDS = {
    "granite4": {"layer_types", "position_embedding_type"},
    "lfm2": LFM2,
    "lfm2-untied": LFM2,
    "lfm3": LFM2 | {"sliding_window"},
    "lfm3-plain": LFM2 | {"use_sandwich_norm", "use_attention_gate", "rope_parameters"},
}


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_missing_keys(tmp_path, tiny, name):
    def only_sizes(config):
        for key in set(config) - SIZES - KINDS.get(name, set()):
            del config[key]

    agrees(edited(tiny(name), tmp_path / name, only_sizes))


# what config.json says of rotary positions, in the layouts of transformers 4 and 5
LINEAR = {"rope_type": "linear", "factor": 4.0}
OLD_LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
ROPES = {
    "scaling beside parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
        "rope_scaling": LINEAR,
    },
    "scaling and base beside parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
        "rope_scaling": OLD_LINEAR,
        "rope_theta": 5e4,
    },
    "base beside parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
        "rope_theta": 5e4,
    },
    "parameters without base": {"rope_parameters": LINEAR, "rope_theta": 5e4},
    "base alone": {"rope_theta": 5e4},
    "scaling alone": {"rope_scaling": OLD_LINEAR},
    "scaling with a base of its own": {"rope_scaling": LINEAR | {"rope_theta": 7e4}},
    "empty": {"rope_parameters": {}, "rope_scaling": {}},
    "nulls": {"rope_parameters": None, "rope_scaling": None},
    "llama3 without the original context": {"rope_scaling": LLAMA3},
    "yarn without the original context": {"rope_scaling": YARN},
    "yarn": {"rope_scaling": YARN | {"original_max_position_embeddings": 32}},
}
ROTARY = ["llama", "qwen3", "mixtral", "smollm3", "granite", "gemma2", "gemma3", "gptneox"]
REFUSED = "rope scaling '(llama3|yarn)' is not supported"  # llama.cpp has it for some only


@pytest.mark.parametrize("rope", sorted(ROPES))
@pytest.mark.parametrize("name", ROTARY)
def test_rope(tmp_path, tiny, name, rope):
    def say(config):
        for key in ("rope_parameters", "rope_scaling", "rope_theta"):
            config.pop(key, None)
        config |= ROPES[rope]

    folder = edited(tiny(name), tmp_path / name, say)
    try:
        expected_logits(folder)
    except Exception:  # transformers raises many kinds for what it does not accept
        with pytest.raises(GwqError, match=r"transformers (does not accept it|cannot make)"):
            exported_logits(folder)
        return
    try:
        agrees(folder)
    except GwqError as e:
        assert re.search(REFUSED, str(e)), e
