"""The forward pass of one part of a model: one function of native operations over a KV cache."""

import numpy as np

from gwq_export.native.library import F32, Pointer
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder, Span, floats, span
from gwq_export.runtime.buffers import widths
from gwq_export.runtime.kv_cache import DeviceKVCache, KVCache
from gwq_export.runtime.logits import Wanted
from gwq_export.runtime.weights import Weights


class Forward:
    """Runs the layers of the part-th part of the weights, for up to `ctx` positions.

    It owns their KV cache, the work buffers, and programs: passes of a few tokens, recorded once.
    """

    def __init__(self, weights: Weights, ctx: int, part: int) -> None:
        c = weights.config
        self.config = c
        self.weights = weights
        self.part = weights.parts[part]
        self._pool = pool = self.part.pool
        self._ctx = ctx
        self.ops = Ops(pool)
        self._kv_width = c.dims["kv"]
        shape = len(self.part.layers), ctx, self._kv_width, weights.cache_type
        self.cache = DeviceKVCache(*shape, pool) if pool.on_device else KVCache(*shape)
        self._turned = 0  # positions that there are cosines and sines of
        self._ropes = {
            rope: (pool.floats(0), pool.floats(0))
            for rope in weights.rope_tables(self.part.layers, 0, ctx)
        }
        self._widths = widths(c)
        self._programs: dict[tuple[int, int], tuple[Program, F32]] = {}  # by tokens and logits
        self._tokens = 0  # that the work buffers have room for
        self._grow(1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of this machine's memory that the KV cache takes once the context is full."""
        return 0 if self._pool.on_device else self.cache.nbytes(self._ctx)

    def run(self, ids: np.ndarray, x: np.ndarray | None, wanted: Wanted) -> None:
        """Run a batch, ids (n,) int32, through the layers; the cache does not count it yet.

        x (n, dim): what the parts before this one made of the ids; None for the first one. wanted:
        takes the logits of the last of them, 0 to n; where the head is in a later part, x (n, dim)
        for the next one.
        """
        n = len(ids)
        rows = wanted.rows if self.part.head else 0
        # experts are chosen for one token at a time; several at once share what they read
        if n <= (min(1, MAX_TOKENS) if self.config.experts else MAX_TOKENS):
            program, logits = self.program(n, rows)
            if x is not None:
                self._buffers["x"].put(x)
            program.run(ids, self.cache.pos)
        else:
            self._grow(n)
            if x is not None:
                self._buffers["x"].put(x)
            logits = wanted.room(self._pool) if self.part.head else self._buffers["x"]
            self._compute(self.ops, ids, self.cache.pos, logits.ptr, rows)
        wanted.take(logits)

    def program(self, n: int, rows: int) -> tuple[Program, F32]:
        """The forward pass of n tokens as one call, and the logits (rows, vocab) it writes.

        Without a head: and x (n, dim).
        """
        if (n, rows) not in self._programs:
            recorder, logits = self.recorded(n, rows, self.cache.pos + n)
            self._programs[n, rows] = Program(recorder), logits
        return self._programs[n, rows]

    def recorded(self, n: int, rows: int, positions: int) -> tuple[Recorder, F32]:
        """The operations of a forward pass of n tokens, and what they write as in `program`.

        Of more tokens than a program may have, they are those that `run` calls. They can run until
        the cache or the work buffers grow. positions: that there is room for then.
        """
        self.reserve(positions)
        self._grow(n)
        recorder = Recorder(n, self._pool, apart=n <= MAX_TOKENS)
        logits = self._buffers["x"]
        if self.part.head:
            logits = self._pool.floats((rows, self.config.vocab))
        self._compute(recorder, np.zeros(n, np.int32), 0, logits.ptr, rows)
        return recorder, logits

    @property
    def touched(self) -> tuple[list[Span], list[Span]]:
        """Memory that recorded operations write, beside their own; and tables that they read."""
        tables = [floats(t.ptr, t.size) for pair in self._ropes.values() for t in pair]
        caches = [span(half) for layer in self.cache.layers for half in layer[2]]
        return [*(floats(b.ptr, b.size) for b in self._buffers.values()), *caches], tables

    def _compute(self, ops: Ops, ids: np.ndarray, start: int, logits: Pointer, rows: int) -> None:
        """The forward pass of ids (n,) at positions from `start` on, through this part's layers.

        logits (rows, vocab): of the last `rows` of them, if the head is here.
        """
        c = self.config
        w = self.part
        cache = self.cache
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
        if w.embed:
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
                    rotated, style = rope.rotated, self.weights.rope_style
                    ops.rope(turned, cos, sin, n, heads, c.head_dim, rotated, style)
            if c.arch.norms_turned:
                layer.q_norm(ops, q, n, q)
                layer.k_norm(ops, k, n, k)
            # keys and values (start + n, kv_heads, head_dim) get those of the batch
            ops.cache(k, numbers, type, keys, first)
            ops.cache(v, numbers, type, values, first)
            if w.head and layer is w.layers[-1] and n > MAX_TOKENS:
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
        if w.head and rows:
            last = w.norm(ops, x + (n - rows) * c.dim, rows, h)
            if c.logit_scale != 1:
                ops.scale(last, rows, c.dim, c.logit_scale)
            w.head(ops, last, rows, logits)
            if c.logit_softcap:
                ops.softcap(logits, rows, c.vocab, c.logit_softcap)

    def reserve(self, positions: int) -> None:
        """Make room for so many positions. Raises NoMemory."""
        if positions > self.cache.room:
            self._programs.clear()  # they point into what moves, also if that is cut short
        self.cache.reserve(positions)
        room = self.cache.room
        if room > self._turned:
            more = self.weights.rope_tables(self.part.layers, room, self._ctx, self._turned)
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
            pool = self._pool
            self._buffers = {name: pool.floats((n, width)) for name, width in self._widths.items()}

    def _longer(self, table: F32, rows: np.ndarray) -> F32:
        """A table (n, width) with more rows; an empty one has no width yet."""
        return self._pool.floats(np.concatenate([table.array, rows]) if table.size else rows)
