"""Architectures as data: which tensors there are, their GGUF names, and how a Hugging Face weight is rearranged.

To add an architecture, add a row to ARCHS (and a tensor table if the existing one does not fit). Nothing here
imports other modules; `export` reads the Hugging Face side of a row, `model` the GGUF side.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a decoder block. `heads` names the head count by which rows are permuted where llama.cpp does."""

    gguf: str  # name after "blk.N."
    hf: str  # name after "<layers>.N."
    linear: bool = False  # a matrix that is calibrated and quantized
    heads: str = ""  # "heads" or "kv_heads"
    optional: bool = False


def _linear(gguf, hf, heads=""):
    return (
        TensorRow(f"{gguf}.weight", f"{hf}.weight", linear=True, heads=heads),
        TensorRow(f"{gguf}.bias", f"{hf}.bias", heads=heads, optional=True),
    )


LLAMA_BLOCK = (
    TensorRow("attn_norm.weight", "input_layernorm.weight"),
    *_linear("attn_q", "self_attn.q_proj", "heads"),
    *_linear("attn_k", "self_attn.k_proj", "kv_heads"),
    *_linear("attn_v", "self_attn.v_proj"),
    TensorRow("attn_q_norm.weight", "self_attn.q_norm.weight", optional=True),
    TensorRow("attn_k_norm.weight", "self_attn.k_norm.weight", optional=True),
    *_linear("attn_output", "self_attn.o_proj"),
    TensorRow("ffn_norm.weight", "post_attention_layernorm.weight"),
    *_linear("ffn_gate", "mlp.gate_proj"),
    *_linear("ffn_up", "mlp.up_proj"),
    *_linear("ffn_down", "mlp.down_proj"),
)


@dataclass(frozen=True)
class Arch:
    """One architecture. `rope` is "pairs" (rows of Q and K are permuted at export) or "halves" (as in transformers)."""

    gguf: str  # general.architecture and key prefix
    rope: str
    layers: str = "model.layers"  # module path of the decoder blocks
    embed: str = "model.embed_tokens.weight"
    norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    block: tuple = LLAMA_BLOCK
    window: str = ""  # config key of the sliding attention window, if the architecture has one
    # config values this runtime computes with; anything else is refused by name. A missing key is fine.
    only: dict = field(default_factory=lambda: {"hidden_act": ("silu",), "use_sliding_window": (False, None), "mlp_bias": (False, None)})


ARCHS = {  # Hugging Face class name -> row
    "LlamaForCausalLM": Arch("llama", "pairs"),
    "MistralForCausalLM": Arch("llama", "pairs", window="sliding_window"),
    "Qwen2ForCausalLM": Arch("qwen2", "halves"),
    "Qwen3ForCausalLM": Arch("qwen3", "halves"),
}
ROPE_BY_GGUF = {a.gguf: a.rope for a in ARCHS.values()}


def gguf_name(block, row):
    """GGUF tensor name of a block's row."""
    return f"blk.{block}.{row.gguf}"
