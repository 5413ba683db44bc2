"""A model's hyperparameters, read from GGUF metadata and checked."""

from __future__ import annotations

from dataclasses import dataclass

from gwq_export.arch.keys import File, Keys
from gwq_export.arch.registry import ARCH_BY_GGUF
from gwq_export.arch.rope import Rope, yarn_amplitude
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError, about

MAX_COUNT = 65536  # of heads, blocks and experts, and the size of a head
MAX_CONTEXT = 1 << 31
# divisors of the rope frequencies
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
MAX_TAPS = 32  # of a short convolution: GWQ_MAX_TAPS of gwq.h


@dataclass(frozen=True)
class Config:
    """Hyperparameters as the file's metadata gives them.

    Where it says nothing, those of the architecture.
    """

    arch: Arch
    layers: int
    dim: int
    # width of a feed-forward layer
    ffn: int
    # of a feed-forward layer, 0: it is a dense one
    experts: int
    # by a token
    experts_used: int
    # the weights of a token's experts add up to 1
    experts_normed: bool
    # width of an expert
    expert_ffn: int
    # of the expert of all tokens, where there is one
    shared_ffn: int
    heads: int
    # of blocks with attention
    kv_heads: int
    head_dim: int
    # of each block, "attention" or another of Arch.kinds
    kinds: tuple[str, ...]
    # positions that a short convolution sees, 0: there is none
    taps: int
    vocab: int
    ctx: int
    # of the norms
    eps: float
    # None: learned positions
    rope: Rope | None
    # of blocks with a window
    rope_swa: Rope | None
    # attention window of each block, 0: none
    windows: tuple[int, ...]
    # whether each block turns Q and K
    turned: tuple[bool, ...]
    # attention and feed-forward read the same input
    parallel: bool
    attention_scale: float
    # 0: none, here and below
    attention_softcap: float
    logit_softcap: float
    # logits are multiplied by it
    logit_scale: float
    residual_scale: float
    embedding_scale: float

    @property
    def dims(self) -> dict[str, int]:
        """Sizes by the names of the architecture's tensor tables."""
        q = self.heads * self.head_dim
        kv = self.kv_heads * self.head_dim
        return {
            "dim": self.dim,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "ffn": self.ffn,
            "gate_up": 2 * self.ffn,
            "head": self.head_dim,
            "heads": self.heads,
            "vocab": self.vocab,
            "ctx": self.ctx,
            "experts": self.experts,
            "expert_ffn": self.expert_ffn,
            "shared_ffn": self.shared_ffn,
            "conv_in": 3 * self.dim,
            "taps": self.taps,
        }


def _label(name: object, mixture: bool) -> str:
    return f"{name} with experts" if mixture else f"{name}"


def read_config(reader: File) -> Config:
    """The Config of an open file, a `format.reader.Reader`.

    Raises GwqError for what is missing, out of range or not computed by this runtime.
    """
    with about(reader.path):  # which keeps a value, an array perhaps, to one line
        return _config(reader)


