"""LFM2 and LFM3: most blocks are gated short convolutions, some are attention."""

from dataclasses import replace

from gwq_export.arch.parts import (
    ATTENTION,
    ATTENTION_OUTPUT,
    QK_NORMS,
    Rows,
    TensorRow,
    linear,
    norm,
)
from gwq_export.arch.spec import OFF, Arch

_CONV = (
    *linear("shortconv.in_proj", "conv.in_proj", "conv_in", "dim", bias=False),
    TensorRow("shortconv.conv.weight", "conv.conv.weight", ("dim", "taps"), channels=True),
    *linear("shortconv.out_proj", "conv.out_proj", "dim", "dim", bias=False),
)
_FFN = (
    norm("ffn_norm", "ffn_norm"),
    *linear("ffn_gate", "feed_forward.w1", "ffn", "dim", bias=False),
    *linear("ffn_up", "feed_forward.w3", "ffn", "dim", bias=False),
    *linear("ffn_down", "feed_forward.w2", "dim", "ffn", bias=False),
)


def _block(attention: Rows, after_mixing: Rows = (), after_ffn: Rows = ()) -> Rows:
    """A block of either kind. The other arguments: norms before the sums."""
    return (
        norm("attn_norm", "operator_norm"),
        *(replace(row, kind="attention") for row in attention),
        *(replace(row, kind="conv") for row in _CONV),
        *after_mixing,
        *_FFN,
        *after_ffn,
    )


LFM2_BLOCK = _block(
    (
        *ATTENTION,
        *linear("attn_output", "self_attn.out_proj", "dim", "q"),
        norm("attn_q_norm", "self_attn.q_layernorm", "head"),
        norm("attn_k_norm", "self_attn.k_layernorm", "head"),
    )
)
_GATE = linear("attn_gate", "self_attn.g_proj", "heads", "dim", bias=False)
LFM3_BLOCK = _block(
    (*ATTENTION, *(replace(row, optional=True) for row in _GATE), *ATTENTION_OUTPUT, *QK_NORMS),
    (norm("post_attention_norm", "post_operator_norm", optional=True),),
    (norm("post_ffw_norm", "post_ffn_norm", optional=True),),
)
_LFM2 = Arch(
    "lfm2",
    "halves",
    LFM2_BLOCK,
    norm="model.embedding_norm.weight",
    norm_gguf="token_embd_norm",
    kinds={"full_attention": "attention", "conv": "conv"},
    eps="norm_eps",
    only={"hidden_act": ("silu",), "conv_bias": OFF},
)
ARCHS = {  # Hugging Face class name -> row
    "Lfm2ForCausalLM": _LFM2,
    "Lfm3ForCausalLM": replace(
        _LFM2,
        gguf="lfm3",
        block=LFM3_BLOCK,
        renamed=((".self_attn.gate_proj.", ".self_attn.g_proj."),),
        kinds=_LFM2.kinds | {"sliding_attention": "attention"},
        window="sliding_window",
        windows_listed=True,
        swa_rope=True,
        rope_kinds=("default", "proportional"),
        present={
            "use_sandwich_norm": "post_ffw_norm.weight",
            "use_attention_gate": "attn_gate.weight",
        },
    ),
}
