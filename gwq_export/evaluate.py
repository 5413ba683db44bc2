"""Perplexity and KL divergence on a text, by llama.cpp's protocol.

The text is tokenized once and cut into windows of `ctx` tokens without overlap (the tail is dropped); the first
token of a window is replaced by BOS where the tokenizer adds one; the second half of every window is scored, from
the prediction of token ctx/2 + 1 on. Values compare with llama-perplexity's, not with sliding-window figures.
"""

import logging
import math

import numpy as np

from gwq_export import GwqError

log = logging.getLogger("gwq_export")


def windows(tokenizer, text, ctx):
    """int32 (windows, ctx). Raises GwqError for a text shorter than one window."""
    if ctx < 4:
        raise GwqError(f"--ctx {ctx}: give at least 4")
    ids = np.asarray(tokenizer.encode(text, special=False), np.int32)
    count = len(ids) // ctx
    if not count:
        raise GwqError(f"the text has {len(ids)} tokens, fewer than one window of {ctx}: give a longer text or a smaller --ctx")
    out = ids[: count * ctx].reshape(count, ctx).copy()
    if tokenizer.add_bos:
        out[:, 0] = tokenizer.bos
    return out


def scored(ctx):
    """How many of a window's logits are scored: those that predict tokens ctx/2 + 1 .. ctx - 1."""
    return ctx - 1 - ctx // 2


def log_softmax(logits):
    """float64, over the last axis."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def runtime_logits(model):
    """window (ctx,) -> its scored logits, float32 (scored, vocab), by our runtime."""

    def run(window):
        return model.session(len(window)).forward(window[:-1], keep=scored(len(window)))

    return run


def transformers_logits(folder):
    """The same by transformers in float32, from a Hugging Face folder; needs the export extra."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as e:
        raise GwqError(f'--against a Hugging Face folder needs {e.name}: pip install "gwq-export[export]"') from None
    try:
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, ValueError) as e:
        raise GwqError(f"--against {folder}: transformers cannot load it ({str(e).splitlines()[0]})") from None
    return module_logits(reference)


def module_logits(model):
    """The same by a transformers model in memory."""
    import torch

    @torch.no_grad()
    def run(window):
        ids = torch.from_numpy(window[None, :-1].astype(np.int64))
        return model(input_ids=ids).logits[0, -scored(len(window)) :].float().numpy()

    return run


def evaluate(model, text, ctx=512, against=None, progress=lambda phase, done, total: None):
    """Score `text`; returns {"ppl", "ppl_error", "nll", "tokens", "ctx", "windows"}, nll in nats per token.

    against: as for `score`, which says what it adds.
    """
    if ctx > model.config.ctx:
        log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, model.config.ctx)
        ctx = model.config.ctx
    return score(runtime_logits(model), windows(model.tokenizer, text, ctx), against, progress)


def score(run, rows, against=None, progress=lambda phase, done, total: None):
    """What `evaluate` returns, of windows (n, ctx). run: a function like `runtime_logits`'s result.

    against: such a function for the reference model; adds kld_mean, kld_error, kld_p99 (KL divergence of this model
    from the reference, nats), top1_agreement (share of tokens) and ppl_against. ppl_error and kld_error are standard errors.
    """
    ctx = rows.shape[1]
    nll, nll_against, kld, same = [], [], [], []
    for i, window in enumerate(rows):
        logits, target = run(window), window[-scored(ctx) :]
        logp, at = log_softmax(logits), np.arange(len(target))
        nll.append(-logp[at, target])
        if against:
            reference = against(window)
            if reference.shape[1] < logits.shape[1]:
                raise GwqError(f"--against: vocabularies differ ({reference.shape[1]} and {logits.shape[1]} tokens)")
            logq = log_softmax(reference[:, : logits.shape[1]])
            if not np.isfinite(logq).all():
                raise GwqError("--against: the reference model's logits are not finite: it is damaged")
            nll_against.append(-logq[at, target])
            kld.append((np.exp(logq) * (logq - logp)).sum(-1))
            same.append(logp.argmax(-1) == logq.argmax(-1))
        progress("evaluate", i + 1, len(rows))
    nll = np.concatenate(nll)
    mean, error = nll.mean(), nll.std() / math.sqrt(len(nll))
    if not np.isfinite(mean):
        raise GwqError("the model's logits are not finite: the file is damaged, or the model was")
    ppl = math.exp(min(mean, 700))
    out = {"ppl": ppl, "ppl_error": ppl * error, "nll": mean, "tokens": len(nll), "ctx": ctx, "windows": len(rows)}
    if against:
        kld, same = np.concatenate(kld), np.concatenate(same)
        out |= {
            "kld_mean": kld.mean(), "kld_error": kld.std() / math.sqrt(len(kld)), "kld_p99": np.quantile(kld, 0.99),
            "top1_agreement": same.mean(), "ppl_against": math.exp(np.concatenate(nll_against).mean()),
        }  # fmt: skip
    return {k: v if isinstance(v, int) else float(v) for k, v in out.items()}