def _config(reader: File) -> Config:
    name = reader.metadata.get("general.architecture")
    experts = reader.metadata.get(f"{name}.expert_count") if isinstance(name, str) else 0
    mixture = isinstance(experts, (int, float)) and bool(experts)
    arch = ARCH_BY_GGUF.get((name, mixture)) if isinstance(name, str) else None
    if arch is None:
        known = ", ".join(_label(*key) for key in ARCH_BY_GGUF)
        raise GwqError(
            f"architecture {_label(repr(name)[:60], mixture)} is not supported; supported: {known}"
        )
    embed = reader.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise GwqError("no matrix token_embd.weight; this is not a language model file")

    keys = Keys(reader, arch.gguf)
    heads = keys.integer("attention.head_count", high=MAX_COUNT)
    dim = keys.integer("embedding_length")
    layers = keys.integer("block_count", high=MAX_COUNT)
    kv_heads, kinds = _kinds(keys, arch, layers, heads)
    head_dim = keys.integer("attention.key_length", dim // heads, high=MAX_COUNT)
    ctx = keys.integer("context_length", high=MAX_CONTEXT)
    value_dim = keys.integer("attention.value_length", head_dim, high=MAX_COUNT)
    if heads % kv_heads or value_dim != head_dim:
        raise GwqError(
            "head counts or sizes that this runtime does not compute; export the model again"
        )
    windows = _windows(keys, arch, layers)
    experts = keys.integer("expert_count", 0, 0, MAX_COUNT)
    ffn = keys.integer("feed_forward_length")
    parallel = keys.flag("use_parallel_residual")
    normed = keys.flag("expert_weights_norm", arch.experts_normed)
    rope, rope_swa = _ropes(keys, arch, head_dim, ctx) if arch.rope else (None, None)
    norm_kind = "" if arch.layer_norm else "rms_"
    logit_scale = keys.number("logit_scale", 1)
    usual_scale = (dim // heads if layers == arch.wide_queries else head_dim) ** -0.5
    return Config(
        arch=arch,
        layers=layers,
        dim=dim,
        ffn=ffn,
        experts=experts,
        experts_used=keys.integer("expert_used_count", None, 1, experts) if experts else 0,
        experts_normed=normed,
        expert_ffn=keys.integer("expert_feed_forward_length", ffn),
        shared_ffn=keys.integer("expert_shared_feed_forward_length", ffn),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kinds=kinds,
        taps=keys.integer("shortconv.l_cache", high=MAX_TAPS) if "conv" in kinds else 0,
        vocab=embed.shape[0],
        ctx=ctx,
        eps=keys.number(f"attention.layer_norm_{norm_kind}epsilon", None, 0, 1),
        rope=rope,
        rope_swa=rope_swa,
        windows=windows,
        turned=tuple(arch.turned(i, windows) for i in range(layers)),
        parallel=arch.parallel and parallel,
        attention_scale=keys.number("attention.scale", 0, 0) or usual_scale,
        attention_softcap=keys.number("attn_logit_softcapping", 0, 0),
        logit_softcap=keys.number("final_logit_softcapping", 0, 0),
        logit_scale=1 / logit_scale if arch.logits_divided else logit_scale,
        residual_scale=keys.number("residual_scale", 1),
        embedding_scale=keys.number("embedding_scale", dim**0.5 if arch.scaled_embedding else 1),
    )


def _kinds(keys: Keys, arch: Arch, layers: int, heads: int) -> tuple[int, tuple[str, ...]]:
    """(key-value heads of the blocks that have attention, the kind of each block)."""
    key = "attention.head_count_kv"
    listed = keys.integers(key, layers, MAX_COUNT) if arch.kinds else None
    if listed is None:
        return keys.integer(key, heads, high=MAX_COUNT), ("attention",) * layers
    counts = {count for count in listed if count} or {heads}
    if len(counts) > 1:
        keys.refuse(key, listed)
    (other,) = {*arch.kinds.values()} - {"attention"}
    return counts.pop(), tuple("attention" if count else other for count in listed)


def _windows(keys: Keys, arch: Arch, layers: int) -> tuple[int, ...]:
    """The window of each block, 0 for none.

    The file has a period, as Arch.full_every is one, or says of each block whether it has a window.
    """
    window = keys.integer("attention.sliding_window", 0, 0, MAX_CONTEXT)
    key = "attention.sliding_window_pattern"
    listed = keys.flags(key, layers)
    if listed is None:
        full_every = keys.integer(key, arch.full_every, 0)
        listed = [arch.sliding(i, full_every) for i in range(layers)]
    return tuple(window if sliding else 0 for sliding in listed)


def _ropes(keys: Keys, arch: Arch, head_dim: int, ctx: int) -> tuple[Rope, Rope]:
    """Rope of blocks without a window, and of blocks with one.

    The latter scale nothing where the architecture gives them a base frequency of their own.
    """
    scaling = keys.file.metadata.get(f"{arch.gguf}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", "linear", "yarn", "longrope"):
        raise GwqError(f"rope scaling {scaling!r} is not supported by this version")
    rotated = keys.integer("rope.dimension_count", head_dim, 2, head_dim)
    base = keys.number("rope.freq_base", 10000.0, 1.1, 1e12)
    if rotated % 2:
        raise GwqError(f"{rotated} rotated values of a head cannot be; export the model again")
    usual_swa_base = arch.defaults.get(arch.swa_base, base)
    swa = Rope(rotated, keys.number("rope.freq_base_swa", usual_swa_base, 1.1, 1e12))
    original = keys.integer("rope.scaling.original_context_length", ctx, high=MAX_CONTEXT)
    factor = 1.0
    if scaling in ("linear", "yarn"):
        factor = keys.number("rope.scaling.factor", 1.0, 1e-3)
    amplitude = keys.number("rope.scaling.attn_factor", 1.0)
    if scaling == "yarn":
        divided = keys.number("rope.scaling.yarn_log_multiplier", 0, 0)
        amplitude *= yarn_amplitude(factor) / yarn_amplitude(factor, divided)
    rope = Rope(
        rotated,
        base,
        factor,
        original,
        yarn=scaling == "yarn",
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        amplitude=amplitude,
        divided=bool(ROPE_TENSORS & {*keys.file.tensors}),
        growth=keys.number("attention.temperature_scale", 0, 0) if arch.queries_grow else 0,
    )
    return rope, swa if arch.swa_rope else rope
