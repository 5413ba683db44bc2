"""One forward function of native operations, for every architecture, over a KV cache."""

from collections.abc import Callable, Sequence

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.native.cuda import Cuda
from gwq_export.native.library import F32, Pointer
from gwq_export.native.ops import ATTENTION_CUT, Best, Ops
from gwq_export.native.program import MAX_TOKENS, Program
from gwq_export.native.recorder import Recorder, Span, floats, span
from gwq_export.runtime.buffers import BATCH, widths
from gwq_export.runtime.kv_cache import DeviceKVCache, KVCache
from gwq_export.runtime.logits import Firsts, Scores, Wanted, Whole
from gwq_export.runtime.moe import Experts
from gwq_export.runtime.weights import Weights

MOST_BEST = 512  # logits that a device is asked for, rather than for all


class Session:
    """A KV cache for up to `ctx` positions over shared Weights. One Python thread at a time.

    Its memory grows with the positions that it holds. part: of the weights, from which on it runs
    their layers; those of later parts are a Session's of their own. Raises GwqError when ctx is
    below 1.
    """

    def __init__(self, weights: Weights, ctx: int, part: int = 0) -> None:
        if ctx < 1:
            raise GwqError(f"a context of {ctx} positions holds no text: give at least 1")
        c = weights.config
        self.config = c
        self.weights = weights
        self.part = weights.parts[part]
        last = part + 1 == len(weights.parts)
        self._rest = None if last else Session(weights, ctx, part + 1)
        self.ctx = ctx
        pool = self.part.pool
        self.ops = Ops(pool)
        self.cache_type = weights.cache_type
        self._kv_width = c.dims["kv"]
        shape = len(self.part.layers), ctx, self._kv_width, weights.cache_type
        self._cache = DeviceKVCache(*shape, pool) if pool.on_device else KVCache(*shape)
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
        """Bytes of this machine's memory that the KV cache takes once the context is full.

        What lies on a device is not among them.
        """
        own = 0 if self.part.pool.on_device else self._cache.nbytes(self.ctx)
        return own + (self._rest.cache_bytes if self._rest else 0)

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
        ids = self._checked(tokens, keep)
        out = np.empty((keep, self.config.vocab), np.float32)
        self._batches(ids, keep, lambda first, end: Whole(out[first:end]))
        return out

    def scores(
        self, tokens: Sequence[int] | np.ndarray, keep: int = 1, best: int = 0
    ) -> Sequence[Scores]:
        """As `forward`, of whose logits the `best` largest are enough; 0: they are not.

        On a device only these cross. Raises GwqError where logits there are not finite.
        """
        pool = self.weights.parts[-1].pool
        if not 0 < best <= MOST_BEST or not isinstance(pool, Cuda):
            return list(self.forward(tokens, keep))
        ids = self._checked(tokens, keep)
        vocab = self.config.vocab
        k = min(best, vocab)
        found: list[Best] = []
        self._batches(ids, keep, lambda first, end: Firsts(end - first, vocab, k, pool, found))
        return found

    def _checked(self, tokens: Sequence[int] | np.ndarray, keep: int) -> np.ndarray:
        """int32 ids (n,) of tokens that can be run next. Raises GwqError for others."""
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
        return np.ascontiguousarray(ids, np.int32)

    def _batches(self, ids: np.ndarray, keep: int, wanted: Callable[[int, int], Wanted]) -> None:
        """Run token ids; wanted(first, end): what takes these of the last `keep` ones' logits."""
        n = len(ids)
        self.weights.guard.check()
        self._reserve(self.pos + n)
        skipped = n - keep  # tokens at the start whose logits nobody wants
        batch = self._batch()
        for first in range(0, n, batch):
            last = min(n, first + batch)
            of_kept = max(first, skipped) - skipped, max(0, last - skipped)
            self._forward(ids[first:last], wanted(*of_kept))
        self.weights.guard.check()

    def _batch(self) -> int:
        """How many tokens of a prompt go together."""
        ffns = [layer.ffn for layer in self.part.layers]
        shared = any(isinstance(ffn, Experts) and ffn.shared for ffn in ffns)
        # on a device programs alone know of shared experts, and these of one token
        own = 1 if shared and self.part.pool.on_device else BATCH
        return min(own, self._rest._batch()) if self._rest else own

    def _forward(self, ids: np.ndarray, wanted: Wanted, x: np.ndarray | None = None) -> None:
        """Run one batch: ids (n,) int32; `wanted` takes the logits of the last of them, 0 to n.

        x (n, dim): what the parts before this one made of the ids; None for the first one.
        """
        if self._rest:
            hidden = np.empty((len(ids), self.config.dim), np.float32)
            self._run(ids, None, Whole(hidden))
            self._rest.rewind(self.pos)  # where a pass was cut short behind it
            self._rest._forward(ids, wanted, hidden)
        elif self.part.layers or wanted.rows:
            first = 0 if self.part.layers else len(ids) - wanted.rows
            self._run(ids[first:], None if x is None else x[first:], wanted)
        self._cache.append(ids)

    def _run(self, ids: np.ndarray, x: np.ndarray | None, wanted: Wanted) -> None:
        """Run a batch through the layers of this part.

        x (n, dim) or None, as above. wanted: takes logits, as above, or x (n, dim) for the next
        part.
        """
        n = len(ids)
        rows = wanted.rows if self.part.head else 0
        # experts are chosen for one token at a time; several at once share what they read
        if n <= (min(1, MAX_TOKENS) if self.config.experts else MAX_TOKENS):
            program, logits = self._program(n, rows)
            if x is not None:
                self._buffers["x"].put(x)
            program.run(ids, self.pos)
        else:
            self._grow(n)
            if x is not None:
                self._buffers["x"].put(x)
            logits = wanted.room(self.part.pool) if self.part.head else self._buffers["x"]
            self._compute(self.ops, ids, self.pos, logits.ptr, rows)
        wanted.take(logits)

    def token_programs(self) -> list[Program]:
        """The forward pass of one token with its logits, a program for each part of the weights.

        They are good until the cache grows.
        """
        self._reserve(self.pos + 1)
        rest = self._rest.token_programs() if self._rest else []
        return [self._program(1, 1 if self.part.head else 0)[0], *rest]

    def _program(self, n: int, rows: int) -> tuple[Program, F32]:
        """The forward pass of n tokens as one call, and the logits (rows, vocab) it writes.

        Without a head: and x (n, dim).
        """
        if (n, rows) not in self._programs:
            recorder, logits = self.recorded(n, rows, self.pos + n)
            self._programs[n, rows] = Program(recorder), logits
        return self._programs[n, rows]

    def recorded(self, n: int, rows: int, positions: int) -> tuple[Recorder, F32]:
        """The operations of a forward pass of n tokens, and what they write as in `_program`.

        Of more tokens than a program may have, they are those that `forward` calls. They can run
        until the cache or the work buffers grow. positions: that there is room for then.
        """
        self._reserve(positions)
        self._grow(n)
        recorder = Recorder(n, self.part.pool, apart=n <= MAX_TOKENS)
        logits = self._buffers["x"]
        if self.part.head:
            logits = self.part.pool.floats((rows, self.config.vocab))
        self._compute(recorder, np.zeros(n, np.int32), 0, logits.ptr, rows)
        return recorder, logits

    @property
    def touched(self) -> tuple[list[Span], list[Span]]:
        """Memory that recorded operations write, beside their own; and tables that they read."""
        tables = [floats(t.ptr, t.size) for pair in self._ropes.values() for t in pair]
        caches = [span(half) for layer in self._cache.layers for half in layer[2]]
        return [*(floats(b.ptr, b.size) for b in self._buffers.values()), *caches], tables

    def _compute(self, ops: Ops, ids: np.ndarray, start: int, logits: Pointer, rows: int) -> None:
        """The forward pass of ids (n,) at positions from `start` on, through this part's layers.

        logits (rows, vocab): of the last `rows` of them, if the head is here.
        """
        c = self.config
        w = self.part
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

    def _reserve(self, positions: int) -> None:
        """Make room for so many positions. Raises NoMemory."""
        if self._rest:
            self._rest._reserve(positions)
        if positions > self._cache.room:
            self._programs.clear()  # they point into what moves, also if that is cut short
        self._cache.reserve(positions)
        room = self._cache.room
        if room > self._turned:
            more = self.weights.rope_tables(self.part.layers, room, self.ctx, self._turned)
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
            pool = self.part.pool
            self._buffers = {name: pool.floats((n, width)) for name, width in self._widths.items()}

    def _longer(self, table: F32, rows: np.ndarray) -> F32:
        """A table (n, width) with more rows; an empty one has no width yet."""
        return self.part.pool.floats(np.concatenate([table.array, rows]) if table.size else rows)
