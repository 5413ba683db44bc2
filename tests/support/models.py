"""Small random models of every architecture, as Hugging Face folders."""

import json
import math
import re
import shutil
from pathlib import Path

from tests.support.paths import REFERENCE

# Sharper than a fresh initialisation, so that a wrong logit shows in the KL divergence.
TINY = dict(
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=200,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    initializer_range=0.1,
    rms_norm_eps=1e-5,
)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY_MODELS = {  # name -> (transformers config class, its own settings)
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "linear-rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "yarn-rope": ("LlamaConfig", {"rope_parameters": YARN}),
    "mistral": ("MistralConfig", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    # less sharp: where rounded activations make a router choose the next expert, a random model
    # says something else altogether
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.06},
    ),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "initializer_range": 0.06,
        },
    ),
    "qwen3moe-plain": (
        "Qwen3MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 72,
            "initializer_range": 0.06,
        },
    ),
    "qwen2moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 136,
            "biases": 0.1,  # large ones would send all tokens to the same experts
            "initializer_range": 0.06,
        },
    ),
    "qwen2moe-normed": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 72,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "initializer_range": 0.06,
        },
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "pad_token_id": None}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 5.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 3.0,
        },
    ),
    "granite4": (
        "GraniteMoeHybridConfig",
        {
            "layer_types": ["full_attention"] * 3,
            "num_local_experts": 0,
            "shared_intermediate_size": 168,
            "position_embedding_type": "rope",
            "mamba_n_heads": 2,
            "embedding_multiplier": 5.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 3.0,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    # llama.cpp looks for a token where the name has "phi3" in it
    "phi": (
        "Phi3Config",
        {"pad_token_id": None},
    ),
    "longrope": (
        "Phi3Config",
        {
            "pad_token_id": None,
            "sliding_window": 200,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            },
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    ),
    "gemma2-scalar": (
        "Gemma2Config",
        {"sliding_window": 24, "query_pre_attn_scalar": 40, "num_hidden_layers": 2},
    ),
    "gemma3-every": (
        "Gemma3TextConfig",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "olmo3": (
        "Olmo3Config",
        {
            "sliding_window": 8,
            "num_hidden_layers": 5,
            "rope_parameters": {
                "full_attention": YARN | {"attention_factor": 0.1 * math.log(4) + 1},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "olmo3-listed": (
        "Olmo3Config",
        {
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "exaone4": ("Exaone4Config", {"sliding_window": 8, "num_hidden_layers": 5}),
    "exaone4-full": (
        "Exaone4Config",
        {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 1e4,
                "factor": 1.0,
                "alpha": 40.0,
            }
        },
    ),
    "ernie": ("Ernie4_5Config", {}),
    "ministral3": (
        "Ministral3Config",
        {
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 8,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "ministral3-mscale": (
        "Ministral3Config",
        {
            "rope_parameters": YARN
            | {"mscale": 1.0, "mscale_all_dim": 0.4, "llama_4_scaling_beta": 0.2}
        },
    ),
    "cohere2": (
        "Cohere2Config",
        {"sliding_window": 8, "num_hidden_layers": 5, "logit_scale": 0.25},
    ),
    "glm4": ("Glm4Config", {"pad_token_id": None, "num_hidden_layers": 4}),
    # less sharp: gates multiply activations, and what rounds them
    "lfm2": (
        "Lfm2Config",
        {
            "initializer_range": 0.08,
            "num_hidden_layers": 5,
            "layer_types": ["conv", "conv", "full_attention", "conv", "conv"],
            "block_multiple_of": 8,
            "pad_token_id": None,
        },
    ),
    "lfm2-untied": (
        "Lfm2Config",
        {
            "layer_types": ["full_attention", "conv", "full_attention"],
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
            "pad_token_id": None,
        },
    ),
    "lfm3": (
        "Lfm3Config",
        {
            "initializer_range": 0.08,
            "num_hidden_layers": 5,
            "layer_types": [
                *("conv", "sliding_attention", "full_attention", "conv", "sliding_attention")
            ],
            "sliding_window": 8,
            "conv_L_cache": 7,
            "pad_token_id": None,
        },
    ),
    "lfm3-plain": (
        "Lfm3Config",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "use_sandwich_norm": False,
            "use_attention_gate": False,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "pad_token_id": None,
        },
    ),
    "gpt2": ("GPT2Config", {"n_inner": 200}),
    "gptneox": ("GPTNeoXConfig", {}),
    "gptneox-serial": ("GPTNeoXConfig", {"use_parallel_residual": False}),
}


def save_tiny(folder, config_class, seed=3, sizes=None, biases=1.0, **settings):
    """Save a random model with the first tokens of the bundled model's tokenizer.

    Settings are those of TINY, then of `sizes`, as far as the config class knows them. biases: how
    large they are. Returns the folder.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config_class = getattr(transformers, config_class)
    known = {*config_class().to_dict(), *config_class.attribute_map}
    usual = {key: value for key, value in (TINY | (sizes or {})).items() if key in known}
    config = config_class(**usual | settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, p in model.named_parameters():
        # norms and biases start as ones and zeros, which would hide that they are used
        if p.dim() == 1:
            p.data += (0.3 if re.search(r"norm|\bln_", name) else biases) * torch.randn_like(p)
    model.save_pretrained(folder)
    save_tokenizer(folder, config.vocab_size)
    return Path(folder)


def save_tokenizer(folder, vocab):
    """The first `vocab` tokens of the bundled model's tokenizer; merges have ids in their order."""
    tokenizer = json.loads((REFERENCE / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["merges"] = model["merges"][: len(model["merges"]) - len(model["vocab"]) + vocab]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < vocab}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copyfile(REFERENCE / "tokenizer_config.json", Path(folder) / "tokenizer_config.json")
