"""GLM-4: norms around attention and feed-forward, neighbours in half of a head turn together."""

from gwq_export.arch.parts import ATTENTION_OUTPUT, PAIRED_ATTENTION, linear, norm
from gwq_export.arch.spec import Arch

GLM4_BLOCK = (  # ffn_up holds gate and up
    norm("attn_norm", "input_layernorm"),
    *PAIRED_ATTENTION,
    *ATTENTION_OUTPUT,
    norm("post_attention_norm", "post_self_attn_layernorm"),
    norm("ffn_norm", "post_attention_layernorm"),
    *linear("ffn_up", "mlp.gate_up_proj", "gate_up", "dim", bias=False),
    *linear("ffn_down", "mlp.down_proj", "dim", "ffn", bias=False),
    norm("post_ffw_norm", "post_mlp_layernorm"),
)
ARCHS = {  # Hugging Face class name -> row
    "Glm4ForCausalLM": Arch("glm4", "pairs", GLM4_BLOCK, partial=True),
}
