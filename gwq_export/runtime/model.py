"""`Model`, which `gwq_export.load` returns: prompts in, text out as it is generated."""

import logging
import time
from functools import cached_property

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.runtime.sampling import Sampling, StopStrings
from gwq_export.runtime.session import BATCH, Session
from gwq_export.runtime.weights import Weights
from gwq_export.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("gwq_export")


class Model:
    """A GGUF file (path or open Reader) ready for inference.

    Methods may be called from several threads at once. Raises GwqError.
    """

    def __init__(self, file, device="cpu", threads=None, ctx=None, cache=None):
        """cache: as for `gwq_export.runtime.weights.Weights`."""
        if device != "cpu":
            raise GwqError(
                f"--device {device}: this version runs on the CPU only; use --device cpu"
            )
        self.weights = Weights(file, threads, cache)
        self.config = self.weights.config
        if ctx is not None and ctx < 1:
            raise GwqError(f"--ctx {ctx}: give at least 1")
        if ctx and ctx > self.config.ctx:
            log.warning(
                "--ctx %d is longer than the model's context: cut to %d", ctx, self.config.ctx
            )
        self.ctx = min(ctx or self.config.ctx, self.config.ctx)

    @cached_property
    def tokenizer(self):
        return Tokenizer(self.weights.reader.metadata)

    def session(self, ctx=None):
        """A fresh KV cache for `ctx` positions, at most the model's."""
        return Session(self.weights, min(ctx or self.ctx, self.ctx))

    def logits(self, tokens):
        """float32 (n, vocab): next-token logits after each of the n token ids. Keeps no state."""
        return self.session(len(tokens)).forward(tokens, keep=len(tokens))

    def prompt_ids(self, prompt, chat=False):
        """Token ids of a prompt: text, or a list of {"role", "content"} messages; chat wraps text
        as one user message.
        """
        tok = self.tokenizer
        if isinstance(prompt, str) and not (chat and tok.chat_template):
            return tok.encode(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tok.encode(tok.chat(messages), bos=False)

    def tokens(
        self,
        session,
        ids,
        n=128,
        sampling=None,
        stop_ids=(),
        before=(),
        stats=None,
        halt=lambda: False,
    ):
        """Compute `ids` after what the session holds, then yield new token ids until a stop id (not
        yielded), n of them (n < 0: no limit), a full context, or until halt() is true. Makes no use
        of the tokenizer.

        before: the ids that the session holds, for the repeat penalty. stats: as in `stream`.
        """
        sampling, stats = sampling or Sampling(), {} if stats is None else stats
        rng, seen = np.random.default_rng(sampling.seed), [*before, *ids]
        limit = session.ctx - session.pos - len(ids)
        stop, made, start = "length" if 0 <= n <= limit else "context", 0, time.perf_counter()
        limit = min(n, limit) if n >= 0 else limit
        prefilled = start
        try:
            for first in range(0, len(ids) if limit else 0, BATCH):
                if not halt():
                    logits = session.forward(ids[first : first + BATCH])[0]
            prefilled = time.perf_counter()
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
                    logits = session.forward([token])[0]
        finally:  # also when the caller has seen enough
            now = time.perf_counter()
            stats |= {
                "prompt_tokens": len(ids),
                "tokens": made,
                "stop": stop,
                "prompt_tps": len(ids) / (prefilled - start) if limit else 0.0,
                "decode_tps": (made - 1) / (now - prefilled) if made > 1 else 0.0,
            }

    def stream(self, prompt, n=128, sampling=None, chat=False, stats=None, stop=()):
        """Yield pieces of text until a stop token, a stop string, n tokens (n < 0: no limit) or the
        end of the context.

        prompt: text, messages, or a list of token ids. stop: strings that end the text and are not
        part of it. stats: a dict that receives prompt_tokens, tokens, prompt_tps, decode_tps and
        stop ("token", "string", "length", "context" or "halt").
        """
        stats = {} if stats is None else stats
        is_ids = not isinstance(prompt, str) and all(
            isinstance(i, (int, np.integer)) for i in prompt
        )
        ids = list(prompt) if is_ids else self.prompt_ids(prompt, chat)
        if not ids:
            raise GwqError("the prompt is empty: give some text with -p")
        if len(ids) >= self.ctx:
            raise GwqError(
                f"the prompt has {len(ids)} tokens, the context holds {self.ctx}: shorten it or use a larger --ctx"
            )
        session = self.session(self.ctx if n < 0 else len(ids) + n)
        yield from self.text(
            self.tokens(session, ids, n, sampling, self.tokenizer.stop_ids, stats=stats),
            stop,
            stats,
        )

    def text(self, tokens, stop=(), stats=None):
        """Yield the text of token ids (a generator of `tokens`) in pieces, up to the first of the
        strings `stop`.
        """
        text, stops = self.tokenizer.stream(), StopStrings(stop)
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
        prompt,
        n=128,
        temp=0.0,
        top_k=40,
        top_p=0.95,
        min_p=0.0,
        seed=None,
        chat=False,
        stop=(),
        **penalty,
    ):
        """The continuation of a prompt as one string; see `stream` and `Sampling`; penalty:
        repeat_penalty, repeat_last_n.
        """
        return "".join(
            self.stream(
                prompt, n, Sampling(temp, top_k, top_p, min_p, seed, **penalty), chat, stop=stop
            )
        )
