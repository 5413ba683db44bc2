"""Tensor tables: the tensors of a decoder block, their GGUF and Hugging Face names and layouts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a model, and how its rows in the file follow from those of the checkpoint."""

    # name in the file, of a block's tensor after "blk.N."
    gguf: str
    # name in the checkpoint, of a block's tensor after "<layers>.N."; {} is an expert's number
    hf: str
    # sizes in the file (rows, columns), by their names in Source.dims: dim, q (heads x head),
    # kv (kv_heads x head), ffn, head ...
    shape: tuple[str, ...]
    # a matrix that is calibrated and quantized
    linear: bool = False
    # "heads" or "kv_heads": rows are permuted head by head where rope turns pairs
    heads: str = ""
    # rows lie as (heads, interleaved, head) and go to (interleaved, heads, head)
    interleaved: int = 0
    # the checkpoint has (columns, rows)
    transposed: bool = False
    # the checkpoint has a matrix of one row, the file a vector
    one_row: bool = False
    # is added to every value
    plus: float = 0.0
    # the checkpoint has (rows, 1, columns)
    channels: bool = False
    # some models of the architecture do not have it
    optional: bool = False
    # "attention" or "conv": only blocks of this kind have it; "": all blocks
    kind: str = ""
    # which matrix of a tensor (experts, rows, columns) it is, None for a whole tensor
    expert: int | None = None

    def of_expert(self, j: int) -> TensorRow:
        """The row of expert j's matrix."""
        return replace(self, hf=self.hf.format(j), expert=j)


Rows = tuple[TensorRow, ...]


def norm(
    gguf: str, hf: str, dim: str = "dim", plus: float = 0.0, optional: bool = False
) -> TensorRow:
    """The weight of an RMSNorm over `dim` values."""
    return TensorRow(f"{gguf}.weight", f"{hf}.weight", (dim,), plus=plus, optional=optional)


def layer_norm(gguf: str, hf: str) -> Rows:
    """Weight and bias of a LayerNorm."""
    return (
        TensorRow(f"{gguf}.weight", f"{hf}.weight", ("dim",)),
        TensorRow(f"{gguf}.bias", f"{hf}.bias", ("dim",)),
    )


def linear(
    gguf: str,
    hf: str,
    rows: str,
    cols: str,
    bias: bool = True,
    heads: str = "",
    interleaved: int = 0,
    transposed: bool = False,
) -> Rows:
    """Weight (rows, cols) of a linear layer and, unless `bias` is false, its optional bias.

    The other arguments are fields of TensorRow.
    """
    weight = TensorRow(
        f"{gguf}.weight",
        f"{hf}.weight",
        (rows, cols),
        linear=True,
        heads=heads,
        interleaved=interleaved,
        transposed=transposed,
    )
    if not bias:
        return (weight,)
    return (
        weight,
        TensorRow(
            f"{gguf}.bias",
            f"{hf}.bias",
            (rows,),
            optional=True,
            heads=heads,
            interleaved=interleaved,
        ),
    )


ATTENTION: Rows = (
    *linear("attn_q", "self_attn.q_proj", "q", "dim", heads="heads"),
    *linear("attn_k", "self_attn.k_proj", "kv", "dim", heads="kv_heads"),
    *linear("attn_v", "self_attn.v_proj", "kv", "dim"),
)
# Q and K of a checkpoint in which neighbours turn together already
PAIRED_ATTENTION: Rows = tuple(replace(row, heads="") for row in ATTENTION)
QK_NORMS: Rows = (
    norm("attn_q_norm", "self_attn.q_norm", "head"),
    norm("attn_k_norm", "self_attn.k_norm", "head"),
)
ATTENTION_OUTPUT: Rows = linear("attn_output", "self_attn.o_proj", "dim", "q")
FFN: Rows = (
    *linear("ffn_gate", "mlp.gate_proj", "ffn", "dim"),
    *linear("ffn_up", "mlp.up_proj", "ffn", "dim"),
    *linear("ffn_down", "mlp.down_proj", "dim", "ffn"),
)
LLAMA_BLOCK: Rows = (
    norm("attn_norm", "input_layernorm"),
    *ATTENTION,
    norm("attn_q_norm", "self_attn.q_norm", "head", optional=True),
    norm("attn_k_norm", "self_attn.k_norm", "head", optional=True),
    *ATTENTION_OUTPUT,
    norm("ffn_norm", "post_attention_layernorm"),
    *FFN,
)
