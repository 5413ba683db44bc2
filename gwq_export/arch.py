"""Architectures as data: which tensor table their blocks have (`blocks`), which config keys they follow, how they compute.

To add an architecture, add a row to ARCHS (and a tensor table if none fits). Export reads the Hugging Face side of a row,
the runtime the GGUF side.
"""

from dataclasses import dataclass, field, replace

from gwq_export.blocks import (
    EXPERTS_BLOCK,
    GEMMA2_BLOCK,
    GEMMA3_BLOCK,
    GPT2_BLOCK,
    LLAMA_BLOCK,
    NEOX_BLOCK,
    OLMO2_BLOCK,
    PHI3_BLOCK,
    TensorRow,
)

_OFF = (False, None)
_SILU = {"hidden_act": ("silu",), "use_sliding_window": _OFF, "mlp_bias": _OFF}
_LLAMA_ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Arch:
    """One architecture: where its tensors are, which config keys they follow, and how it computes.

    rope: "pairs" (rows of Q and K are permuted at export), "halves" (as in transformers) or "" (learned positions).
    Attention of block i sees a sliding window unless (i + 1) is a multiple of `full_every` (0: all blocks do), where the
    config names a window; no positions are turned where it is a multiple of `unturned_every`.
    """

    gguf: str  # general.architecture and key prefix
    rope: str
    block: tuple = LLAMA_BLOCK
    layers: str = "model.layers"  # module path of the decoder blocks
    embed: str = "model.embed_tokens.weight"
    positions: str = ""  # learned positions
    norm: str = "model.norm.weight"
    norm_plus: float = 0.0  # is added to the last norm's weight
    head: str = "lm_head.weight"
    layer_norm: bool = False  # LayerNorm with a bias in the place of RMSNorm
    activation: str = "silu"  # silu, gelu (erf), gelu_tanh
    scaled_embedding: bool = False  # embeddings are multiplied by the root of their width
    parallel: bool = False  # attention and feed-forward may read the same input: the config says
    window: str = ""  # config key of the sliding window
    full_every: int = 0
    unturned_every: int = 0
    rope_kinds: tuple = ("default", "linear", "yarn")  # scalings; as in stock files
    partial: bool = False  # only the first part of a head may turn: the config says how much
    swa_base: str = ""  # config key of the rope base of blocks with a window, where they have their own
    wide_queries: int = 0  # models of so many blocks scale scores by the root of dim / heads, and stock files do not say it
    query_scalar: str = ""  # config key of the number whose inverse root scales scores
    eps: str = "rms_norm_eps"
    ffn_times: int = 0  # width of the feed-forward layers in widths of the model, where the config does not say
    names: dict = field(default_factory=dict)  # config key of the other rows -> this architecture's own
    defaults: dict = field(default_factory=dict)  # what transformers takes for a missing config key
    numbers: dict = field(default_factory=dict)  # GGUF key -> config key of a positive number; None is no number, and not written
    model_type: str = ""  # what config.json calls it, where that is not `gguf`
    # config values this runtime computes with; anything else is refused by name. A missing key is fine.
    only: dict = field(default_factory=lambda: _SILU)
    experts: str = ""  # module path in a block of a mixture of experts
    renamed: tuple = ()  # (old, new) parts of names in checkpoints

    @property
    def first(self):
        """Rows of what comes before the blocks, with full names."""
        rows = (TensorRow("token_embd.weight", self.embed, ("vocab", "dim")),)
        return (*rows, TensorRow("position_embd.weight", self.positions, ("ctx", "dim"))) if self.positions else rows

    @property
    def last(self):
        """Rows of what comes after the blocks but the head."""
        rows = (TensorRow("output_norm.weight", self.norm, ("dim",), plus=self.norm_plus),)
        bias = TensorRow("output_norm.bias", f"{self.norm.removesuffix('weight')}bias", ("dim",))
        return (*rows, bias) if self.layer_norm else rows

    def sliding(self, block, full_every):
        """Whether this block's attention sees a window, where the model has one. full_every: the model's, mostly the architecture's."""
        return not full_every or (block + 1) % full_every != 0

    def saved_name(self, name):
        """What checkpoints call the tensor `name` of a Source."""
        for old, new in self.renamed:
            name = name.replace(new, old)
        return name

    def turned(self, block):
        """Whether this block turns Q and K by their positions."""
        return bool(self.rope) and (not self.unturned_every or (block + 1) % self.unturned_every != 0)


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
    defaults={"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True},
    only={"hidden_act": ("gelu_pytorch_tanh",), "attention_bias": _OFF, "use_bidirectional_attention": _OFF},
)
ARCHS = {  # Hugging Face class name -> row
    "LlamaForCausalLM": Arch("llama", "pairs", rope_kinds=_LLAMA_ROPES),
    "MistralForCausalLM": Arch("llama", "pairs", rope_kinds=_LLAMA_ROPES, window="sliding_window", model_type="mistral"),
    "Qwen2ForCausalLM": Arch("qwen2", "halves"),
    "Qwen3ForCausalLM": Arch("qwen3", "halves"),
    "MixtralForCausalLM": Arch(
        "llama",
        "pairs",
        EXPERTS_BLOCK,
        rope_kinds=_LLAMA_ROPES,
        window="sliding_window",
        names={"moe_intermediate_size": "intermediate_size"},
        defaults={"norm_topk_prob": True},
        only=_SILU | {"norm_topk_prob": (True,)},
        model_type="mixtral",
        experts="mlp.experts",
        renamed=((".block_sparse_moe.", ".mlp."), (".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj.")),
    ),
    "Qwen3MoeForCausalLM": Arch(
        "qwen3moe",
        "halves",
        EXPERTS_BLOCK,
        names={"num_local_experts": "num_experts"},
        defaults={"norm_topk_prob": False},
        only=_SILU | {"mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
        model_type="qwen3_moe",
        experts="mlp.experts",
    ),
    "SmolLM3ForCausalLM": Arch("smollm3", "pairs", unturned_every=4, defaults={"rope_theta": 2e6, "tie_word_embeddings": True}),
    "GraniteForCausalLM": Arch(
        "granite",
        "pairs",
        rope_kinds=_LLAMA_ROPES,
        defaults={"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0},
        numbers={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "Olmo2ForCausalLM": Arch(
        "olmo2", "halves", OLMO2_BLOCK, defaults={"rms_norm_eps": 1e-5}, only={"hidden_act": ("silu",), "attention_bias": _OFF}
    ),
    "Phi3ForCausalLM": Arch(
        "phi3",
        "halves",
        PHI3_BLOCK,
        window="sliding_window",
        rope_kinds=("default", "longrope"),
        partial=True,
        defaults={"rms_norm_eps": 1e-5},
    ),
    "Gemma2ForCausalLM": replace(
        _GEMMA,
        full_every=2,
        wide_queries=46,
        defaults=_GEMMA.defaults | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        numbers={"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
    ),
    "Gemma3ForCausalLM": replace(
        _GEMMA,
        gguf="gemma3",
        block=GEMMA3_BLOCK,
        full_every=6,
        wide_queries=62,
        swa_base="rope_local_base_freq",
        model_type="gemma3_text",
        defaults=_GEMMA.defaults | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        only=_GEMMA.only | {"attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    ),
    "GPT2LMHeadModel": Arch(
        "gpt2",
        "",
        GPT2_BLOCK,
        layers="transformer.h",
        embed="transformer.wte.weight",
        positions="transformer.wpe.weight",
        norm="transformer.ln_f.weight",
        layer_norm=True,
        activation="gelu_tanh",
        eps="layer_norm_epsilon",
        ffn_times=4,
        names={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
        },
        defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        only={
            "hidden_act": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "GPTNeoXForCausalLM": Arch(
        "gptneox",
        "halves",
        NEOX_BLOCK,
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in.weight",
        norm="gpt_neox.final_layer_norm.weight",
        head="embed_out.weight",
        layer_norm=True,
        activation="gelu",
        parallel=True,
        rope_kinds=("default", "linear"),
        partial=True,
        eps="layer_norm_eps",
        model_type="gpt_neox",
        names={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
        defaults={"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5},
        only={"hidden_act": ("gelu",), "attention_bias": (True,)},
    ),
}
ARCH_BY_GGUF = {(a.gguf, bool(a.experts)): a for a in ARCHS.values()}  # by what a file says: its name, and whether it has experts


def gguf_name(block, row):
    """GGUF tensor name of a block's row."""
    return f"blk.{block}.{row.gguf}"
