"""Llama and the models whose blocks are built like its own."""

from gwq_export.arch.parts import ATTENTION, ATTENTION_OUTPUT, FFN, norm
from gwq_export.arch.spec import LLAMA_ROPES, OFF, Arch

OLMO2_BLOCK = (  # norms after attention and feed-forward, none before; Q and K are normed whole
    *ATTENTION,
    norm("attn_q_norm", "self_attn.q_norm", "q"),
    norm("attn_k_norm", "self_attn.k_norm", "kv"),
    *ATTENTION_OUTPUT,
    norm("post_attention_norm", "post_attention_layernorm"),
    *FFN,
    norm("post_ffw_norm", "post_feedforward_layernorm"),
)
ARCHS = {  # Hugging Face class name -> row
    "LlamaForCausalLM": Arch("llama", "pairs", rope_kinds=LLAMA_ROPES),
    "MistralForCausalLM": Arch(
        "llama", "pairs", rope_kinds=LLAMA_ROPES, window="sliding_window", model_type="mistral"
    ),
    "Qwen2ForCausalLM": Arch("qwen2", "halves"),
    "Qwen3ForCausalLM": Arch("qwen3", "halves"),
    "SmolLM3ForCausalLM": Arch(
        "smollm3",
        "pairs",
        unturned_every=4,
    ),
    "GraniteForCausalLM": Arch(
        "granite",
        "pairs",
        rope_kinds=LLAMA_ROPES,
        numbers={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "Olmo2ForCausalLM": Arch(
        "olmo2",
        "halves",
        OLMO2_BLOCK,
        only={"hidden_act": ("silu",), "attention_bias": OFF},
    ),
}
