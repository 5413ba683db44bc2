"""Gradients of the next-token cross-entropy with respect to every weight, one decoder block at a
time.

Forward keeps only the hidden states between blocks; backward reloads each block, runs it again on
its kept input and differentiates. Peak memory is that of one block with its gradients, or of
embedding and head with one sample's logits if they are larger, plus (blocks + 1) x samples x ctx x
hidden floats. The result is that of a whole-model backward pass.
"""

import functools

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from gwq_export.calibration.block_model import BlockModel
from gwq_export.calibration.statistics import FACTORS, Tap, Totals
from gwq_export.compute.linalg import add_gram, mirror
from gwq_export.compute.results import Memory
from gwq_export.compute.threads import batches, each
from gwq_export.errors import GwqError


def gradients(
    source,
    calibration,
    statistics,
    ends=(),
    device="cpu",
    progress=lambda phase, done, total: None,
    keep=None,
    finished=lambda name: False,
    last=False,
    sampled_labels=False,
):
    """Yield (Hugging Face name, weight, {statistic: array}) for every linear weight of the decoder.

    Blocks come last to first, each block's tensors in the order of the architecture, experts one by
    one; then those of `ends` (embedding, head). statistics: names from totals.STATISTICS, float32
    of the weight's shape, and FACTORS. `calibration.losses` is filled before the first tensor is
    yielded, `reached` before those of its block. keep: a workdir.Memory for what blocks hand on, or
    a Workdir from which another run of this function goes on; it leaves out the tensors of which
    `finished` is true. last: leave the hidden states after the last block there, as `state.N` for N
    blocks. sampled_labels: gradients of the loss of tokens drawn from the model's own predictions instead of
    the text's. Their second moments are the Fisher information, by which what errors add to the
    loss and the KL divergence go; the text's give the empirical one, which is larger where a model
    is too sure of itself.
    """
    keep, blocks = keep or Memory(), source.layers
    linears = [[n for row, n in source.block(i).items() if row.linear] for i in range(blocks)]
    done = [i for i in range(blocks) if f"upstream.{i}" in keep and all(map(finished, linears[i]))]
    left, ends = (
        min(done, default=blocks),
        [] if all(map(finished, ends)) else ends,
    )  # blocks still to be differentiated
    if left or ends:
        model, tokens = BlockModel(source, device), calibration.tokens.to(device)
        _forward(model, tokens, ends or last, keep, progress, sampled_labels)
    calibration.losses[:] = keep.get("losses")[0].tolist()
    for i in reversed(range(left, blocks)):
        calibration.reached.update(
            zip(_of_experts(source, i), keep.get(f"reached.{i}")[0].tolist(), strict=True)
        )
    progress("backward", blocks - left, blocks)
    for i in reversed(range(left)):
        yield from (
            found
            for found in _block_gradients(model, i, tokens, statistics, keep, calibration.reached)
            if not finished(found[0])
        )
        model.drop(i)
        keep.drop(f"upstream.{i + 1}")
        keep.drop(f"state.{i}")
        progress("backward", blocks - i, blocks)
    if ends:
        last, upstream = (_kept(keep, name, device) for name in (f"state.{blocks}", "upstream.0"))
        found_at_ends = _end_gradients(
            model, tokens, last, upstream, statistics, ends, progress, sampled_labels
        )
        yield from (found for found in found_at_ends if not finished(found[0]))


def _of_experts(source, i):
    """Names of the matrices of block i that are an expert's."""
    return [name for row, name in source.block(i).items() if row.expert is not None]


def _kept(keep, name, device):
    return torch.from_numpy(keep.get(name)[0]).to(device)


def _keep(keep, name, states):
    keep.put(name, states.detach().cpu().numpy())


