"""What the row of one architecture says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gwq_export.arch.parts import LLAMA_BLOCK, Rows, TensorRow

OFF = (False, None)
SILU: dict[str, tuple] = {"hidden_act": ("silu",), "use_sliding_window": OFF, "mlp_bias": OFF}
LLAMA_ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Arch:
    """One architecture: where its tensors are, which config keys they follow, how it computes.

    Config keys are those of config.json, by the names that most architectures give them: `names`
    translates.
    """

    # --- names --------------------------------------------------------------------------------
    # general.architecture, and the prefix of its GGUF keys
    gguf: str
    # rotary positions: "pairs" (neighbours turn together: rows of Q and K are permuted at export),
    # "halves" (as in transformers) or "" (learned positions)
    rope: str

    # --- tensors ------------------------------------------------------------------------------
    # of a decoder block
    block: Rows = LLAMA_BLOCK
    # module path of the decoder blocks
    layers: str = "model.layers"
    embed: str = "model.embed_tokens.weight"
    # learned positions, "" for none
    positions: str = ""
    # the last norm, and what is added to its weight
    norm: str = "model.norm.weight"
    norm_plus: float = 0.0
    head: str = "lm_head.weight"
    # module path, within a block, of a mixture of experts; "" for dense models
    experts: str = ""
    # (name in some checkpoints, name here) of parts of tensor names
    renamed: tuple[tuple[str, str], ...] = ()

    # --- arithmetic ---------------------------------------------------------------------------
    # LayerNorm with a bias in place of RMSNorm
    layer_norm: bool = False
    # "silu", "gelu" (erf) or "gelu_tanh"
    activation: str = "silu"
    # embeddings are multiplied by the root of their width
    scaled_embedding: bool = False
    # attention and feed-forward may read the same input: the config says
    parallel: bool = False
    # config key of the number whose inverse root scales attention scores; "": head_dim does
    query_scalar: str = ""
    # models of so many blocks scale scores by the inverse root of dim / heads, which llama.cpp's
    # files do not say
    wide_queries: int = 0

    # --- attention windows --------------------------------------------------------------------
    # config key of the sliding window; "": no block has one
    window: str = ""
    # block i sees the whole context where (i + 1) is a multiple of it; 0: all blocks have a window
    full_every: int = 0

    # --- rotary positions ---------------------------------------------------------------------
    # Q and K are not turned in block i where (i + 1) is a multiple of it; 0: all blocks turn them
    unturned_every: int = 0
    # scalings that llama.cpp knows for the architecture too
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    # only the first part of a head may turn: the config says how much
    partial: bool = False
    # config key of the base frequency of blocks with a window; "": it is that of the others
    swa_base: str = ""

    # --- config.json --------------------------------------------------------------------------
    # its model_type, where that is not `gguf`
    model_type: str = ""
    # config key of the norms' epsilon
    eps: str = "rms_norm_eps"
    # width of the feed-forward layers in widths of the model, where the config does not say
    ffn_times: int = 0
    # usual config key -> this architecture's own
    names: dict[str, str] = field(default_factory=dict)
    # what a missing config key means, where the transformers class has no default for it
    defaults: dict[str, Any] = field(default_factory=dict)
    # GGUF key -> config key of a positive number
    numbers: dict[str, str] = field(default_factory=dict)
    # config key -> values that this runtime computes with; any other is refused by name, a missing
    # key is fine
    only: dict[str, tuple] = field(default_factory=lambda: SILU)

    @property
    def first(self) -> Rows:
        """Rows of what comes before the blocks, with full names."""
        embed = TensorRow("token_embd.weight", self.embed, ("vocab", "dim"))
        if not self.positions:
            return (embed,)
        return (embed, TensorRow("position_embd.weight", self.positions, ("ctx", "dim")))

    @property
    def last(self) -> Rows:
        """Rows of what comes after the blocks but the head, with full names."""
        weight = TensorRow("output_norm.weight", self.norm, ("dim",), plus=self.norm_plus)
        if not self.layer_norm:
            return (weight,)
        bias = TensorRow("output_norm.bias", f"{self.norm.removesuffix('weight')}bias", ("dim",))
        return (weight, bias)

    def sliding(self, block: int, full_every: int) -> bool:
        """Whether this block's attention sees a window only, where the model has one.

        full_every: the model's, mostly the architecture's.
        """
        return not full_every or (block + 1) % full_every != 0

    def turned(self, block: int) -> bool:
        """Whether this block turns Q and K by their positions."""
        if not self.rope:
            return False
        return not self.unturned_every or (block + 1) % self.unturned_every != 0

    def saved_name(self, name: str) -> str:
        """What checkpoints call the tensor `name` of a Source."""
        for old, new in self.renamed:
            name = name.replace(new, old)
        return name


def gguf_name(block: int, row: TensorRow) -> str:
    """GGUF tensor name of a block's row."""
    return f"blk.{block}.{row.gguf}"
