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
    shape: tuple  # names of Source.dims: dim, q (heads x head), kv (kv_heads x head), ffn, head
    linear: bool = False  # a matrix that is calibrated and quantized
    heads: str = ""  # "heads" or "kv_heads"
    optional: bool = False


def _norm(gguf, hf, dim="dim", optional=False):
    return TensorRow(f"{gguf}.weight", f"{hf}.weight", (dim,), optional=optional)


def _linear(gguf, hf, rows, cols, heads=""):
    return (
        TensorRow(f"{gguf}.weight", f"{hf}.weight", (rows, cols), linear=True, heads=heads),
        TensorRow(f"{gguf}.bias", f"{hf}.bias", (rows,), heads=heads, optional=True),
    )


LLAMA_BLOCK = (
    _norm("attn_norm", "input_layernorm"),
    *_linear("attn_q", "self_attn.q_proj", "q", "dim", heads="heads"),
    *_linear("attn_k", "self_attn.k_proj", "kv", "dim", heads="kv_heads"),
    *_linear("attn_v", "self_attn.v_proj", "kv", "dim"),
    _norm("attn_q_norm", "self_attn.q_norm", "head", optional=True),
    _norm("attn_k_norm", "self_attn.k_norm", "head", optional=True),
    *_linear("attn_output", "self_attn.o_proj", "dim", "q"),
    _norm("ffn_norm", "post_attention_layernorm"),
    *_linear("ffn_gate", "mlp.gate_proj", "ffn", "dim"),
    *_linear("ffn_up", "mlp.up_proj", "ffn", "dim"),
    *_linear("ffn_down", "mlp.down_proj", "dim", "ffn"),
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
