"""`Model`, which `gwq_export.load` returns: prompts in, text out as it is generated."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from gwq_export.errors import GwqError, about
from gwq_export.format.reader import Reader
from gwq_export.native.cuda import pool_of
from gwq_export.native.library import Pool
from gwq_export.runtime.decoding import Decoder, Guesser
from gwq_export.runtime.draft import Drafter, open_draft
from gwq_export.runtime.lookup import Lookup
from gwq_export.runtime.sampling import Sampling, StopStrings
from gwq_export.runtime.session import Session
from gwq_export.runtime.weights import Weights

if TYPE_CHECKING:
    from gwq_export.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("gwq_export")


class Model:
    """A GGUF file ready for inference. Its methods may be called from several threads at once.

    file: a path or an open Reader. device: "cpu", or "cuda" ("cuda:N"), a GPU. threads: None for
    all CPUs. ctx: positions of a context, at most and by default the model's. cache: type of KV
    caches, as for `gwq_export.runtime.weights.Weights`. lookup: whether likely next tokens are
    computed ahead where the text repeats itself, which changes the time it takes, not the text.
    draft: a smaller model with the same vocabulary, which likewise guesses next tokens. gpu_layers:
    how many layers run on the device, None: as many as fit its memory. Raises GwqError.
    """

    def __init__(
        self,
        file: str | PathLike[str] | Reader,
        device: str = "cpu",
        threads: int | None = None,
        ctx: int | None = None,
        cache: str | None = None,
        lookup: bool = True,
        draft: str | PathLike[str] | Reader | None = None,
        gpu_layers: int | None = None,
    ) -> None:
        reader = file if isinstance(file, Reader) else Reader(file)
        if draft is not None:
            draft = open_draft(draft, reader)
        self.lookup = lookup
        self.draft: Weights | None = None
        pool: Pool | None = None
        reserve = 0  # bytes of a device's memory that guessing will take
        if draft is not None:
            pool = pool_of(device, threads)
            with about("--draft"):
                self.draft = Weights(draft, pool, cache, ctx=ctx)
            if self.draft.placement:
                reserve = self.draft.placement.work
        self.weights = Weights(reader, pool or threads, cache, device, gpu_layers, ctx, reserve)
        if self.weights.where:
            log.info("%s", self.weights.where)
        self.config = self.weights.config
        if ctx is not None and ctx < 1:
            raise GwqError(f"--ctx {ctx}: give at least 1")
        if ctx and ctx > self.config.ctx:
            log.warning(
                "--ctx %d is longer than the model's context: cut to %d", ctx, self.config.ctx
            )
        self.ctx = min(ctx or self.config.ctx, self.config.ctx)

    @property
    def shorter(self) -> str:
        """What to do about a text that is too long for the context."""
        return "shorten it" + (" or use a larger --ctx" if self.ctx < self.config.ctx else "")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer, built when it is first asked for."""
        from gwq_export.tokenizer.tokenizer import Tokenizer  # logits need none

        return Tokenizer(self.weights.reader.metadata)

    def session(self, ctx: int | None = None) -> Session:
        """A fresh KV cache for `ctx` positions, at most and by default the model's."""
        return Session(self.weights, min(ctx or self.ctx, self.ctx))

    def drafter(self, ctx: int | None = None) -> Drafter | None:
        """What guesses by the draft model, if there is one, beside a session of that context."""
        if self.draft is None:
            return None
        return Drafter(self.draft, min(ctx or self.ctx, self.ctx), self.config.vocab)

    def cache_bytes(self, ctx: int) -> int:
        """Bytes of the KV cache of a context of `ctx` positions that is full.

        That of the draft model is counted in.
        """
        drafter = self.drafter(ctx)
        own = Session(self.weights, ctx).cache_bytes
        return own + (drafter.session.cache_bytes if drafter else 0)

    def logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Next-token logits after each of n token ids, float32 (n, vocab). Keeps no state."""
        return self.session(len(tokens)).forward(tokens, keep=len(tokens))

    def prompt_ids(self, prompt: str | Sequence[dict[str, str]], chat: bool = False) -> list[int]:
        """Token ids of a prompt: a text, or a list of {"role", "content"} messages.

        chat: wrap a text in the chat template, if there is one, as a single user message.
        """
        tok = self.tokenizer
        if isinstance(prompt, str):
            if not (chat and tok.chat_template):
                return tok.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        return tok.encode(tok.chat(prompt), bos=False)

    def tokens(
        self,
        session: Session,
        ids: Sequence[int],
        n: int = 128,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        before: Sequence[int] = (),
        stats: dict[str, Any] | None = None,
        halt: Callable[[], bool] = lambda: False,
        drafter: Drafter | None = None,
    ) -> Generator[int, None, None]:
        """Compute `ids` after what the session holds, then yield new token ids.

        Ends at a stop id (which is not yielded), after n tokens (n < 0: no limit), when the context
        is full, or when halt() is true. Does not use the tokenizer.

        before: the ids that the session holds. stats: as in `stream`. drafter: beside the session;
        it keeps what it has read. Raises GwqError without ids.
        """
        if not len(ids):
            raise GwqError("there is nothing to continue: give some text")
        sampling = sampling or Sampling()
        stats = {} if stats is None else stats
        rng = sampling.rng()
        seen = [*before, *ids]
        room = session.ctx - session.pos - len(ids)
        stop = "length" if 0 <= n <= room else "context"
        limit = min(n, room) if n >= 0 else room
        made = 0
        start = time.perf_counter()
        prefilled = start
        decoder: Decoder | None = None
        try:
            batch = session.batch
            for first in range(0, len(ids) if limit else 0, batch):
                if halt():
                    stop, limit = "halt", 0
                    break
                last = first + batch >= len(ids)
                enough = sampling.enough(len(seen))
                rows = session.scores(ids[first : first + batch], int(last), enough)
                if last:
                    logits = rows[0]
            guessers: dict[str, Guesser] = {"lookup": Lookup(seen)} if self.lookup else {}
            if drafter is not None and limit > 2:
                drafter.start(seen, halt)
                guessers["draft"] = drafter
            prefilled = time.perf_counter()
            decoder = Decoder(session, guessers, sampling.enough)
            while made < limit:
                if halt():
                    stop = "halt"
                    break
                token = sampling.pick(logits, rng, seen)
                if token in stop_ids:
                    stop = "token"
                    break
                made += 1
                seen.append(token)
                yield token
                if made < limit:
                    logits = decoder.after(token, limit - made - 1)
        finally:  # also when the caller has seen enough
            now = time.perf_counter()
            if decoder is not None:
                decoder.close()
                guessed, right = decoder.guessed, decoder.right
                stats |= {"guessed": guessed["lookup"], "right": right["lookup"]}
                if drafter is not None:
                    stats |= {"drafted": guessed["draft"], "accepted": right["draft"]}
                    stats["speedup"] = decoder.speedup
            stats |= {
                "prompt_tokens": len(ids),
                "tokens": made,
                "stop": stop,
                "prompt_tps": len(ids) / (prefilled - start) if prefilled > start else 0.0,
                "decode_tps": (made - 1) / (now - prefilled) if made > 1 else 0.0,
            }

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        n: int = 128,
        sampling: Sampling | None = None,
        chat: bool = False,
        stats: dict[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield pieces of text that continue a prompt: a text, messages, or token ids.

        Ends at a stop token, at one of the strings `stop` (which is not part of the text), after n
        tokens (n < 0: no limit) or at the end of the context. chat: as in `prompt_ids`. stats: a
        dict that receives prompt_tokens, tokens, prompt_tps and decode_tps (tokens per second),
        guessed and right (tokens computed ahead by lookup, and those of them that came), with a
        draft model drafted and accepted (the same of its tokens) and speedup (tokens per second, of
        those that passes of one token would have made, by what these took), and stop ("token",
        "string", "length", "context" or "halt").
        """
        stats = {} if stats is None else stats
        ids = self._ids(prompt, chat)
        if not ids:
            raise GwqError("the prompt is empty: give some text with -p")
        if len(ids) >= self.ctx:
            raise GwqError(
                f"the prompt has {len(ids)} tokens, the context holds {self.ctx}: {self.shorter}"
            )
        ctx = self.ctx if n < 0 else len(ids) + n
        tokens = self.tokens(
            self.session(ctx),
            ids,
            n,
            sampling,
            self.tokenizer.stop_ids,
            stats=stats,
            drafter=self.drafter(ctx),
        )
        yield from self.text(tokens, stop, stats)

    def text(
        self,
        tokens: Generator[int, None, None],
        stop: Sequence[str] = (),
        stats: dict[str, Any] | None = None,
    ) -> Iterator[str]:
        """Yield the text of token ids, as `tokens` yields them, in pieces.

        Ends, and closes the generator, at the first of the strings `stop`.
        """
        text = self.tokenizer.stream()
        stops = StopStrings(stop)
        for token in tokens:
            if piece := stops.feed(text.feed(token)):
                yield piece
            if stops.found:
                break
        else:
            if piece := stops.feed(text.flush()) + stops.flush():
                yield piece
        tokens.close()
        if stops.found and stats is not None:
            stats["stop"] = "string"

    def generate(
        self,
        prompt: str | Sequence[dict[str, str]] | Sequence[int],
        n: int = 128,
        temp: float = 0.0,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        seed: int | None = None,
        chat: bool = False,
        stop: Sequence[str] = (),
        **penalty: Any,
    ) -> str:
        """The continuation of a prompt as one string; see `stream` and `Sampling`.

        penalty: repeat_penalty, repeat_last_n.
        """
        sampling = Sampling(temp, top_k, top_p, min_p, seed, **penalty)
        return "".join(self.stream(prompt, n, sampling, chat, stop=stop))

    def _ids(self, prompt: Any, chat: bool) -> list[int]:
        """Token ids of what `stream` takes as a prompt."""
        if not isinstance(prompt, str) and all(isinstance(i, (int, np.integer)) for i in prompt):
            return list(prompt)
        return self.prompt_ids(prompt, chat)
