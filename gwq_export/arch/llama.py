"""Llama and the models whose blocks are built like its own."""

from dataclasses import replace

from gwq_export.arch.parts import (
    ATTENTION,
    ATTENTION_OUTPUT,
    FFN,
    LLAMA_BLOCK,
    PAIRED_ATTENTION,
    QK_NORMS,
    norm,
)
from gwq_export.arch.spec import LLAMA_ROPES, OFF, SILU, Arch

OLMO2_BLOCK = (  # norms after attention and feed-forward, none before; Q and K are normed whole
    *ATTENTION,
    norm("attn_q_norm", "self_attn.q_norm", "q"),
    norm("attn_k_norm", "self_attn.k_norm", "kv"),
    *ATTENTION_OUTPUT,
    norm("post_attention_norm", "post_attention_layernorm"),
    *FFN,
    norm("post_ffw_norm", "post_feedforward_layernorm"),
)
EXAONE4_BLOCK = tuple(  # likewise, but heads of Q and K are normed
    {"attn_q_norm.weight": QK_NORMS[0], "attn_k_norm.weight": QK_NORMS[1]}.get(row.gguf, row)
    for row in OLMO2_BLOCK
)
_REST = (*ATTENTION_OUTPUT, norm("ffn_norm", "post_attention_layernorm"), *FFN)
HUNYUAN_BLOCK = (
    norm("attn_norm", "input_layernorm"),
    *ATTENTION,
    norm("attn_q_norm", "self_attn.query_layernorm", "head"),
    norm("attn_k_norm", "self_attn.key_layernorm", "head"),
    *_REST,
)
_GRANITE = Arch(
    "granite",
    "pairs",
    rope_kinds=LLAMA_ROPES,
    numbers={
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    },
)
_OLMO = Arch(  # what generations 2 and 3 share
    "olmo2",
    "halves",
    OLMO2_BLOCK,
    only={"hidden_act": ("silu",), "attention_bias": OFF},
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
    "GraniteForCausalLM": _GRANITE,
    "GraniteMoeHybridForCausalLM": replace(
        _GRANITE,
        block=tuple(replace(row, hf=row.hf.replace("mlp.", "shared_mlp.")) for row in LLAMA_BLOCK),
        export_only=True,
        paired_ffn="shared_mlp",
        renamed=((".output_linear.", ".down_proj."),),
        names={"intermediate_size": "shared_intermediate_size"},
        only=SILU | {"num_local_experts": (0,), "position_embedding_type": ("rope",)},
        model_type="granitemoehybrid",
    ),
    "Olmo2ForCausalLM": _OLMO,
    "Olmo3ForCausalLM": replace(
        _OLMO,
        window="sliding_window",
        full_every=4,
        windows_listed=True,
        swa_rope=True,
        model_type="olmo3",
    ),
    "Exaone4ForCausalLM": Arch(
        "exaone4",
        "halves",
        EXAONE4_BLOCK,
        rope_kinds=LLAMA_ROPES,
        window="sliding_window",
        full_every=4,
        windows_listed=True,
        unturned_full="beside windows",
    ),
    "HunYuanDenseV1ForCausalLM": Arch(
        "hunyuan-dense",
        "halves",
        HUNYUAN_BLOCK,
        rope_kinds=("default", "linear", "yarn", "alpha"),
        norms_turned=True,
        model_type="hunyuan_v1_dense",
    ),
    "Ernie4_5ForCausalLM": Arch(
        "ernie4_5",
        "pairs",
        (norm("attn_norm", "input_layernorm"), *PAIRED_ATTENTION, *_REST),
        names={"attention_bias": "use_bias"},
        only={"hidden_act": ("silu",), "attention_bias": OFF},
    ),
    "Ministral3ForCausalLM": Arch(
        "mistral3",
        "pairs",
        window="sliding_window",
        rope_kinds=("yarn",),
        yarn_divided=True,
        queries_grow=True,
        model_type="ministral3",
    ),
}
