"""Perplexity of a text, and KL divergence and top-1 agreement with a reference model.

The text is tokenized once and cut into evaluation windows of `ctx` tokens without overlap; the tail
is dropped. The protocol says what is scored. Figures compare within one protocol only, and not with
those of sliding windows:

llama.cpp   what llama-perplexity prints: windows of 512 tokens, the first of which is replaced by
            BOS where the tokenizer adds one. The second half is scored, from the prediction of
            token ctx/2 + 1 on.
window      what papers on quantization print: windows of 2048 tokens, every prediction is scored;
            BOS, where there is one, starts the text. For WikiText-2 the papers join the rows of the
            data set with two newlines: give it that text.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.runtime.model import Model
from gwq_export.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("gwq_export")
STEP = 64  # rows of logits that are turned into float64 at once


@dataclass(frozen=True)
class Protocol:
    """How a text is tokenized, and what of a window is scored."""

    ctx: int  # tokens per window unless asked for
    # ctx -> how many predictions at the start of a window are not scored
    skipped: Callable[[int], int]
    # every window starts with BOS in place of its first token, where the tokenizer adds one
    bos: bool
    # names of special tokens in the text are read as such, as transformers' tokenizers do
    special: bool

    def scored(self, ctx: int) -> int:
        """How many predictions of a window are scored: the last ones of ctx - 1."""
        return ctx - 1 - self.skipped(ctx)


PROTOCOLS = {
    "llama.cpp": Protocol(512, lambda ctx: ctx // 2, bos=True, special=False),
    "window": Protocol(2048, lambda ctx: 0, bos=False, special=True),
}
QUANTILES = {
    "kld_median": 0.5,
    "kld_p90": 0.9,
    "kld_p99": 0.99,
    "kld_p999": 0.999,
    "kld_max": 1.0,
}


def windows(
    tokenizer: Tokenizer, text: str, ctx: int, protocol: Protocol = PROTOCOLS["llama.cpp"]
) -> np.ndarray:
    """Cut a text into windows of token ids, int32 (windows, ctx).

    Raises GwqError for a text shorter than one window.
    """
    if ctx < 4:
        raise GwqError(f"--ctx {ctx}: give at least 4")
    ids = np.asarray(tokenizer.encode(text, special=protocol.special), np.int32)
    count = len(ids) // ctx
    if not count:
        raise GwqError(
            f"the text has {len(ids)} tokens, fewer than one window of {ctx}: "
            "give a longer text or a smaller --ctx"
        )
    out = ids[: count * ctx].reshape(count, ctx).copy()
    if protocol.bos and tokenizer.add_bos and tokenizer.bos is not None:
        out[:, 0] = tokenizer.bos
    return out


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits over the last axis, float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean_error(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error) of independent values (n,)."""
    return values.mean(), values.std() / math.sqrt(len(values))


def windows_error(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error over windows) of values (windows, n).

    The tokens of a window are about one thing: taken as independent, they make the error several
    times too small. One window tells nothing of others: its error is that over its tokens.
    """
    count = len(values)
    if count == 1:
        return mean_error(values[0])
    return values.mean(), values.mean(1).std(ddof=1) / math.sqrt(count)


def _finite(logp: np.ndarray, whose: str) -> np.ndarray:
    if not np.isfinite(logp).all():
        raise GwqError(f"{whose} logits are not finite: the file is damaged, or the model was")
    return logp


def _score(logits: np.ndarray, targets: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Score predictions: logits float32 (n, vocab) of the token ids `targets` (n,).

    reference: None, or the reference model's logits, at least as wide. Returns float64 (1, n), the
    negative log-likelihood in nats, or (4, n) with the reference: also its negative log-likelihood,
    the KL divergence in nats, and 1 where both have the same likeliest token.
    """
    columns = []
    for first in range(0, len(logits), STEP):
        part = slice(first, first + STEP)
        logp = _finite(log_softmax(logits[part]), "the model's")
        at = np.arange(len(targets[part])), targets[part]
        rows = [-logp[at]]
        if reference is not None:
            # columns beyond ours are padding of the reference's vocabulary
            logq = _finite(
                log_softmax(reference[part, : logits.shape[1]]), "--against: the reference model's"
            )
            # KL(q || p) = sum q (log q - log p), q: the reference
            kld = (np.exp(logq) * (logq - logp)).sum(-1)
            same = logp.argmax(-1) == logq.argmax(-1)
            rows += [-logq[at], kld, same]
        columns.append(np.array(rows))
    return np.concatenate(columns, axis=1)


