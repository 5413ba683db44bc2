"""Phi-3 and Phi-4: Q, K and V in one matrix, gate and up in another."""

from gwq_export.arch.parts import linear, norm
from gwq_export.arch.spec import Arch

PHI3_BLOCK = (  # ffn_up holds gate and up
    norm("attn_norm", "input_layernorm"),
    *linear("attn_qkv", "self_attn.qkv_proj", "qkv", "dim", bias=False),
    *linear("attn_output", "self_attn.o_proj", "dim", "q", bias=False),
    norm("ffn_norm", "post_attention_layernorm"),
    *linear("ffn_up", "mlp.gate_up_proj", "gate_up", "dim", bias=False),
    *linear("ffn_down", "mlp.down_proj", "dim", "ffn", bias=False),
)
ARCHS = {  # Hugging Face class name -> row
    "Phi3ForCausalLM": Arch(
        "phi3",
        "halves",
        PHI3_BLOCK,
        window="sliding_window",
        rope_kinds=("default", "longrope"),
        partial=True,
    ),
}
