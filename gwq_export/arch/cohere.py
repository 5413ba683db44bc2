"""Cohere 2: attention and feed-forward read the same LayerNorm, which has no bias."""

from gwq_export.arch.parts import ATTENTION_OUTPUT, FFN, PAIRED_ATTENTION, norm
from gwq_export.arch.spec import OFF, Arch

COHERE2_BLOCK = (
    norm("attn_norm", "input_layernorm"),
    *PAIRED_ATTENTION,
    *ATTENTION_OUTPUT,
    *FFN,
)
ARCHS = {  # Hugging Face class name -> row
    "Cohere2ForCausalLM": Arch(
        "cohere2",
        "pairs",
        COHERE2_BLOCK,
        layer_norm=True,
        norm_biased=False,
        parallel=True,
        logits_divided=False,
        window="sliding_window",
        full_every=4,
        windows_listed=True,
        unturned_full="always",
        rope_kinds=("default", "linear"),
        eps="layer_norm_eps",
        numbers={"logit_scale": "logit_scale"},
        only={"hidden_act": ("silu",), "attention_bias": OFF},
    ),
}
