"""Tensor tables: which tensors a decoder block has, their GGUF and Hugging Face names, and how their rows are rearranged."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a decoder block, and how its rows in the file follow from those of the checkpoint."""

    gguf: str  # name after "blk.N."
    hf: str  # name after "<layers>.N."; with {} for an expert's number
    shape: tuple  # names of Source.dims, as in the file (rows, columns): dim, q (heads x head), kv (kv_heads x head), ffn, head ...
    linear: bool = False  # a matrix that is calibrated and quantized
    heads: str = ""  # "heads" or "kv_heads": rows are permuted head by head where rope turns pairs
    interleaved: int = 0  # rows lie as (heads, interleaved, head) and go to (interleaved, heads, head)
    transposed: bool = False  # the checkpoint has (columns, rows)
    plus: float = 0.0  # is added to every value
    optional: bool = False
    expert: int | None = None  # which matrix of a tensor (experts, rows, columns)

    def of_expert(self, j):
        """The row of expert j's matrix."""
        return replace(self, hf=self.hf.format(j), expert=j)


def _norm(gguf, hf, dim="dim", plus=0.0, optional=False):
    return TensorRow(f"{gguf}.weight", f"{hf}.weight", (dim,), plus=plus, optional=optional)


def _layer_norm(gguf, hf):
    return tuple(TensorRow(f"{gguf}.{part}", f"{hf}.{part}", ("dim",)) for part in ("weight", "bias"))


def _linear(gguf, hf, rows, cols, bias=True, **arranged):
    weight = TensorRow(f"{gguf}.weight", f"{hf}.weight", (rows, cols), linear=True, **arranged)
    arranged.pop("transposed", None)
    return (weight, TensorRow(f"{gguf}.bias", f"{hf}.bias", (rows,), optional=True, **arranged)) if bias else (weight,)


ATTENTION = (
    *_linear("attn_q", "self_attn.q_proj", "q", "dim", heads="heads"),
    *_linear("attn_k", "self_attn.k_proj", "kv", "dim", heads="kv_heads"),
    *_linear("attn_v", "self_attn.v_proj", "kv", "dim"),
)
ATTENTION_OUTPUT = _linear("attn_output", "self_attn.o_proj", "dim", "q")
FFN = (
    *_linear("ffn_gate", "mlp.gate_proj", "ffn", "dim"),
    *_linear("ffn_up", "mlp.up_proj", "ffn", "dim"),
    *_linear("ffn_down", "mlp.down_proj", "dim", "ffn"),
)
EXPERTS = (
    TensorRow("ffn_gate_inp.weight", "mlp.gate.weight", ("experts", "dim")),  # the router, which stays float32
    TensorRow("ffn_gate_exps.weight", "mlp.experts.{}.gate_proj.weight", ("experts", "expert_ffn", "dim"), linear=True),
    TensorRow("ffn_up_exps.weight", "mlp.experts.{}.up_proj.weight", ("experts", "expert_ffn", "dim"), linear=True),
    TensorRow("ffn_down_exps.weight", "mlp.experts.{}.down_proj.weight", ("experts", "dim", "expert_ffn"), linear=True),
)


def _gemma_block(*qk_norms):
    """Norms before and after both halves; checkpoints have their weights less one."""
    return (
        _norm("attn_norm", "input_layernorm", plus=1.0),
        *ATTENTION,
        *qk_norms,
        *ATTENTION_OUTPUT,
        _norm("post_attention_norm", "post_attention_layernorm", plus=1.0),
        _norm("ffn_norm", "pre_feedforward_layernorm", plus=1.0),
        *FFN,
        _norm("post_ffw_norm", "post_feedforward_layernorm", plus=1.0),
    )


LLAMA_BLOCK = (
    _norm("attn_norm", "input_layernorm"),
    *ATTENTION,
    _norm("attn_q_norm", "self_attn.q_norm", "head", optional=True),
    _norm("attn_k_norm", "self_attn.k_norm", "head", optional=True),
    *ATTENTION_OUTPUT,
    _norm("ffn_norm", "post_attention_layernorm"),
    *FFN,
)
EXPERTS_BLOCK = tuple(row for row in LLAMA_BLOCK if row not in FFN) + EXPERTS
OLMO2_BLOCK = (  # no norm before, one after; Q and K are normed whole
    *ATTENTION,
    _norm("attn_q_norm", "self_attn.q_norm", "q"),
    _norm("attn_k_norm", "self_attn.k_norm", "kv"),
    *ATTENTION_OUTPUT,
    _norm("post_attention_norm", "post_attention_layernorm"),
    *FFN,
    _norm("post_ffw_norm", "post_feedforward_layernorm"),
)
PHI3_BLOCK = (  # ffn_up holds gate and up
    _norm("attn_norm", "input_layernorm"),
    *_linear("attn_qkv", "self_attn.qkv_proj", "qkv", "dim", bias=False),
    *_linear("attn_output", "self_attn.o_proj", "dim", "q", bias=False),
    _norm("ffn_norm", "post_attention_layernorm"),
    *_linear("ffn_up", "mlp.gate_up_proj", "gate_up", "dim", bias=False),
    *_linear("ffn_down", "mlp.down_proj", "dim", "ffn", bias=False),
)
GPT2_BLOCK = (
    *_layer_norm("attn_norm", "ln_1"),
    *_linear("attn_qkv", "attn.c_attn", "qkv", "dim", transposed=True),
    *_linear("attn_output", "attn.c_proj", "dim", "q", transposed=True),
    *_layer_norm("ffn_norm", "ln_2"),
    *_linear("ffn_up", "mlp.c_fc", "ffn", "dim", transposed=True),
    *_linear("ffn_down", "mlp.c_proj", "dim", "ffn", transposed=True),
)
NEOX_BLOCK = (
    *_layer_norm("attn_norm", "input_layernorm"),
    *_linear("attn_qkv", "attention.query_key_value", "qkv", "dim", interleaved=3),
    *_linear("attn_output", "attention.dense", "dim", "q"),
    *_layer_norm("ffn_norm", "post_attention_layernorm"),
    *_linear("ffn_up", "mlp.dense_h_to_4h", "ffn", "dim"),
    *_linear("ffn_down", "mlp.dense_4h_to_h", "dim", "ffn"),
)
GEMMA2_BLOCK = _gemma_block()
GEMMA3_BLOCK = _gemma_block(
    _norm("attn_q_norm", "self_attn.q_norm", "head", plus=1.0), _norm("attn_k_norm", "self_attn.k_norm", "head", plus=1.0)
)
