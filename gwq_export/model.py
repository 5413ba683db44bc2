"""A decoder-only language model over a GGUF file: config, KV cache and one forward function of native ops.

Weights are used where the file is mapped. Nothing here imports torch.
"""

from dataclasses import dataclass

import numpy as np

from gwq_export import GwqError
from gwq_export.arch import ROPE_BY_GGUF
from gwq_export.container import Reader
from gwq_export.native import F32, Linear, Matrix, Ops, Pool, lib, pointer

BATCH = 512  # tokens of a prompt computed at once


@dataclass(frozen=True)
class Config:
    """Hyperparameters as the file's metadata gives them."""

    arch: str
    layers: int
    dim: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ctx: int
    eps: float
    rope_base: float
    rope_scale: float  # positions are divided by it (linear scaling)
    window: int  # sliding attention window, 0: all


def _config(reader):
    meta = reader.metadata
    arch = meta.get("general.architecture")
    if not isinstance(arch, str) or arch not in ROPE_BY_GGUF:
        raise GwqError(f"{reader.path}: architecture {arch!r} is not supported; supported: {', '.join(ROPE_BY_GGUF)}")

    def get(key, default=None, kind=int, low=1, high=1 << 24):
        value = meta.get(f"{arch}.{key}", default)
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
            raise GwqError(f"{reader.path}: metadata key {arch}.{key} is {value!r}, which cannot be; export the model again")
        return kind(value)

    heads, dim = get("attention.head_count", high=65536), get("embedding_length")
    scaling = meta.get(f"{arch}.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", "linear"):
        raise GwqError(f"{reader.path}: rope scaling {scaling!r} is not supported by this version")
    embed = reader.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise GwqError(f"{reader.path}: no matrix token_embd.weight; this is not a language model file")
    c = Config(
        arch=arch,
        layers=get("block_count", high=65536),
        dim=dim,
        ffn=get("feed_forward_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads, high=65536),
        head_dim=get("attention.key_length", dim // heads, high=65536),
        vocab=embed.shape[0],
        ctx=get("context_length", high=1 << 31),
        eps=get("attention.layer_norm_rms_epsilon", kind=float, low=0, high=1),
        rope_base=get("rope.freq_base", 10000.0, kind=float, low=1, high=1e12),
        rope_scale=get("rope.scaling.factor", 1.0, kind=float, low=1e-3, high=1e6) if scaling == "linear" else 1.0,
        window=get("attention.sliding_window", 0, low=0, high=1 << 31),
    )
    rotated = get("rope.dimension_count", c.head_dim, high=65536)
    value_dim = get("attention.value_length", c.head_dim, high=65536)
    if c.heads % c.kv_heads or rotated != c.head_dim or value_dim != c.head_dim or c.head_dim % 2:
        raise GwqError(f"{reader.path}: head counts or sizes that this runtime does not compute; export the model again")
    return c


@dataclass
class Layer:
    """One decoder block's weights; norms are F32, q_norm and k_norm None where the architecture has none."""

    attn_norm: F32
    qkv: Linear
    q_norm: F32 | None
    k_norm: F32 | None
    attn_output: Linear
    ffn_norm: F32
    gate_up: Linear
    ffn_down: Linear


class Weights:
    """All tensors of a model, checked against its config. Raises GwqError. Safe to share between threads."""

    def __init__(self, file, threads=None):
        """file: a path, or a Reader that is open."""
        self.reader = file if isinstance(file, Reader) else Reader(file)
        c = self.config = _config(self.reader)
        lib()
        self.pool = Pool(threads)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.embed = self._matrix("token_embd", c.vocab, c.dim)
        self.norm = self._vector("output_norm.weight", c.dim)
        tied = "output.weight" not in self.reader.tensors
        self.head = Linear([self.embed]) if tied else self._linear([("output", c.vocab)], c.dim)
        self.layers = [
            Layer(
                attn_norm=self._vector(f"blk.{i}.attn_norm.weight", c.dim),
                qkv=self._linear([(f"blk.{i}.attn_q", q), (f"blk.{i}.attn_k", kv), (f"blk.{i}.attn_v", kv)], c.dim),
                q_norm=self._vector(f"blk.{i}.attn_q_norm.weight", c.head_dim, optional=True),
                k_norm=self._vector(f"blk.{i}.attn_k_norm.weight", c.head_dim, optional=True),
                attn_output=self._linear([(f"blk.{i}.attn_output", c.dim)], q),
                ffn_norm=self._vector(f"blk.{i}.ffn_norm.weight", c.dim),
                gate_up=self._linear([(f"blk.{i}.ffn_gate", c.ffn), (f"blk.{i}.ffn_up", c.ffn)], c.dim),
                ffn_down=self._linear([(f"blk.{i}.ffn_down", c.dim)], c.ffn),
            )
            for i in range(c.layers)
        ]
        factors = self._vector("rope_freqs.weight", c.head_dim // 2, optional=True)
        frequency = c.rope_base ** (-np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim) / c.rope_scale
        self.frequency = frequency / factors.array if factors else frequency  # (head_dim / 2,) radians per position
        style = ROPE_BY_GGUF[c.arch]
        self.rope_style = {"pairs": lib().GWQ_ROPE_PAIRS, "halves": lib().GWQ_ROPE_HALVES}[style]

    def _tensor(self, name, shape, optional=False):
        tensor = self.reader.tensors.get(name)
        if tensor is None:
            if optional:
                return None
            raise GwqError(f"{self.reader.path}: tensor {name} is missing; export the model again")
        if tensor.shape != shape:
            raise GwqError(f"{self.reader.path}: tensor {name} has shape {tensor.shape}, expected {shape}; export the model again")
        return tensor

    def _vector(self, name, size, optional=False):
        tensor = self._tensor(name, (size,), optional)
        return tensor and F32(tensor.dequantize())

    def _matrix(self, name, rows, cols):
        t = self._tensor(f"{name}.weight", (rows, cols))
        return Matrix(t.name, t.type, t.shape, t.data, t.outliers)

    def _linear(self, outputs, cols):
        matrices = [self._matrix(name, rows, cols) for name, rows in outputs]
        biases = [self._vector(f"{name}.bias", rows, optional=True) for name, rows in outputs]
        return Linear(matrices, biases)

    def rope_table(self, positions):
        """cos and sin, float32 (positions, head_dim / 2)."""
        angle = np.outer(np.arange(positions, dtype=np.float64), self.frequency)
        return F32(np.cos(angle)), F32(np.sin(angle))


class Session:
    """A KV cache for up to `ctx` positions over shared Weights. One Python thread at a time."""

    def __init__(self, weights, ctx):
        c = self.config = weights.config
        self.weights, self.ctx, self.pos, self.ops = weights, ctx, 0, Ops(weights.pool)
        self.kv = c.kv_heads * c.head_dim
        self.cache = [(F32((ctx, self.kv)), F32((ctx, self.kv))) for _ in range(c.layers)]  # K and V of each layer
        self.cos, self.sin = weights.rope_table(ctx)
        self._n = 0
        self._sizes = {"x": c.dim, "h": max(c.dim, c.heads * c.head_dim), "q": max(c.dim, c.heads * c.head_dim), "gate": c.ffn, "up": c.ffn}
        self._grow(1)

    def _grow(self, n):
        """Work buffers for n tokens at once."""
        if n > self._n:
            self._n = n
            self.buffers = {name: F32((n, size)) for name, size in self._sizes.items()}

    def forward(self, tokens, keep=1):
        """Run tokens (ints) after what the cache holds; float32 logits (keep, vocab) of the last `keep` of them.

        Raises GwqError when the context is full or an id is out of range.
        """
        ids = np.asarray(tokens)
        n = len(ids) if ids.ndim == 1 else 0
        if not n or self.pos + n > self.ctx:
            raise GwqError(f"{self.pos} + {n} tokens do not fit the context of {self.ctx}: use a larger --ctx or a shorter text")
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.config.vocab:
            raise GwqError(f"a token id is not an integer in 0..{self.config.vocab - 1}: the tokenizer does not belong to this model")
        ids = np.ascontiguousarray(ids, np.int32)
        out = np.empty((keep, self.config.vocab), np.float32)
        for first in range(0, n, BATCH):
            last = min(n, first + BATCH)
            wanted = max(first, n - keep)  # the first token of this batch whose logits are kept
            self._forward(ids[first:last], out[wanted - (n - keep) : max(0, last - (n - keep))])
        return out

    def _forward(self, ids, out):
        """One batch: ids (n,) int32; out (m, vocab) takes the logits of the last m of them, m may be 0."""
        n, start, c, w, ops = len(ids), self.pos, self.config, self.weights, self.ops
        self._grow(n)
        x, h, q, gate, up = (self.buffers[name].ptr for name in self._sizes)
        cos, sin = (t.ptr + start * (c.head_dim // 2) for t in (self.cos, self.sin))
        scale = c.head_dim**-0.5
        ops.embed(w.embed, ids, x)
        for layer, (keys, values) in zip(w.layers, self.cache, strict=True):
            k, v = keys.ptr + start * self.kv, values.ptr + start * self.kv  # where these tokens' K and V are kept
            ops.rmsnorm(x, layer.attn_norm.ptr, c.eps, n, c.dim, h)
            layer.qkv(ops, h, n, q, k, v)
            if layer.q_norm:
                ops.rmsnorm(q, layer.q_norm.ptr, c.eps, n * c.heads, c.head_dim, q)
                ops.rmsnorm(k, layer.k_norm.ptr, c.eps, n * c.kv_heads, c.head_dim, k)
            ops.rope(q, cos, sin, n, c.heads, c.head_dim, w.rope_style)
            ops.rope(k, cos, sin, n, c.kv_heads, c.head_dim, w.rope_style)
            ops.attention(q, keys.ptr, values.ptr, n, start, c.heads, c.kv_heads, c.head_dim, scale, 0.0, c.window, h)
            layer.attn_output(ops, h, n, q)  # q is free now
            ops.add(x, q, n, c.dim)
            ops.rmsnorm(x, layer.ffn_norm.ptr, c.eps, n, c.dim, h)
            layer.gate_up(ops, h, n, gate, up)
            ops.silu_mul(gate, up, n, c.ffn)
            layer.ffn_down(ops, gate, n, h)
            ops.add(x, h, n, c.dim)
        self.pos += n
        if rows := len(out):
            ops.rmsnorm(x + (n - rows) * c.dim, w.norm.ptr, c.eps, rows, c.dim, h)
            w.head(ops, h, rows, pointer(out))

    def rewind(self, pos=0):
        """Forget everything from position `pos` on."""
        self.pos = min(pos, self.pos)
