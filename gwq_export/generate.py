"""Text from a model: sampling, streaming and chat. `Model` is what `gwq_export.load` returns."""

import logging
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gwq_export import GwqError
from gwq_export.model import Session, Weights
from gwq_export.tokenizer import Tokenizer

log = logging.getLogger("gwq_export")


@dataclass(frozen=True)
class Sampling:
    """temp 0 is greedy; top_k 0, top_p 1 and min_p 0 switch their filter off. Raises GwqError for impossible values."""

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self):
        if not (self.temp >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise GwqError("sampling: temp and top_k must not be negative, top_p lies in (0, 1], min_p in [0, 1]")
        if self.seed is not None and self.seed < 0:
            raise GwqError(f"--seed {self.seed}: give a number from 0")

    def pick(self, logits, rng):
        """A token id from logits (vocab,). Raises GwqError when they are not finite."""
        if not np.isfinite(logits).all():
            raise GwqError("the model's logits are not finite: the file is damaged (see gwq-info --check), or the model was")
        if self.temp == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        order = order[: self.top_k or None]
        p = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / self.temp)
        p /= p.sum()
        keep = (np.cumsum(p) - p < self.top_p) & (p >= self.min_p * p[0])
        p = np.where(keep, p, 0)
        return int(rng.choice(order, p=p / p.sum()))


class Model:
    """A GGUF file (path or open Reader) ready for inference. Methods may be called from several threads at once. Raises GwqError."""

    def __init__(self, file, device="cpu", threads=None, ctx=None):
        if device != "cpu":
            raise GwqError(f"--device {device}: this version runs on the CPU only; use --device cpu")
        self.weights = Weights(file, threads)
        self.config = self.weights.config
        if ctx is not None and ctx < 1:
            raise GwqError(f"--ctx {ctx}: give at least 1")
        if ctx and ctx > self.config.ctx:
            log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, self.config.ctx)
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
        """Token ids of a prompt: text, or a list of {"role", "content"} messages; chat wraps text as one user message."""
        tok = self.tokenizer
        if isinstance(prompt, str) and not (chat and tok.chat_template):
            return tok.encode(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return tok.encode(tok.chat(messages), bos=False)

    def stream(self, prompt, n=128, sampling=None, chat=False, stats=None):
        """Yield pieces of text until a stop token, n tokens (n < 0: no limit) or the end of the context.

        prompt: text, messages, or a list of token ids. stats: a dict that receives prompt_tokens, tokens, prompt_tps,
        decode_tps and stop ("token", "length" or "context").
        """
        sampling, stats = sampling or Sampling(), {} if stats is None else stats
        is_ids = not isinstance(prompt, str) and all(isinstance(i, (int, np.integer)) for i in prompt)
        ids = list(prompt) if is_ids else self.prompt_ids(prompt, chat)
        if not ids:
            raise GwqError("the prompt is empty: give some text with -p")
        if len(ids) >= self.ctx:
            raise GwqError(f"the prompt has {len(ids)} tokens, the context holds {self.ctx}: shorten it or use a larger --ctx")
        limit = self.ctx - len(ids) if n < 0 else min(n, self.ctx - len(ids))
        session, text, rng = self.session(len(ids) + limit), self.tokenizer.stream(), np.random.default_rng(sampling.seed)
        start = time.perf_counter()
        logits = session.forward(ids)[0] if limit else None
        prefilled = time.perf_counter()
        made, stop = 0, "length" if limit == n else "context"
        while made < limit:
            token = sampling.pick(logits, rng)
            if token in self.tokenizer.stop_ids:
                stop = "token"
                break
            made += 1
            if piece := text.feed(token):
                yield piece
            if made < limit:
                logits = session.forward([token])[0]
        if piece := text.flush():
            yield piece
        now = time.perf_counter()
        stats |= {
            "prompt_tokens": len(ids), "tokens": made, "stop": stop,
            "prompt_tps": len(ids) / (prefilled - start) if limit else 0.0,
            "decode_tps": (made - 1) / (now - prefilled) if made > 1 else 0.0,
        }  # fmt: skip

    def generate(self, prompt, n=128, temp=0.0, top_k=40, top_p=0.95, min_p=0.0, seed=None, chat=False):
        """The continuation of a prompt as one string; see `stream` and `Sampling`."""
        return "".join(self.stream(prompt, n, Sampling(temp, top_k, top_p, min_p, seed), chat))