def _window_scores(
    mine: Predictor, against: Predictor | None, window: np.ndarray, scored: int
) -> np.ndarray:
    """`_score` of the last `scored` predictions of a window (ctx,) of token ids."""
    targets = window[-scored:]
    references = against and against.logits(window[:-1], scored)
    columns = []
    at = 0
    for logits in mine.logits(window[:-1], scored):
        reference = next(references) if references else None
        if reference is not None and reference.shape[1] < logits.shape[1]:
            raise GwqError(
                "--against: vocabularies differ "
                f"({reference.shape[1]} and {logits.shape[1]} tokens)"
            )
        columns.append(_score(logits, targets[at : at + len(logits)], reference))
        at += len(logits)
    return np.concatenate(columns, axis=1)


def token_scores(
    mine: Predictor,
    rows: np.ndarray,
    scored: int,
    against: Predictor | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> np.ndarray:
    """What `summary` sums up, float64 (1 or 4, windows, scored), of windows (n, ctx) of token ids.

    By token: the negative log-likelihood in nats, and with the reference `against` also its
    negative log-likelihood, the KL divergence from it, and 1 where both have the same likeliest
    token. scored: how many predictions at the end of a window count. Raises GwqError.
    """
    found = []
    for i, window in enumerate(rows):
        found.append(_window_scores(mine, against, window, scored))
        progress("evaluate", i + 1, len(rows))
    return np.stack(found, axis=1)


def evaluate(
    model: Model,
    text: str,
    ctx: int | None = None,
    against: Predictor | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    protocol: str = "llama.cpp",
) -> dict[str, Any]:
    """Score `text`; returns ppl, ppl_error, nll (nats per token), tokens, ctx, windows, protocol.

    ctx: tokens per window (None: the protocol's), cut to the models' contexts. against: a Predictor
    of the reference model; adds kld_mean, kld_error, kld_median, kld_p90, kld_p99, kld_p999,
    kld_max (KL divergence of this model from the reference, nats), top1_agreement and top1_error
    (share of tokens), ppl_against, and ppl_ratio and ppl_ratio_error (ppl / ppl_against). Errors
    are those of `windows_error`; that of the ratio comes from the differences token by token.
    Raises GwqError.
    """
    if protocol not in PROTOCOLS:
        raise GwqError(f"--protocol {protocol}: choose one of {', '.join(PROTOCOLS)}")
    rules = PROTOCOLS[protocol]
    limit = min(model.config.ctx, against.ctx if against else model.config.ctx)
    if (ctx or rules.ctx) > limit:
        asked = f"--ctx {ctx} is" if ctx else f"the protocol's windows of {rules.ctx} tokens are"
        log.warning("%s longer than the model's context: cut to %d", asked, limit)
        ctx = limit
    ctx = rules.ctx if ctx is None else ctx
    rows = windows(model.tokenizer, text, ctx, rules)
    scores = score(runtime_logits(model), rows, rules.scored(ctx), against, progress)
    return scores | {"protocol": protocol}


def score(
    mine: Predictor,
    rows: np.ndarray,
    scored: int,
    against: Predictor | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Score the last `scored` predictions of windows (n, ctx) of token ids by Predictors.

    Returns what `evaluate` does, without protocol.
    """
    return summary(token_scores(mine, rows, scored, against, progress)) | {"ctx": rows.shape[1]}


def summary(scores: np.ndarray) -> dict[str, Any]:
    """The figures that `score` returns, but ctx, of an array that `token_scores` made."""
    nll, *others = scores
    mean, error = windows_error(nll)
    ppl = math.exp(min(mean, 700))
    out = {
        "ppl": ppl,
        "ppl_error": ppl * error,
        "nll": mean,
        "tokens": nll.size,
        "windows": len(nll),
    }
    if others:
        nll_against, kld, same = others
        kld_mean, kld_error = windows_error(kld)
        top1, top1_error = windows_error(same)
        difference, difference_error = windows_error(nll - nll_against)
        ratio = math.exp(min(difference, 700))
        out |= {
            "kld_mean": kld_mean,
            "kld_error": kld_error,
            **{key: np.quantile(kld, q) for key, q in QUANTILES.items()},
            "top1_agreement": top1,
            "top1_error": top1_error,
            "ppl_against": math.exp(min(nll_against.mean(), 700)),
            "ppl_ratio": ratio,
            "ppl_ratio_error": ratio * difference_error,
        }
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in out.items()}
