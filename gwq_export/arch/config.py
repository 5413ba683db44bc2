"""A model's hyperparameters, read from GGUF metadata and checked."""

import math
from dataclasses import dataclass

import numpy as np

from gwq_export.arch.registry import ARCH_BY_GGUF
from gwq_export.arch.rope import Rope
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError


@dataclass(frozen=True)
class Config:
    """Hyperparameters as the file's metadata gives them, with the architecture's own where it says
    nothing.
    """

    arch: Arch
    layers: int
    dim: int
    ffn: int  # width of a feed-forward layer
    experts: int  # of a feed-forward layer, 0: it is a dense one
    experts_used: int  # by a token
    experts_normed: bool  # the weights of a token's experts add up to 1
    expert_ffn: int  # width of an expert
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ctx: int
    eps: float
    rope: Rope | None
    rope_swa: Rope | None  # of blocks with a window
    windows: tuple  # of each block, 0: none
    parallel: bool  # attention and feed-forward read the same input
    attention_scale: float
    attention_softcap: float  # 0: none, here and below
    logit_softcap: float
    logit_scale: float  # logits are divided by it
    residual_scale: float
    embedding_scale: float

    @property
    def dims(self):
        """Sizes by the names of the architecture's tensor tables."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "dim": self.dim,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "ffn": self.ffn,
            "gate_up": 2 * self.ffn,
            "head": self.head_dim,
            "vocab": self.vocab,
            "ctx": self.ctx,
            "experts": self.experts,
            "expert_ffn": self.expert_ffn,
        }


def read_config(reader):
    """The Config of an open file.

    Raises GwqError for what is missing, out of range or not computed by this runtime.
    """
    meta = reader.metadata
    name = meta.get("general.architecture")
    mixture = isinstance(name, str) and bool(meta.get(f"{name}.expert_count"))
    arch = ARCH_BY_GGUF.get((name, mixture)) if isinstance(name, str) else None
    if arch is None:
        known = ", ".join(name + " with experts" * mixture for name, mixture in ARCH_BY_GGUF)
        raise GwqError(
            f"{reader.path}: architecture {name!r}{' with experts' * mixture} is not supported; supported: {known}"
        )

    def refuse(key, value):
        raise GwqError(
            f"{reader.path}: metadata key {name}.{key} is {value!r}, which cannot be; export the model again"
        )

    def get(key, default=None, low=1, high=1 << 24, kind=int):
        value = meta.get(f"{name}.{key}", default)
        if (
            isinstance(value, (bool, str))
            or not isinstance(value, (int, float, np.number))
            or not low <= value <= high
        ):
            refuse(key, value)
        return kind(value)

    def number(key, default, low=1e-6, high=1e6):
        return get(key, default, low, high, float)

    def flag(key):
        value = meta.get(f"{name}.{key}", True)
        if not isinstance(value, bool):
            refuse(key, value)
        return value

    embed = reader.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise GwqError(
            f"{reader.path}: no matrix token_embd.weight; this is not a language model file"
        )
    heads, dim, layers = (
        get("attention.head_count", high=65536),
        get("embedding_length"),
        get("block_count", high=65536),
    )
    kv_heads, head = (
        get("attention.head_count_kv", heads, high=65536),
        get("attention.key_length", dim // heads, high=65536),
    )
    ctx = get("context_length", high=1 << 31)
    if heads % kv_heads or get("attention.value_length", head, high=65536) != head:
        raise GwqError(
            f"{reader.path}: head counts or sizes that this runtime does not compute; export the model again"
        )
    window, every = (
        get("attention.sliding_window", 0, 0, 1 << 31),
        get("attention.sliding_window_pattern", arch.full_every, 0),
    )
    experts, ffn = get("expert_count", 0, 0, 65536), get("feed_forward_length")
    parallel, normed = flag("use_parallel_residual"), flag("expert_weights_norm")
    rope, rope_swa = _ropes(reader, arch, head, ctx, get, number) if arch.rope else (None, None)
    return Config(
        arch=arch,
        layers=layers,
        dim=dim,
        ffn=ffn,
        experts=experts,
        experts_used=get("expert_used_count", None, 1, experts) if experts else 0,
        experts_normed=normed,
        expert_ffn=get("expert_feed_forward_length", ffn),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head,
        vocab=embed.shape[0],
        ctx=ctx,
        eps=number(f"attention.layer_norm_{'' if arch.layer_norm else 'rms_'}epsilon", None, 0, 1),
        rope=rope,
        rope_swa=rope_swa,
        windows=tuple(window if arch.sliding(i, every) else 0 for i in range(layers)),
        parallel=arch.parallel and parallel,
        attention_scale=number("attention.scale", 0, 0)
        or (dim // heads if layers == arch.wide_queries else head) ** -0.5,
        attention_softcap=number("attn_logit_softcapping", 0, 0),
        logit_softcap=number("final_logit_softcapping", 0, 0),
        logit_scale=number("logit_scale", 1),
        residual_scale=number("residual_scale", 1),
        embedding_scale=number("embedding_scale", dim**0.5 if arch.scaled_embedding else 1),
    )


def _ropes(reader, arch, head, ctx, get, number):
    """Rope of blocks without a window and with one: these scale nothing where the architecture
    gives them their own base.
    """
    scaling = reader.metadata.get(f"{arch.gguf}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", "linear", "yarn", "longrope"):
        raise GwqError(f"{reader.path}: rope scaling {scaling!r} is not supported by this version")
    rotated, base = (
        get("rope.dimension_count", head, 2, head),
        number("rope.freq_base", 10000.0, 1.1, 1e12),
    )
    if rotated % 2:
        raise GwqError(
            f"{reader.path}: {rotated} rotated values of a head cannot be; export the model again"
        )
    swa = Rope(
        rotated, number("rope.freq_base_swa", arch.defaults.get(arch.swa_base, base), 1.1, 1e12)
    )
    original, factor = get("rope.scaling.original_context_length", ctx, high=1 << 31), 1.0
    if scaling in ("linear", "yarn"):
        factor = number("rope.scaling.factor", 1.0, 1e-3)
    amplitude, yarn = number("rope.scaling.attn_factor", 1.0), scaling == "yarn"
    if yarn and factor > 1:
        amplitude *= 0.1 * math.log(factor) + 1
    fast, slow = (
        number("rope.scaling.yarn_beta_fast", 32.0),
        number("rope.scaling.yarn_beta_slow", 1.0),
    )
    rope = Rope(rotated, base, factor, original, yarn, fast, slow, amplitude)
    return rope, swa if arch.swa_base else rope
