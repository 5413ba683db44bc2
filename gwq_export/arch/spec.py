"""What the row of one architecture says."""

from __future__ import annotations

from collections.abc import Sequence
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
    # what files call it
    norm_gguf: str = "output_norm"
    head: str = "lm_head.weight"
    # module path, within a block, of a mixture of experts; "" for dense models
    experts: str = ""
    # module path, within a block, of a feed-forward layer whose class has gate and up in one
    # matrix, "input_linear", which are two in the file; "" for none
    paired_ffn: str = ""
    # (name in some checkpoints, name here) of parts of tensor names
    renamed: tuple[tuple[str, str], ...] = ()

    # --- arithmetic ---------------------------------------------------------------------------
    # weights of a token's experts add up to 1 where the file does not say, and in llama.cpp always
    experts_normed: bool = True
    # LayerNorm in place of RMSNorm, with a bias unless the next says no
    layer_norm: bool = False
    norm_biased: bool = True
    # "silu", "gelu" (erf) or "gelu_tanh"
    activation: str = "silu"
    # embeddings are multiplied by the root of their width
    scaled_embedding: bool = False
    # attention and feed-forward may read the same input: the config says, if it has that key
    parallel: bool = False
    # logits are divided by the file's logit_scale, else multiplied
    logits_divided: bool = True
    # config key of the number whose inverse root scales attention scores; "": head_dim does
    query_scalar: str = ""
    # models of so many blocks scale scores by the inverse root of dim / heads, which llama.cpp's
    # files do not say
    wide_queries: int = 0

    # --- kinds of blocks ----------------------------------------------------------------------
    # the config's `layer_types` -> kind of block (TensorRow.kind); empty: all have attention. Files
    # say it by a number of key-value heads for each block, 0 of those without attention
    kinds: dict[str, str] = field(default_factory=dict)

    # --- attention windows --------------------------------------------------------------------
    # config key of the sliding window; "": no block has one
    window: str = ""
    # block i sees the whole context where (i + 1) is a multiple of it; 0: all blocks have a window
    full_every: int = 0
    # the file may list which blocks have one, in any order
    windows_listed: bool = False

    # --- rotary positions ---------------------------------------------------------------------
    # Q and K are not turned in block i where (i + 1) is a multiple of it; 0: all blocks turn them
    unturned_every: int = 0
    # blocks without a window do not turn them: "beside windows" (of other blocks) or "always"
    unturned_full: str = ""
    # Q and K are normed after they are turned
    norms_turned: bool = False
    # queries grow with their positions: the config says by how much
    queries_grow: bool = False
    # scalings that llama.cpp knows for the architecture too
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    # yarn's amplitude may be divided by another, which the file says
    yarn_divided: bool = False
    # only the first part of a head may turn: the config says how much
    partial: bool = False
    # blocks with a window have a rope of their own, which scales nothing
    swa_rope: bool = False
    # config key of its base frequency, beside that of the others; "": only `rope_parameters` say it
    swa_base: str = ""

    # --- config.json --------------------------------------------------------------------------
    # its model_type, where that is not `gguf`
    model_type: str = ""
    # a GGUF file of it is read as one of another row, which computes the same
    export_only: bool = False
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
    # config key of a flag -> tensor of a block that is there where it is set
    present: dict[str, str] = field(default_factory=dict)
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
        weight = TensorRow(f"{self.norm_gguf}.weight", self.norm, ("dim",), plus=self.norm_plus)
        if not (self.layer_norm and self.norm_biased):
            return (weight,)
        bias = TensorRow(
            f"{self.norm_gguf}.bias", f"{self.norm.removesuffix('weight')}bias", ("dim",)
        )
        return (weight, bias)

    def rows(self, kind: str) -> Rows:
        """Rows of a block of this kind, "attention" where there are no others."""
        return tuple(row for row in self.block if row.kind in ("", kind))

    def sliding(self, block: int, full_every: int) -> bool:
        """Whether this block's attention sees a window only, where the model has one.

        full_every: the model's, mostly the architecture's.
        """
        return not full_every or (block + 1) % full_every != 0

    def turned(self, block: int, windows: Sequence[int] = ()) -> bool:
        """Whether this block turns Q and K by their positions.

        windows: of each block, 0 for none.
        """
        if not self.rope:
            return False
        if self.unturned_full == "always" or (self.unturned_full and any(windows)):
            return windows[block] > 0
        return not self.unturned_every or (block + 1) % self.unturned_every != 0

    def saved_name(self, name: str) -> str:
        """What checkpoints call the tensor `name` of a Source."""
        for old, new in self.renamed:
            name = name.replace(new, old)
        return name


def gguf_name(block: int, row: TensorRow) -> str:
    """GGUF tensor name of a block's row."""
    return f"blk.{block}.{row.gguf}"