def _loss(model, ids, hidden, seed):
    """(mean cross-entropy of the tokens after the first, from the output of the last block; what is
    to be differentiated).

    That is the same, or with a seed a sum whose gradient by the logits has the second moment that
    it has for tokens drawn from the predictions p, diag(p) - p p^T for each, but is evener than a
    drawn token's.
    """
    logits = model.logits(ids, hidden)[:-1]
    loss = cross_entropy(logits, ids[0, 1:])
    if seed is None:
        return loss, loss
    p = logits.detach().softmax(-1)
    noise = torch.randn(
        p.shape, generator=torch.Generator(p.device).manual_seed(seed), device=p.device
    )
    drawn = p.sqrt() * noise
    return loss, (logits * (drawn - p * drawn.sum(-1, keepdim=True))).sum() / len(p)


def _forward(model, tokens, last, keep, progress, sampled_labels):
    """Hidden states before every block and after the last as `state.N`, their gradient after the
    last block as `upstream.N`.
    """
    blocks = len(model.blocks)
    before = any(
        f"upstream.{i}" in keep for i in range(blocks + 1)
    )  # gone through by an earlier run
    run = torch.no_grad()(model.run)  # in whichever thread
    with torch.no_grad():
        model.load_ends()
        if before or "state.0" in keep:
            model.embed(tokens[:1])  # blocks need the arguments that come with it
        else:
            _keep(keep, "state.0", torch.cat([model.embed(ids[None]) for ids in tokens]))
        model.drop_ends()
        if before:
            return
        progress("forward", 0, blocks)
        for i in range(blocks):
            if f"state.{i + 1}" not in keep:
                model.load(i)
                _keep(
                    keep,
                    f"state.{i + 1}",
                    torch.cat(
                        each(
                            functools.partial(run, i),
                            _kept(keep, f"state.{i}", model.device).split(1),
                        )
                    ),
                )
                model.drop(i)
            progress("forward", i + 1, blocks)
    upstream = _kept(keep, f"state.{blocks}", model.device).clone()
    model.load_ends()

    def differentiate(s):
        output = upstream[s : s + 1].clone().requires_grad_()
        loss, wanted = _loss(model, tokens[s : s + 1], output, s if sampled_labels else None)
        upstream[s] = torch.autograd.grad(wanted, output)[0]
        return loss.item()

    losses = each(differentiate, range(len(tokens)), model.logits_size(tokens))
    if not np.isfinite(losses).all():
        raise GwqError(
            "the model's loss on the calibration text is not finite: the model is damaged or not a language model"
        )
    model.drop_ends()
    keep.put("losses", np.array(losses))
    _keep(keep, f"upstream.{blocks}", upstream)
    if not last:
        keep.drop(f"state.{blocks}")


def _block_gradients(model, i, tokens, statistics, keep, reached):
    """(name, weight, statistics) of the linears of block i; keeps what it hands to the block before
    as `upstream.i`.

    reached: takes the tokens of every expert's matrix, which are kept as `reached.i`.
    """
    block, totals = model.load(i), Totals(statistics, tokens)
    linears = {row.hf: name for row, name in model.source.block(i).items() if row.linear}
    weights = {name: block.get_parameter(hf) for hf, name in linears.items()}
    wanted = {name: w.requires_grad_() for name, w in weights.items()} if totals.per_weight else {}
    tap = Tap().attach(
        {n: block.get_submodule(hf.removesuffix(".weight")) for hf, n in linears.items()}
    )
    upstream = _differentiate(model, i, keep, totals, wanted, tap)
    tap.remove()
    seen = {name: totals.reached[name] for name in _of_experts(model.source, i)}
    reached |= seen
    keep.put(f"reached.{i}", np.array([*seen.values()], np.int64))
    _keep(keep, f"upstream.{i}", upstream)
    totals.finish()
    for name, w in weights.items():
        yield name, *totals.take(name, w.detach())


