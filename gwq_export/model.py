"""A decoder-only language model over a GGUF file: weights, KV cache and one forward function of native ops.

Which tensors a block has is read from the architecture's table; what is not there leaves its input as it is. Weights are
used where the file is mapped. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gwq_export import GwqError
from gwq_export.config import read_config
from gwq_export.container import Reader
from gwq_export.experts import Experts
from gwq_export.format import TYPES
from gwq_export.native import CACHE, F32, NULL, Linear, Matrix, Ops, Pool, Split, lib, pointer
from gwq_export.rope import Rope

BATCH = 512  # tokens of a prompt computed at once


class Norm:
    """RMSNorm, or LayerNorm with a bias, of x (n, repeat, size of the weight)."""

    def __init__(self, weight, bias, eps, repeat=1):
        self.weight, self.bias, self.eps, self.size, self.repeat = weight, bias, eps, weight.array.size, repeat

    def __call__(self, ops, x, n, out):
        """Pointer to the result, which is `out`; out may be x."""
        if self.bias:
            ops.layernorm(x, self.weight.ptr, self.bias.ptr, self.eps, n * self.repeat, self.size, out)
        else:
            ops.rmsnorm(x, self.weight.ptr, self.eps, n * self.repeat, self.size, out)
        return out


def unchanged(ops, x, n, out):
    """In the place of a Norm that the architecture does not have: the result is x itself."""
    return x


class FeedForward:
    """down(activation(gate) * up), or down(activation(up)) without a gate. inputs: makes (gate, up) or (up,)."""

    def __init__(self, inputs, gated, down, activation):
        self.inputs, self.gated, self.down, self.activation = inputs, gated, down, activation

    def __call__(self, ops, x, n, gate, up, out):
        """x (n, dim) to out (n, dim); gate and up (n, ffn) are work space."""
        self.inputs(ops, x, n, *((gate, up) if self.gated else (gate,)))
        ops.activate(gate, up if self.gated else NULL, n, self.down.cols, self.activation)
        self.down(ops, gate, n, out)


@dataclass
class Layer:
    """One decoder block."""

    attn_norm: Callable
    qkv: Callable
    q_norm: Callable
    k_norm: Callable
    attn_output: Linear
    attn_post_norm: Callable
    ffn_norm: Callable
    ffn: Callable
    ffn_post_norm: Callable
    window: int  # how many positions attention sees, 0: all
    rope: Rope | None


class Weights:
    """All tensors of a model, checked against its config. Raises GwqError. Safe to share between threads."""

    def __init__(self, file, threads=None, cache=None):
        """file: a path, or a Reader that is open. cache: type of KV caches (native.CACHE); None: f16, or f32 beside float32 matrices."""
        self.reader = file if isinstance(file, Reader) else Reader(file)
        c = self.config = read_config(self.reader)
        lib()
        self.pool = Pool(threads)
        outer = {row.gguf: row for row in (*c.arch.first, *c.arch.last)}
        self.embed = self._matrix("token_embd.weight", (c.vocab, c.dim))
        self.positions = "position_embd.weight" in outer and self._matrix("position_embd.weight", (c.ctx, c.dim))
        self.norm = self._norm(outer, "", "output_norm", c.dim)
        tied = "output.weight" not in self.reader.tensors
        self.head = Linear([self.embed if tied else self._matrix("output.weight", (c.vocab, c.dim))])
        self.layers = [self._layer(i) for i in range(c.layers)]
        # FP16 halves what attention reads; beside float32 matrices it would be the coarsest number of all
        exact = all(t.type.name == "f32" for t in self.reader.tensors.values())
        if cache not in (None, *CACHE):
            raise GwqError(f"a KV cache of type {cache} is not known: choose from {', '.join(CACHE)}")
        self.cache_type = TYPES[cache or ("f32" if exact else "f16")]
        if c.head_dim % self.cache_type.unit:
            raise GwqError(f"a KV cache of type {cache} needs heads of whole {self.cache_type.unit}s, not {c.head_dim}: choose f16")
        self.rope_style = lib().GWQ_ROPE_PAIRS if c.arch.rope == "pairs" else lib().GWQ_ROPE_HALVES
        pairs = c.rope.rotated // 2 if c.rope else 0
        names = ("rope_freqs", "rope_factors_short", "rope_factors_long")
        freqs, short, long = (self._vector(f"{name}.weight", pairs, optional=True) for name in names)
        self._divisors = {False: short or freqs, True: long or freqs}  # of the frequencies, by whether the context is a long one

    def _layer(self, i):
        c, rows, at = self.config, {row.gguf: row for row in self.config.arch.block}, f"blk.{i}."
        dims = c.dims

        def norm(name, width=c.dim):
            return self._norm(rows, at, name, width)

        def linear(*names):
            shapes = [tuple(dims[d] for d in rows[f"{name}.weight"].shape) for name in names]
            matrices = [self._matrix(f"{at}{name}.weight", shape) for name, shape in zip(names, shapes, strict=True)]
            return matrices, [self._vector(f"{at}{name}.bias", s[0], optional=True) for name, s in zip(names, shapes, strict=True)]

        def split(name, *widths):
            (matrix,), (bias,) = linear(name)
            return Split(matrix, widths, bias)

        if "attn_qkv.weight" in rows:
            qkv = split("attn_qkv", dims["q"], dims["kv"], dims["kv"])
        else:
            qkv = Linear(*linear("attn_q", "attn_k", "attn_v"))
        activation = getattr(lib(), f"GWQ_{c.arch.activation.upper()}")
        if c.experts:
            shapes = {name: tuple(dims[d] for d in rows[name].shape) for name in rows if "_exps" in name}
            gate, up, down = (self._matrices(at + name, shape) for name, shape in shapes.items())
            inputs, outputs = [Linear(pair) for pair in zip(gate, up, strict=True)], [Linear([m]) for m in down]
            ffn = Experts(Linear(*linear("ffn_gate_inp")), inputs, outputs, c.experts_used, c.experts_normed, activation)
        else:
            fused = rows["ffn_up.weight"].shape[0] == "gate_up"
            gated = fused or "ffn_gate.weight" in rows
            if fused:
                inputs = split("ffn_up", c.ffn, c.ffn)
            else:
                inputs = Linear(*linear("ffn_gate", "ffn_up")) if gated else Linear(*linear("ffn_up"))
            ffn = FeedForward(inputs, gated, Linear(*linear("ffn_down")), activation)
        return Layer(
            attn_norm=norm("attn_norm"),
            qkv=qkv,
            q_norm=norm("attn_q_norm", dims["q"]),
            k_norm=norm("attn_k_norm", dims["kv"]),
            attn_output=Linear(*linear("attn_output")),
            attn_post_norm=norm("post_attention_norm"),
            ffn_norm=norm("ffn_norm"),
            ffn=ffn,
            ffn_post_norm=norm("post_ffw_norm"),
            window=c.windows[i],
            rope=(c.rope_swa if c.windows[i] else c.rope) if c.arch.turned(i) else None,
        )

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

    def _matrix(self, name, shape):
        return self._matrices(name, shape)[0]

    def _matrices(self, name, shape):
        """Those of a tensor: one, or one for each expert."""
        return [Matrix(t.name, t.type, t.shape, t.data, t.outliers) for t in self._tensor(name, shape).matrices()]

    def _norm(self, rows, at, name, width):
        """The norm `at`+name of activations of this width; rows: {name: row} of the table that may have it."""
        row = rows.get(f"{name}.weight")
        size = row and self.config.dims[row.shape[0]]
        weight = row and self._vector(f"{at}{name}.weight", size, row.optional)
        if not weight:
            return unchanged
        bias = f"{name}.bias" in rows and self._vector(f"{at}{name}.bias", size)
        return Norm(weight, bias, self.config.eps, width // size)

    def rope_tables(self, positions):
        """{Rope: (cos, sin)}, float32 (positions, rotated / 2) each, for a context of so many positions."""
        c, found = self.config, {}
        for rope in {layer.rope for layer in self.layers} - {None}:
            divisors = self._divisors[positions > rope.original] if rope == c.rope else None
            found[rope] = tuple(F32(t) for t in rope.table(positions, divisors.array if divisors else None))
        return found


class Session:
    """A KV cache for up to `ctx` positions over shared Weights. One Python thread at a time."""

    def __init__(self, weights, ctx):
        c = self.config = weights.config
        self.weights, self.ctx, self.pos, self.ops = weights, ctx, 0, Ops(weights.pool)
        self.q, self.kv = c.dims["q"], c.dims["kv"]
        self.cache_type = weights.cache_type
        # K and V of every position; pages not used yet cost nothing
        self._cache = np.zeros((c.layers, 2, ctx, self.cache_type.nbytes(1, self.kv)), np.uint8)
        self.cache = [[pointer(part, "void *") for part in layer] for layer in self._cache]
        self.ropes = weights.rope_tables(ctx)
        self._n = 0
        wide, ffn = max(c.dim, self.q), c.expert_ffn if c.experts else c.ffn
        self._sizes = {"x": c.dim, "h": wide, "q": wide, "k": self.kv, "v": self.kv, "gate": ffn, "up": ffn}
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
        n, start, c, w, ops, type = len(ids), self.pos, self.config, self.weights, self.ops, self.cache_type.id
        self._grow(n)
        x, h, q, k, v, gate, up = (self.buffers[name].ptr for name in self._sizes)
        ropes = {rope: [t.ptr + start * (rope.rotated // 2) for t in tables] for rope, tables in self.ropes.items()}
        ops.embed(w.embed, ids, x)
        if w.positions:
            ops.embed(w.positions, np.arange(start, start + n, dtype=np.int32), h)
            ops.add(x, h, n, c.dim)
        if c.embedding_scale != 1:
            ops.scale(x, n, c.dim, c.embedding_scale)
        for layer, (keys, values) in zip(w.layers, self.cache, strict=True):
            layer.qkv(ops, layer.attn_norm(ops, x, n, h), n, q, k, v)
            layer.q_norm(ops, q, n, q)
            layer.k_norm(ops, k, n, k)
            if layer.rope:
                ops.rope(q, *ropes[layer.rope], n, c.heads, c.head_dim, layer.rope.rotated, w.rope_style)
                ops.rope(k, *ropes[layer.rope], n, c.kv_heads, c.head_dim, layer.rope.rotated, w.rope_style)
            ops.cache(k, n * self.kv, type, keys, start * self.kv)
            ops.cache(v, n * self.kv, type, values, start * self.kv)
            ops.attention(q, keys, values, type, n, start, c.heads, c.kv_heads, c.head_dim,
                          c.attention_scale, c.attention_softcap, layer.window, h)  # fmt: skip
            layer.attn_output(ops, h, n, q)  # q is free now
            layer.attn_post_norm(ops, q, n, q)
            if not c.parallel:
                ops.add(x, q, n, c.dim, c.residual_scale)
            layer.ffn(ops, layer.ffn_norm(ops, x, n, h), n, gate, up, h)
            layer.ffn_post_norm(ops, h, n, h)
            if c.parallel:
                ops.add(x, q, n, c.dim, c.residual_scale)
            ops.add(x, h, n, c.dim, c.residual_scale)
        self.pos += n
        if rows := len(out):
            last, logits = w.norm(ops, x + (n - rows) * c.dim, rows, h), pointer(out)
            if c.logit_scale != 1:
                ops.scale(last, rows, c.dim, 1 / c.logit_scale)
            w.head(ops, last, rows, logits)
            if c.logit_softcap:
                ops.softcap(logits, rows, c.vocab, c.logit_softcap)

    def rewind(self, pos=0):
        """Forget everything from position `pos` on."""
        self.pos = min(pos, self.pos)
