"""The forward pass of one part of a model: one function of native operations over a KV cache."""

import numpy as np

from gwq_export.native.library import F32, Pointer
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder
from gwq_export.native.spans import Span, floats, span
from gwq_export.runtime.buffers import widths
from gwq_export.runtime.kv_cache import DeviceKVCache, KVCache
from gwq_export.runtime.layers import Attention, ShortConv
from gwq_export.runtime.logits import Wanted
from gwq_export.runtime.states import States
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
        mixers = [layer.mixer for layer in self.part.layers]
        attention = sum(isinstance(mixer, Attention) for mixer in mixers)
        states = None
        if attention < len(mixers):
            states = States(len(mixers) - attention, c.taps, c.dim, pool)
        shape = attention, ctx, self._kv_width, weights.cache_type, states
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
        """Bytes of this machine's memory that KV cache and states take once the context is full."""
        states = self.cache.states
        own = self.cache.nbytes(self._ctx) + (states.nbytes if states else 0)
        return 0 if self._pool.on_device else own

    def run(self, ids: np.ndarray, x: np.ndarray | None, wanted: Wanted) -> None:
        """Run a batch, ids (n,) int32, through the layers; the cache does not count it yet.

        x (n, dim): what the parts before this one made of the ids; None for the first one. wanted:
        takes the logits of the last of them, 0 to n; where the head is in a later part, x (n, dim)
        for the next one.
        """
        n = len(ids)
        self.cache.begin(n)
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
        states = self.cache.states.memory if self.cache.states else []
        buffers = [*self._buffers.values(), *states]
        return [*(floats(b.ptr, b.size) for b in buffers), *caches], tables

    def _compute(self, ops: Ops, ids: np.ndarray, start: int, logits: Pointer, rows: int) -> None:
        """The forward pass of ids (n,) at positions from `start` on, through this part's layers.

        logits (rows, vocab): of the last `rows` of them, if the head is here.
        """
        c = self.config
        w = self.part
        n = len(ids)
        x, h, q = (self._buffers[name].ptr for name in ("x", "h", "q"))
        gate, up = (self._buffers[name].ptr for name in ("gate", "up"))

        # x (n, dim) = embedding of the ids (+ learned positions) (* scale)
        if w.embed:
            ops.embed(w.embed.struct, c.dim, ids, x)
            if w.positions:
                ops.positions(w.positions.struct, c.dim, start, n, h)
                ops.add(x, h, n, c.dim)
            if c.embedding_scale != 1:
                ops.scale(x, n, c.dim, c.embedding_scale)

        caches = iter(self.cache.layers)
        states = iter(self.cache.states.layers if self.cache.states else [])
        for layer in w.layers:
            # of every token what others mix it with goes to the cache or the state
            normed = layer.attn_norm(ops, x, n, h)
            mixer = layer.mixer
            if isinstance(mixer, Attention):
                keys, values, _ = next(caches)
                self._store(ops, mixer, normed, n, start, keys, values)
            else:
                self._convolve(ops, mixer, normed, n, start, next(states), h)
            if w.head and layer is w.layers[-1] and n > MAX_TOKENS:
                # from here on only the tokens whose logits are wanted; a few share what is read
                if not rows:
                    return
                others = n - rows
                q, x = q + others * c.dims["q"], x + others * c.dim
                h = h if isinstance(mixer, Attention) else h + others * c.dim
                start, n = start + others, rows
            if isinstance(mixer, Attention):
                self._attend(ops, mixer, q, n, start, keys, values, h)
                if mixer.gated:  # of the last n tokens
                    gates = self._buffers["gates"].ptr + (len(ids) - n) * c.heads
                    ops.gate(h, gates, n, c.heads, c.head_dim)
            # q (n, dim) = output of what mixes; the queries are not needed any more
            mixer.output(ops, h, n, q)
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

    def _store(
        self,
        ops: Ops,
        mixer: Attention,
        x: Pointer,
        n: int,
        start: int,
        keys: Pointer,
        values: Pointer,
    ) -> None:
        """Queries (n, heads, head_dim) of x (n, dim) to the buffer `q`, keys and values to a cache.

        The tokens' positions are those from `start` on.
        """
        c = self.config
        q, k, v = (self._buffers[name].ptr for name in ("q", "k", "v"))
        mixer.qkv(ops, x, n, q, k, v, *([self._buffers["gates"].ptr] if mixer.gated else []))
        if not c.arch.norms_turned:
            mixer.q_norm(ops, q, n, q)
            mixer.k_norm(ops, k, n, k)
        for rope, turned, heads in ((mixer.rope, q, c.heads), (mixer.key_rope, k, c.kv_heads)):
            if rope:  # turn Q and K by their positions; cos and sin (n, rotated / 2)
                cos, sin = (t.ptr + start * (rope.rotated // 2) for t in self._ropes[rope])
                rotated, style = rope.rotated, self.weights.rope_style
                ops.rope(turned, cos, sin, n, heads, c.head_dim, rotated, style)
        if c.arch.norms_turned:
            mixer.q_norm(ops, q, n, q)
            mixer.k_norm(ops, k, n, k)
        # keys and values (start + n, kv_heads, head_dim) get those of the batch
        width, type = self._kv_width, self.cache.type.id
        ops.cache(k, n * width, type, keys, start * width)
        ops.cache(v, n * width, type, values, start * width)

    def _attend(
        self,
        ops: Ops,
        mixer: Attention,
        q: Pointer,
        n: int,
        start: int,
        keys: Pointer,
        values: Pointer,
        out: Pointer,
    ) -> None:
        """out (n, heads, head_dim) = softmax(scale * q @ keys) @ values."""
        c = self.config
        shape = (c.heads, c.kv_heads, c.head_dim)
        scores = (c.attention_scale, c.attention_softcap)
        ops.attention(
            q, keys, values, self.cache.type.id, n, start, *shape, *scores, mixer.window, out
        )

    def _convolve(
        self,
        ops: Ops,
        mixer: ShortConv,
        x: Pointer,
        n: int,
        start: int,
        state: Pointer,
        out: Pointer,
    ) -> None:
        """out (n, dim) = gated convolution of x (n, dim), which may be out, at `start` and on."""
        assert self.cache.states is not None
        wide, rows, dim = self._buffers["conv"].ptr, self.cache.states.rows, self.config.dim
        mixer.inputs(ops, x, n, wide)
        ops.shortconv(wide, mixer.weight.ptr, state, rows, mixer.taps, n, start, dim, out)

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
