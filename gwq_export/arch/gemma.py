"""Gemma 2 and 3: norms around attention and feed-forward; windows alternate with full attention."""

from dataclasses import replace

from gwq_export.arch.parts import ATTENTION, ATTENTION_OUTPUT, FFN, Rows, TensorRow, norm
from gwq_export.arch.spec import OFF, Arch


def _block(*qk_norms: TensorRow) -> Rows:
    """A block. Checkpoints store the weights of its norms less one."""
    return (
        norm("attn_norm", "input_layernorm", plus=1.0),
        *ATTENTION,
        *qk_norms,
        *ATTENTION_OUTPUT,
        norm("post_attention_norm", "post_attention_layernorm", plus=1.0),
        norm("ffn_norm", "pre_feedforward_layernorm", plus=1.0),
        *FFN,
        norm("post_ffw_norm", "post_feedforward_layernorm", plus=1.0),
    )


GEMMA2_BLOCK = _block()
GEMMA3_BLOCK = _block(
    norm("attn_q_norm", "self_attn.q_norm", "head", plus=1.0),
    norm("attn_k_norm", "self_attn.k_norm", "head", plus=1.0),
)
_GEMMA = Arch(  # what generations 2 and 3 share
    "gemma2",
    "halves",
    GEMMA2_BLOCK,
    norm_plus=1.0,
    activation="gelu_tanh",
    scaled_embedding=True,
    window="sliding_window",
    query_scalar="query_pre_attn_scalar",
    names={"hidden_act": "hidden_activation"},
    only={
        "hidden_act": ("gelu_pytorch_tanh",),
        "attention_bias": OFF,
        "use_bidirectional_attention": OFF,
    },
)
ARCHS = {  # Hugging Face class name -> row
    "Gemma2ForCausalLM": replace(
        _GEMMA,
        full_every=2,
        wide_queries=46,
        numbers={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "Gemma3ForCausalLM": replace(
        _GEMMA,
        gguf="gemma3",
        block=GEMMA3_BLOCK,
        full_every=6,
        wide_queries=62,
        swa_rope=True,
        swa_base="rope_local_base_freq",
        model_type="gemma3_text",
        defaults={"rope_local_base_freq": 1e4},
        only=_GEMMA.only | {"attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    ),
}
