"""Perplexity of a text, and KL divergence and top-1 agreement with a reference model.

The text is tokenized once and cut into windows of `ctx` tokens without overlap (the tail is
dropped). What is scored is the protocol's; figures compare within one protocol only, and not with
sliding-window figures:

llama.cpp   what llama-perplexity prints: windows of 512, whose first token is replaced by BOS where the tokenizer adds
            one; the second half is scored, from the prediction of token ctx/2 + 1 on
window      what papers on quantization print: windows of 2048, every prediction in them is scored; BOS, where there is
            one, starts the text. For WikiText-2 they join the rows of the data set with two newlines: give it that text
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.evaluation.predictors import runtime_logits

log = logging.getLogger("gwq_export")
STEP = 64  # rows of logits that are turned into float64 at once


@dataclass(frozen=True)
class Protocol:
    """How a text is tokenized, and what of a window is scored."""

    ctx: int  # tokens per window unless asked for
    skipped: Callable  # ctx -> how many predictions at the start of a window are not scored
    # every window starts with BOS in place of its first token, where the tokenizer adds one
    bos: bool
    # names of special tokens in the text are read as such, like transformers' tokenizers do
    special: bool

    def scored(self, ctx):
        """How many predictions of a window are scored: the last ones of ctx - 1."""
        return ctx - 1 - self.skipped(ctx)


PROTOCOLS = {
    "llama.cpp": Protocol(512, lambda ctx: ctx // 2, bos=True, special=False),
    "window": Protocol(2048, lambda ctx: 0, bos=False, special=True),
}
QUANTILES = {"kld_median": 0.5, "kld_p90": 0.9, "kld_p99": 0.99, "kld_max": 1.0}


def windows(tokenizer, text, ctx, protocol=PROTOCOLS["llama.cpp"]):
    """int32 (windows, ctx). Raises GwqError for a text shorter than one window."""
    if ctx < 4:
        raise GwqError(f"--ctx {ctx}: give at least 4")
    ids = np.asarray(tokenizer.encode(text, special=protocol.special), np.int32)
    count = len(ids) // ctx
    if not count:
        raise GwqError(
            f"the text has {len(ids)} tokens, fewer than one window of {ctx}: give a longer text or a smaller --ctx"
        )
    out = ids[: count * ctx].reshape(count, ctx).copy()
    if protocol.bos and tokenizer.add_bos:
        out[:, 0] = tokenizer.bos
    return out


def log_softmax(logits):
    """float64, over the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def mean_error(values):
    """(mean, its standard error) of independent values (n,)."""
    return values.mean(), values.std() / math.sqrt(len(values))


def _finite(logp, whose):
    if not np.isfinite(logp).all():
        raise GwqError(f"{whose} logits are not finite: the file is damaged, or the model was")
    return logp


def _score(logits, targets, reference):
    """One row per prediction: nll and, with reference logits, nll by the reference, KL divergence
    (nats), same top token.

    logits and reference: float32 (n, vocab), reference None or at least as wide; targets: ids (n,).
    Returns float64 (1 or 4, n).
    """
    columns = []
    for first in range(0, len(logits), STEP):
        part = slice(first, first + STEP)
        logp, at = (
            _finite(log_softmax(logits[part]), "the model's"),
            (np.arange(len(targets[part])), targets[part]),
        )
        rows = [-logp[at]]
        if reference is not None:
            logq = _finite(
                log_softmax(reference[part, : logits.shape[1]]), "--against: the reference model's"
            )
            kld, same = (np.exp(logq) * (logq - logp)).sum(-1), logp.argmax(-1) == logq.argmax(-1)
            rows += [-logq[at], kld, same]
        columns.append(np.array(rows))
    return np.concatenate(columns, axis=1)


def _scores(mine, against, window, scored):
    """`_score` of a window's last `scored` predictions, by Predictors (against may be None)."""
    targets, columns, at = window[-scored:], [], 0
    other = against and against.logits(window[:-1], scored)
    for logits in mine.logits(window[:-1], scored):
        reference = next(other) if against else None
        if against and reference.shape[1] < logits.shape[1]:
            raise GwqError(
                f"--against: vocabularies differ ({reference.shape[1]} and {logits.shape[1]} tokens)"
            )
        columns.append(_score(logits, targets[at : at + len(logits)], reference))
        at += len(logits)
    return np.concatenate(columns, axis=1)


def evaluate(
    model,
    text,
    ctx=None,
    against=None,
    progress=lambda phase, done, total: None,
    protocol="llama.cpp",
):
    """Score `text`; returns {"ppl", "ppl_error", "nll", "tokens", "ctx", "windows", "protocol"},
    nll in nats per token.

    ctx: tokens per window (None: the protocol's), cut to the models' contexts. against: a Predictor
    of the reference model; adds kld_mean, kld_error, kld_median, kld_p90, kld_p99, kld_max (KL
    divergence of this model from the reference, nats), top1_agreement and top1_error (share of
    tokens), ppl_against, and ppl_ratio and ppl_ratio_error (ppl / ppl_against). Errors are standard
    errors over tokens, that of the ratio from the differences token by token. Raises GwqError.
    """
    if protocol not in PROTOCOLS:
        raise GwqError(f"--protocol {protocol}: choose one of {', '.join(PROTOCOLS)}")
    name, protocol = protocol, PROTOCOLS[protocol]
    ctx, limit = (
        protocol.ctx if ctx is None else ctx,
        min(model.config.ctx, against.ctx if against else model.config.ctx),
    )
    if ctx > limit:
        log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, limit)
        ctx = limit
    rows = windows(model.tokenizer, text, ctx, protocol)
    return score(runtime_logits(model), rows, protocol.scored(ctx), against, progress) | {
        "protocol": name
    }


def score(mine, rows, scored, against=None, progress=lambda phase, done, total: None):
    """What `evaluate` returns, of the last `scored` predictions of windows (n, ctx), by Predictors."""
    scores = []
    for i, window in enumerate(rows):
        scores.append(_scores(mine, against, window, scored))
        progress("evaluate", i + 1, len(rows))
    nll, *others = np.concatenate(scores, axis=1)
    mean, error = mean_error(nll)
    ppl = math.exp(min(mean, 700))
    out = {
        "ppl": ppl,
        "ppl_error": ppl * error,
        "nll": mean,
        "tokens": len(nll),
        "ctx": rows.shape[1],
        "windows": len(rows),
    }
    if against:
        nll_against, kld, same = others
        (kld_mean, kld_error), (top1, top1_error) = mean_error(kld), mean_error(same)
        difference, difference_error = mean_error(nll - nll_against)
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