def _differentiate(model, i, keep, totals, wanted, tap):
    """Add to the totals; returns the gradient of the hidden states before block i."""
    states, upstream = (
        _kept(keep, f"state.{i}", model.device),
        _kept(keep, f"upstream.{i + 1}", model.device),
    )

    def differentiate(s):
        given = states[s : s + 1].clone().requires_grad_()
        output, (inputs, outputs) = model.run(i, given), tap.take()
        outputs = outputs if totals.by_output else {}
        found = torch.autograd.grad(
            output,
            [given, *wanted.values(), *outputs.values()],
            upstream[s : s + 1],
            allow_unused=True,
        )
        return (
            found[0],
            found[1 : 1 + len(wanted)],
            inputs,
            dict(zip(outputs, found[1 + len(wanted) :], strict=True)),
        )

    for some in batches(len(states)):
        for s, (lower, by_weight, inputs, by_output) in zip(
            some, each(differentiate, some), strict=True
        ):
            for name, g in zip(wanted, by_weight, strict=True):
                if g is not None:  # of an expert without a token
                    totals.weight(name, g)
            totals.factor(inputs, by_output)
            upstream[s] = lower
    return upstream


def _end_gradients(model, tokens, last, upstream, statistics, ends, progress, sampled_labels):
    """The same for embedding and head.

    A tied matrix gets the sum of its two gradients, and factors that stand for both.
    """
    model.load_ends()
    arch, totals = model.source.arch, Totals(statistics, tokens)
    weights = {name: model.end(name).requires_grad_() for name in ends}
    tap = Tap().attach({"head": model.head} if totals.factors else {})
    for s, ids in enumerate(tokens):
        _, loss = _loss(
            model,
            ids[None],
            last[s : s + 1].clone().requires_grad_(),
            s if sampled_labels else None,
        )
        if totals.factors:
            totals.factor(
                {"head": tap.x["head"]},
                {"head": torch.autograd.grad(loss, tap.z["head"], retain_graph=True)[0]},
            )
        outputs = [(loss, torch.ones_like(loss))]
        if arch.embed in weights:
            outputs.append((model.embed(ids[None]), upstream[s : s + 1]))
        outputs, given = zip(*outputs, strict=True)
        if totals.per_weight:
            for name, g in zip(
                weights, torch.autograd.grad(outputs, list(weights.values()), given), strict=True
            ):
                totals.weight(name, g)
        progress("embedding and head", s + 1, len(tokens))
    totals.finish()
    tap.remove()
    factors = (
        _end_factors(totals, tokens, upstream * model.source.embedding_scale)
        if totals.factors
        else {}
    )
    for name, w in weights.items():
        kind = "tied" if model.source.tied else "head" if name == arch.head else "embed"
        found = {s: totals.sums.pop((name, s)) for s in totals.per_weight} | {
            f: factors[kind][f] for f in totals.factors
        }
        yield name, w.detach().cpu().numpy(), {s: a.cpu().numpy() for s, a in found.items()}


def _end_factors(totals, tokens, upstream):
    """{"head", "embed", "tied": {factor: tensor}}. A row of the embedding counts as often as its
    token comes.

    upstream: gradients of the loss with respect to rows of the embedding, (samples, tokens, dim).
    """
    head = {
        f: totals.hessians["head"] if f == "hessian" else totals.sums["head", f]
        for f in totals.factors
    }
    g = upstream.reshape(-1, upstream.shape[-1]) * totals.length
    embed = {"hessian": g.new_zeros(2 * g.shape[1:])}
    add_gram(embed["hessian"], g)
    mirror(embed["hessian"])
    embed["hessian"] /= tokens.numel()
    if (
        "rows" in head
    ):  # how often a token comes; those that did not come share what Good and Turing give them
        counts = torch.bincount(tokens.reshape(-1), minlength=len(head["rows"])).float()
        unseen = ((counts == 1).sum() / tokens.numel()).clamp(max=0.5)
        embed["rows"] = counts / tokens.numel() * (1 - unseen) + unseen / len(counts)
    tied = dict(embed)
    if len(head) == len(FACTORS):  # s_i H + f_i G as one product, exact where s and f are alike
        s, f = head["rows"].sum(), embed["rows"].sum()
        tied = {
            "hessian": head["hessian"] * s + embed["hessian"] * f,
            "rows": (head["rows"] / s + embed["rows"] / f) / 2,
        }
    return {"head": head, "embed": embed, "tied": tied}
