"""One forward function of native operations, for every architecture, over a KV cache."""

from collections.abc import Sequence

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.native.library import F32, Pointer
from gwq_export.native.ops import ATTENTION_CUT, Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder
from gwq_export.runtime.kv_cache import DeviceKVCache, KVCache
from gwq_export.runtime.weights import Weights

# Tokens of a prompt computed at once: whole panels of the kernels, and so few that what an
# operation writes is in a cache when the next one reads it. With 512, decoder blocks of a model of
# 1.1 billion weights took 15 % longer.
BATCH = 192


class Session:
    """A KV cache for up to `ctx` positions over shared Weights. One Python thread at a time.

    Its memory grows with the positions that it holds. Raises GwqError when ctx is below 1.
    """

    def __init__(self, weights: Weights, ctx: int) -> None:
        if ctx < 1:
            raise GwqError(f"a context of {ctx} positions holds no text: give at least 1")
        c = weights.config
        self.config = c
        self.weights = weights
        self.ctx = ctx
        self.ops = Ops(weights.pool)
        self.cache_type = weights.cache_type
        self._kv_width = c.dims["kv"]
        pool = weights.pool
        shape = c.layers, ctx, self._kv_width, weights.cache_type
        self._cache = DeviceKVCache(*shape, pool) if pool.on_device else KVCache(*shape)
        self._turned = 0  # positions that there are cosines and sines of
        self._ropes = {
            rope: (pool.floats(0), pool.floats(0)) for rope in weights.rope_tables(0, ctx)
        }
        wide = max(c.dim, c.dims["q"])  # h and q hold activations of either width
        ffn = max(layer.ffn.width for layer in weights.layers)
        self._widths = {
            "x": c.dim,
            "h": wide,
            "q": wide,
            "k": self._kv_width,
            "v": self._kv_width,
            "gate": ffn,
            "up": ffn,
        }
        self._programs: dict[tuple[int, int], tuple[Program, F32]] = {}  # by tokens and logits
        self._tokens = 0  # that the work buffers have room for
        self._grow(1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache once the context is full."""
        return self._cache.nbytes(self.ctx)

    @property
    def pos(self) -> int:
        """How many positions the cache holds."""
        return self._cache.pos

    def rewind(self, pos: int = 0) -> None:
        """Forget everything from position `pos` on. Raises GwqError when it is negative."""
        self._cache.rewind(pos)

    def reuse(self, ids: Sequence[int] | np.ndarray, keep: int = 1) -> int:
        """Rewind to the longest prefix of `ids` that the cache holds; returns its length.

        keep: at least so many of the last ids are left to be computed, for their logits.
        """
        return self._cache.reuse(ids, keep)

    def at_once(self) -> int:
        """How many tokens get the same logits in one call as in one call each, to the bit."""
        cut = ATTENTION_CUT
        while cut <= self.pos:
            cut *= 2
        return min(MAX_TOKENS, cut - self.pos)

    def forward(self, tokens: Sequence[int] | np.ndarray, keep: int = 1) -> np.ndarray:
        """Run token ids (n,) after what the cache holds.

        Returns float32 logits (keep, vocab) of the last `keep` of them, 0 to n. Raises GwqError
        when the context is full, memory is, an id is out of range, or the file has changed.
        """
        ids = np.asarray(tokens)
        n = len(ids) if ids.ndim == 1 else 0
        if not n:
            raise GwqError("there are no tokens to compute: give a sequence of token ids")
        if not 0 <= keep <= n:
            raise GwqError(f"logits of the last {keep} of {n} tokens: give a number from 0 to {n}")
        if self.pos + n > self.ctx:
            raise GwqError(
                f"{self.pos} + {n} tokens do not fit the context of {self.ctx}: shorten the text"
                + (" or use a larger context" if self.ctx < self.config.ctx else "")
            )
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.config.vocab:
            raise GwqError(
                f"a token id is not an integer in 0..{self.config.vocab - 1}: "
                "the tokenizer does not belong to this model"
            )
        self.weights.guard.check()
        ids = np.ascontiguousarray(ids, np.int32)
        self._reserve(self.pos + n)
        out = np.empty((keep, self.config.vocab), np.float32)
        skipped = n - keep  # tokens at the start whose logits nobody wants
        # a device has its experts chosen by programs alone, of one token
        batch = 1 if self.config.experts and self.weights.pool.on_device else BATCH
        for first in range(0, n, batch):
            last = min(n, first + batch)
            self._forward(
                ids[first:last], out[max(first, skipped) - skipped : max(0, last - skipped)]
            )
        self.weights.guard.check()
        return out

    def _forward(self, ids: np.ndarray, out: np.ndarray) -> None:
        """Run one batch: ids (n,) int32; out (m, vocab) takes the logits of the last m, 0 to n."""
        n, rows = len(ids), len(out)
        # experts are chosen for one token at a time; several at once share what they read
        if n <= (min(1, MAX_TOKENS) if self.config.experts else MAX_TOKENS):
            program, logits = self._program(n, rows)
            program.run(ids, self.pos)
            logits.fetch(out)
        else:
            self._grow(n)
            logits = self.weights.pool.output(out)
            self._compute(self.ops, ids, self.pos, logits.ptr, rows)
            logits.fetch(out)
        self._cache.append(ids)

    def token_program(self) -> Program:
        """The forward pass of one token with its logits, until the cache grows."""
        self._reserve(self.pos + 1)
        return self._program(1, 1)[0]

    def _program(self, n: int, rows: int) -> tuple[Program, F32]:
        """The forward pass of n tokens as one call, and the logits (rows, vocab) it writes."""
        if (n, rows) not in self._programs:
            self._grow(n)
            recorder = Recorder(n, self.weights.pool)
            logits = self.weights.pool.floats((rows, self.config.vocab))
            self._compute(recorder, np.zeros(n, np.int32), 0, logits.ptr, rows)
            self._programs[n, rows] = Program(recorder), logits
        return self._programs[n, rows]

    def _compute(self, ops: Ops, ids: np.ndarray, start: int, logits: Pointer, rows: int) -> None:
        """The forward pass of ids (n,) at positions from `start` on.

        logits (rows, vocab): of the last `rows` of them.
        """
        c = self.config
        w = self.weights
        cache = self._cache
        type = cache.type.id
        n = len(ids)
        first = start * self._kv_width  # the batch's first number in K and V of a layer
        numbers = n * self._kv_width
        shape = (c.heads, c.kv_heads, c.head_dim)
        scores = (c.attention_scale, c.attention_softcap)
        x, h, q, k, v, gate, up = (self._buffers[name].ptr for name in self._widths)
        # cos and sin (n, rotated / 2) from position `start` on
        ropes = {
            rope: [table.ptr + start * (rope.rotated // 2) for table in tables]
            for rope, tables in self._ropes.items()
        }

        # x (n, dim) = embedding of the ids (+ learned positions) (* scale)
        ops.embed(w.embed.struct, c.dim, ids, x)
        if w.positions:
            ops.positions(w.positions.struct, c.dim, start, n, h)
            ops.add(x, h, n, c.dim)
        if c.embedding_scale != 1:
            ops.scale(x, n, c.dim, c.embedding_scale)

        for layer, (keys, values, _) in zip(w.layers, cache.layers, strict=True):
            # q (n, heads, head_dim), k and v (n, kv_heads, head_dim) of h (n, dim) = norm(x)
            layer.qkv(ops, layer.attn_norm(ops, x, n, h), n, q, k, v)
            if not c.arch.norms_turned:
                layer.q_norm(ops, q, n, q)
                layer.k_norm(ops, k, n, k)
            # turn Q and K by their positions
            for rope, turned, heads in (
                (layer.rope, q, c.heads),
                (layer.key_rope, k, c.kv_heads),
            ):
                if rope:
                    cos, sin = ropes[rope]
                    ops.rope(turned, cos, sin, n, heads, c.head_dim, rope.rotated, w.rope_style)
            if c.arch.norms_turned:
                layer.q_norm(ops, q, n, q)
                layer.k_norm(ops, k, n, k)
            # keys and values (start + n, kv_heads, head_dim) get those of the batch
            ops.cache(k, numbers, type, keys, first)
            ops.cache(v, numbers, type, values, first)
            if layer is w.layers[-1] and n > MAX_TOKENS:
                # from here on only the tokens whose logits are wanted; a few share what is read
                if not rows:
                    return
                others = n - rows
                q, x = q + others * c.dims["q"], x + others * c.dim
                start, n = start + others, rows
            # h (n, heads, head_dim) = softmax(scale * q @ keys) @ values
            ops.attention(q, keys, values, type, n, start, *shape, *scores, layer.window, h)
            # q (n, dim) = output of attention; the queries are not needed any more
            layer.attn_output(ops, h, n, q)
            layer.attn_post_norm(ops, q, n, q)
            # x += attention; parallel blocks feed both halves with the same x and add afterwards
            if not c.parallel:
                ops.add(x, q, n, c.dim, c.residual_scale)
            # h (n, dim) = feed-forward layer of norm(x)
            layer.ffn(ops, layer.ffn_norm(ops, x, n, h), n, gate, up, h)
            layer.ffn_post_norm(ops, h, n, h)
            if c.parallel:
                ops.add(x, q, n, c.dim, c.residual_scale)
            # x += feed-forward
            ops.add(x, h, n, c.dim, c.residual_scale)
        # logits = head(norm(the last rows of x)) (* scale) (capped)
        if rows:
            last = w.norm(ops, x + (n - rows) * c.dim, rows, h)
            if c.logit_scale != 1:
                ops.scale(last, rows, c.dim, c.logit_scale)
            w.head(ops, last, rows, logits)
            if c.logit_softcap:
                ops.softcap(logits, rows, c.vocab, c.logit_softcap)

    def _reserve(self, positions: int) -> None:
        """Make room for so many positions. Raises NoMemory."""
        if positions > self._cache.room:
            self._programs.clear()  # they point into what moves, also if that is cut short
        self._cache.reserve(positions)
        room = self._cache.room
        if room > self._turned:
            more = self.weights.rope_tables(room, self.ctx, self._turned)
            self._ropes = {
                rope: (
                    self._longer(self._ropes[rope][0], cos),
                    self._longer(self._ropes[rope][1], sin),
                )
                for rope, (cos, sin) in more.items()
            }
            self._turned = room

    def _grow(self, n: int) -> None:
        """Make work buffers, float32 (n, width), for n tokens at once."""
        if n > self._tokens:
            self._tokens = n
            self._programs.clear()  # they point into the buffers
            pool = self.weights.pool
            self._buffers = {name: pool.floats((n, width)) for name, width in self._widths.items()}

    def _longer(self, table: F32, rows: np.ndarray) -> F32:
        """A table (n, width) with more rows; an empty one has no width yet."""
        return self.weights.pool.floats(np.concatenate([table.array, rows]) if table.size else rows)
