"""What the row of one architecture says."""

from dataclasses import dataclass, field

from gwq_export.arch.parts import LLAMA_BLOCK, TensorRow

OFF = (False, None)
SILU = {"hidden_act": ("silu",), "use_sliding_window": OFF, "mlp_bias": OFF}
LLAMA_ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Arch:
    """One architecture: where its tensors are, which config keys they follow, and how it computes.

    rope: "pairs" (rows of Q and K are permuted at export), "halves" (as in transformers) or ""
    (learned positions). Attention of block i sees a sliding window unless (i + 1) is a multiple of
    `full_every` (0: all blocks do), where the config names a window; no positions are turned where
    it is a multiple of `unturned_every`.
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
    swa_base: str = (
        ""  # config key of the rope base of blocks with a window, where they have their own
    )
    # models of so many blocks scale scores by the root of dim / heads, and stock files do not say
    # it
    wide_queries: int = 0
    query_scalar: str = ""  # config key of the number whose inverse root scales scores
    eps: str = "rms_norm_eps"
    ffn_times: int = (
        0  # width of the feed-forward layers in widths of the model, where the config does not say
    )
    names: dict = field(
        default_factory=dict
    )  # config key of the other rows -> this architecture's own
    defaults: dict = field(default_factory=dict)  # what transformers takes for a missing config key
    numbers: dict = field(
        default_factory=dict
    )  # GGUF key -> config key of a positive number; None is no number, and not written
    model_type: str = ""  # what config.json calls it, where that is not `gguf`
    # config values this runtime computes with; anything else is refused by name. A missing key is
    # fine.
    only: dict = field(default_factory=lambda: SILU)
    experts: str = ""  # module path in a block of a mixture of experts
    renamed: tuple = ()  # (old, new) parts of names in checkpoints

    @property
    def first(self):
        """Rows of what comes before the blocks, with full names."""
        rows = (TensorRow("token_embd.weight", self.embed, ("vocab", "dim")),)
        return (
            (*rows, TensorRow("position_embd.weight", self.positions, ("ctx", "dim")))
            if self.positions
            else rows
        )

    @property
    def last(self):
        """Rows of what comes after the blocks but the head."""
        rows = (TensorRow("output_norm.weight", self.norm, ("dim",), plus=self.norm_plus),)
        bias = TensorRow("output_norm.bias", f"{self.norm.removesuffix('weight')}bias", ("dim",))
        return (*rows, bias) if self.layer_norm else rows

    def sliding(self, block, full_every):
        """Whether this block's attention sees a window, where the model has one.

        full_every: the model's, mostly the architecture's.
        """
        return not full_every or (block + 1) % full_every != 0

    def saved_name(self, name):
        """What checkpoints call the tensor `name` of a Source."""
        for old, new in self.renamed:
            name = name.replace(new, old)
        return name

    def turned(self, block):
        """Whether this block turns Q and K by their positions."""
        return bool(self.rope) and (
            not self.unturned_every or (block + 1) % self.unturned_every != 0
        )


def gguf_name(block, row):
    """GGUF tensor name of a block's row."""
    return f"blk.{block}.{row.gguf}"
