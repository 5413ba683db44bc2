"""Tensor tables: which tensors a decoder block has, their GGUF and Hugging Face names, and how
their rows are rearranged.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a decoder block, and how its rows in the file follow from those of the
    checkpoint.
    """

    gguf: str  # name after "blk.N."
    hf: str  # name after "<layers>.N."; with {} for an expert's number
    # names of Source.dims, as in the file (rows, columns): dim, q (heads x head), kv (kv_heads x
    # head), ffn, head ...
    shape: tuple
    linear: bool = False  # a matrix that is calibrated and quantized
    heads: str = ""  # "heads" or "kv_heads": rows are permuted head by head where rope turns pairs
    interleaved: int = (
        0  # rows lie as (heads, interleaved, head) and go to (interleaved, heads, head)
    )
    transposed: bool = False  # the checkpoint has (columns, rows)
    plus: float = 0.0  # is added to every value
    optional: bool = False
    expert: int | None = None  # which matrix of a tensor (experts, rows, columns)

    def of_expert(self, j):
        """The row of expert j's matrix."""
        return replace(self, hf=self.hf.format(j), expert=j)


def norm(gguf, hf, dim="dim", plus=0.0, optional=False):
    return TensorRow(f"{gguf}.weight", f"{hf}.weight", (dim,), plus=plus, optional=optional)


def layer_norm(gguf, hf):
    return tuple(
        TensorRow(f"{gguf}.{part}", f"{hf}.{part}", ("dim",)) for part in ("weight", "bias")
    )


def linear(gguf, hf, rows, cols, bias=True, **arranged):
    weight = TensorRow(f"{gguf}.weight", f"{hf}.weight", (rows, cols), linear=True, **arranged)
    arranged.pop("transposed", None)
    return (
        (weight, TensorRow(f"{gguf}.bias", f"{hf}.bias", (rows,), optional=True, **arranged))
        if bias
        else (weight,)
    )


ATTENTION = (
    *linear("attn_q", "self_attn.q_proj", "q", "dim", heads="heads"),
    *linear("attn_k", "self_attn.k_proj", "kv", "dim", heads="kv_heads"),
    *linear("attn_v", "self_attn.v_proj", "kv", "dim"),
)
ATTENTION_OUTPUT = linear("attn_output", "self_attn.o_proj", "dim", "q")
FFN = (
    *linear("ffn_gate", "mlp.gate_proj", "ffn", "dim"),
    *linear("ffn_up", "mlp.up_proj", "ffn", "dim"),
    *linear("ffn_down", "mlp.down_proj", "dim", "ffn"),
)


LLAMA_BLOCK = (
    norm("attn_norm", "input_layernorm"),
    *ATTENTION,
    norm("attn_q_norm", "self_attn.q_norm", "head", optional=True),
    norm("attn_k_norm", "self_attn.k_norm", "head", optional=True),
    *ATTENTION_OUTPUT,
    norm("ffn_norm", "post_attention_layernorm"),
    *FFN,
)
