"""A KV cache and one forward function of native operations, for every architecture."""

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.native.library import F32, pointer
from gwq_export.native.ops import Ops

BATCH = 512  # tokens of a prompt computed at once


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
        self._sizes = {
            "x": c.dim,
            "h": wide,
            "q": wide,
            "k": self.kv,
            "v": self.kv,
            "gate": ffn,
            "up": ffn,
        }
        self._grow(1)

    def _grow(self, n):
        """Work buffers for n tokens at once."""
        if n > self._n:
            self._n = n
            self.buffers = {name: F32((n, size)) for name, size in self._sizes.items()}

    def forward(self, tokens, keep=1):
        """Run tokens (ints) after what the cache holds; float32 logits (keep, vocab) of the last
        `keep` of them.

        Raises GwqError when the context is full or an id is out of range.
        """
        ids = np.asarray(tokens)
        n = len(ids) if ids.ndim == 1 else 0
        if not n or self.pos + n > self.ctx:
            raise GwqError(
                f"{self.pos} + {n} tokens do not fit the context of {self.ctx}: use a larger --ctx or a shorter text"
            )
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.config.vocab:
            raise GwqError(
                f"a token id is not an integer in 0..{self.config.vocab - 1}: the tokenizer does not belong to this model"
            )
        ids = np.ascontiguousarray(ids, np.int32)
        out = np.empty((keep, self.config.vocab), np.float32)
        for first in range(0, n, BATCH):
            last = min(n, first + BATCH)
            wanted = max(first, n - keep)  # the first token of this batch whose logits are kept
            self._forward(ids[first:last], out[wanted - (n - keep) : max(0, last - (n - keep))])
        return out

    def _forward(self, ids, out):
        """One batch: ids (n,) int32; out (m, vocab) takes the logits of the last m of them, m may
        be 0.
        """
        n, start, c, w, ops, type = (
            len(ids),
            self.pos,
            self.config,
            self.weights,
            self.ops,
            self.cache_type.id,
        )
        self._grow(n)
        x, h, q, k, v, gate, up = (self.buffers[name].ptr for name in self._sizes)
        ropes = {
            rope: [t.ptr + start * (rope.rotated // 2) for t in tables]
            for rope, tables in self.ropes.items()
        }
        ops.embed(w.embed.struct, c.dim, ids, x)
        if w.positions:
            ops.embed(w.positions.struct, c.dim, np.arange(start, start + n, dtype=np.int32), h)
            ops.add(x, h, n, c.dim)
        if c.embedding_scale != 1:
            ops.scale(x, n, c.dim, c.embedding_scale)
        for layer, (keys, values) in zip(w.layers, self.cache, strict=True):
            layer.qkv(ops, layer.attn_norm(ops, x, n, h), n, q, k, v)
            layer.q_norm(ops, q, n, q)
            layer.k_norm(ops, k, n, k)
            if layer.rope:
                ops.rope(
                    q, *ropes[layer.rope], n, c.heads, c.head_dim, layer.rope.rotated, w.rope_style
                )
                ops.rope(
                    k,
                    *ropes[layer.rope],
                    n,
                    c.kv_heads,
                    c.head_dim,
                    layer.rope.rotated,
                    w.rope_style,
                )
            ops.cache(k, n * self.kv, type, keys, start * self.kv)
            ops.cache(v, n * self.kv, type, values, start * self.kv)
            ops.attention(
                q,
                keys,
                values,
                type,
                n,
                start,
                c.heads,
                c.kv_heads,
                c.head_dim,
                c.attention_scale,
                c.attention_softcap,
                layer.window,
                h,
            )
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
