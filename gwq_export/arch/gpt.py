"""GPT-2 and GPT-NeoX: LayerNorm with biases, Q, K and V in one matrix."""

from gwq_export.arch.parts import layer_norm, linear
from gwq_export.arch.spec import Arch

GPT2_BLOCK = (
    *layer_norm("attn_norm", "ln_1"),
    *linear("attn_qkv", "attn.c_attn", "qkv", "dim", transposed=True),
    *linear("attn_output", "attn.c_proj", "dim", "q", transposed=True),
    *layer_norm("ffn_norm", "ln_2"),
    *linear("ffn_up", "mlp.c_fc", "ffn", "dim", transposed=True),
    *linear("ffn_down", "mlp.c_proj", "dim", "ffn", transposed=True),
)
NEOX_BLOCK = (
    *layer_norm("attn_norm", "input_layernorm"),
    *linear("attn_qkv", "attention.query_key_value", "qkv", "dim", interleaved=3),
    *linear("attn_output", "attention.dense", "dim", "q"),
    *layer_norm("ffn_norm", "post_attention_layernorm"),
    *linear("ffn_up", "mlp.dense_h_to_4h", "ffn", "dim"),
    *linear("ffn_down", "mlp.dense_4h_to_h", "dim", "ffn"),
)
ARCHS = {  # Hugging Face class name -> row
    "GPT2LMHeadModel": Arch(
        "gpt2",
        "",
        GPT2_BLOCK,
        layers="transformer.h",
        embed="transformer.wte.weight",
        positions="transformer.wpe.weight",
        norm="transformer.ln_f.weight",
        layer_norm=True,
        activation="gelu_tanh",
        eps="layer_norm_epsilon",
        ffn_times=4,
        names={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
        },
        only={
            "hidden_act": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "GPTNeoXForCausalLM": Arch(
        "gptneox",
        "halves",
        NEOX_BLOCK,
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in.weight",
        norm="gpt_neox.final_layer_norm.weight",
        head="embed_out.weight",
        layer_norm=True,
        activation="gelu",
        parallel=True,
        rope_kinds=("default", "linear"),
        partial=True,
        eps="layer_norm_eps",
        model_type="gpt_neox",
        names={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        only={"hidden_act": ("gelu",), "attention_bias": (True,)},
    ),
}
