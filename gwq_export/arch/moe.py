"""Mixtures of experts on Llama's block: Mixtral, Qwen2-MoE with its shared expert, Qwen3-MoE."""

from gwq_export.arch.parts import FFN, LLAMA_BLOCK, Rows, TensorRow, linear
from gwq_export.arch.spec import LLAMA_ROPES, SILU, Arch


def _expert(gguf: str, hf: str, rows: str, cols: str) -> TensorRow:
    """A matrix of every expert."""
    return TensorRow(gguf, hf, ("experts", rows, cols), linear=True)


EXPERTS: Rows = (
    # the router, which stays float32
    TensorRow("ffn_gate_inp.weight", "mlp.gate.weight", ("experts", "dim")),
    _expert("ffn_gate_exps.weight", "mlp.experts.{}.gate_proj.weight", "expert_ffn", "dim"),
    _expert("ffn_up_exps.weight", "mlp.experts.{}.up_proj.weight", "expert_ffn", "dim"),
    _expert("ffn_down_exps.weight", "mlp.experts.{}.down_proj.weight", "dim", "expert_ffn"),
)
EXPERTS_BLOCK: Rows = tuple(row for row in LLAMA_BLOCK if row not in FFN) + EXPERTS
SHARED_EXPERT: Rows = (  # of all tokens, by a share that each token asks for
    TensorRow("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", ("dim",), one_row=True),
    *linear("ffn_gate_shexp", "mlp.shared_expert.gate_proj", "shared_ffn", "dim", bias=False),
    *linear("ffn_up_shexp", "mlp.shared_expert.up_proj", "shared_ffn", "dim", bias=False),
    *linear("ffn_down_shexp", "mlp.shared_expert.down_proj", "dim", "shared_ffn", bias=False),
)
_QWEN_EXPERTS: dict[str, tuple] = {"mlp_only_layers": ([], None), "decoder_sparse_step": (1,)}
ARCHS = {  # Hugging Face class name -> row
    "MixtralForCausalLM": Arch(
        "llama",
        "pairs",
        EXPERTS_BLOCK,
        rope_kinds=LLAMA_ROPES,
        window="sliding_window",
        names={"moe_intermediate_size": "intermediate_size"},
        defaults={"norm_topk_prob": True},
        only=SILU | {"norm_topk_prob": (True,)},
        model_type="mixtral",
        experts="mlp.experts",
        renamed=(
            (".block_sparse_moe.", ".mlp."),
            (".w1.", ".gate_proj."),
            (".w3.", ".up_proj."),
            (".w2.", ".down_proj."),
        ),
    ),
    "Qwen2MoeForCausalLM": Arch(
        "qwen2moe",
        "halves",
        EXPERTS_BLOCK + SHARED_EXPERT,
        names={"num_local_experts": "num_experts", "attention_bias": "qkv_bias"},
        only=SILU | _QWEN_EXPERTS,
        experts_normed=False,
        model_type="qwen2_moe",
        experts="mlp.experts",
    ),
    "Qwen3MoeForCausalLM": Arch(
        "qwen3moe",
        "halves",
        EXPERTS_BLOCK,
        names={"num_local_experts": "num_experts"},
        only=SILU | _QWEN_EXPERTS,
        model_type="qwen3_moe",
        experts="mlp.experts",
    ),
}
