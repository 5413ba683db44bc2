"""LFM2: most blocks are gated short convolutions, some are attention."""

from dataclasses import replace

from gwq_export.arch.parts import ATTENTION, TensorRow, linear, norm
from gwq_export.arch.spec import OFF, Arch

_ATTENTION = (
    *ATTENTION,
    *linear("attn_output", "self_attn.out_proj", "dim", "q"),
    norm("attn_q_norm", "self_attn.q_layernorm", "head"),
    norm("attn_k_norm", "self_attn.k_layernorm", "head"),
)
_CONV = (
    *linear("shortconv.in_proj", "conv.in_proj", "conv_in", "dim", bias=False),
    TensorRow("shortconv.conv.weight", "conv.conv.weight", ("dim", "taps"), channels=True),
    *linear("shortconv.out_proj", "conv.out_proj", "dim", "dim", bias=False),
)
LFM2_BLOCK = (
    norm("attn_norm", "operator_norm"),
    *(replace(row, kind="attention") for row in _ATTENTION),
    *(replace(row, kind="conv") for row in _CONV),
    norm("ffn_norm", "ffn_norm"),
    *linear("ffn_gate", "feed_forward.w1", "ffn", "dim", bias=False),
    *linear("ffn_up", "feed_forward.w3", "ffn", "dim", bias=False),
    *linear("ffn_down", "feed_forward.w2", "dim", "ffn", bias=False),
)
ARCHS = {  # Hugging Face class name -> row
    "Lfm2ForCausalLM": Arch(
        "lfm2",
        "halves",
        LFM2_BLOCK,
        norm="model.embedding_norm.weight",
        norm_gguf="token_embd_norm",
        kinds={"full_attention": "attention", "conv": "conv"},
        eps="norm_eps",
        only={"hidden_act": ("silu",), "conv_bias": OFF},
    ),
}
