"""Gradients of the next-token cross-entropy for every weight, one decoder block at a time.

Forward keeps only the hidden states between blocks; backward reloads each block, runs it again on
its kept input and differentiates. Peak memory is that of one block with its gradients, or of
embedding and head with one sample's logits if they are larger, plus (blocks + 1) x samples x ctx x
dim floats. The result is that of a whole-model backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gwq_export.calibration.block_model import BlockModel, ModelSource
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.calibration.labels import labels_gradient, labels_loss, labels_parts
from gwq_export.calibration.statistics import FACTORS, OUTPUTS, Tap, Totals
from gwq_export.calibration.text import Calibration
from gwq_export.compute.linalg import add_gram, mirror
from gwq_export.compute.results import Memory
from gwq_export.errors import GwqError

Statistics = dict[str, np.ndarray]
Item = tuple[str, np.ndarray, Statistics]  # Hugging Face name, weight, statistics of it


def gradients(
    source: ModelSource,
    calibration: Calibration,
    statistics: Sequence[str],
    ends: Sequence[str] = (),
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    keep: Memory | None = None,
    finished: Callable[[str], bool] = lambda name: False,
    sampled_labels: bool = False,
) -> Iterator[Item]:
    """Yield (Hugging Face name, weight, {statistic: array}) for every linear weight of the decoder.

    Blocks come last to first, each block's tensors in the order of the architecture, experts one by
    one; then those of `ends` (embedding, head). source: an `hf.source.Source`. statistics: names
    from `statistics.STATISTICS`, arrays float32 of the weight's shape, and `FACTORS`.
    `calibration.losses` is filled before the first tensor is yielded, `reached` before those of its
    block.

    keep: for what blocks hand on; with a Workdir, another run of this function goes on from there
    and leaves out the tensors of which `finished` is true.

    sampled_labels: differentiate the loss of labels sampled from the model's own predictions
    instead of the text's tokens. The second moment of these gradients is the Fisher information,
    which the KL divergence and the added loss follow to second order; that of the text's tokens is
    the empirical Fisher information, which is larger where a model is too sure of itself.

    Raises GwqError when the model's loss is not finite.
    """
    keep = keep or Memory()
    blocks = source.layers
    linears = [[n for row, n in source.block(i).items() if row.linear] for i in range(blocks)]
    done = [i for i in range(blocks) if f"upstream.{i}" in keep and all(map(finished, linears[i]))]
    remaining = min(done, default=blocks)  # blocks still to be differentiated, from the first on
    ends = [] if all(map(finished, ends)) else list(ends)
    if remaining or ends:
        model = BlockModel(source, device)
        walk = BlockPass(model, calibration.tokens, keep)
        _forward(walk, bool(ends), progress, sampled_labels)
    calibration.losses[:] = keep.need("losses")[0].tolist()
    for i in reversed(range(remaining, blocks)):
        tokens_seen = keep.need(f"reached.{i}")[0].tolist()
        calibration.reached.update(zip(_expert_matrices(source, i), tokens_seen, strict=True))
    progress("backward", blocks - remaining, blocks)
    for i in reversed(range(remaining)):
        for item in _block_gradients(walk, i, statistics, calibration.reached):
            if not finished(item[0]):
                yield item
        model.drop(i)
        walk.drop(f"upstream.{i + 1}", f"state.{i}")
        progress("backward", blocks - i, blocks)
    if ends:
        for item in _end_gradients(walk, statistics, ends, progress, sampled_labels):
            if not finished(item[0]):
                yield item


def _expert_matrices(source: ModelSource, i: int) -> list[str]:
    """Names of the matrices of block i that belong to an expert."""
    return [name for row, name in source.block(i).items() if row.expert is not None]


def _forward(
    walk: BlockPass,
    keep_last: bool,
    progress: Callable[[str, int, int], None],
    sampled_labels: bool,
) -> None:
    """Keep all hidden states, the losses, and the gradient after the last block."""
    blocks = len(walk.model.blocks)
    earlier = any(f"upstream.{i}" in walk for i in range(blocks + 1))  # a run that was killed
    walk.embed(only_arguments=earlier)
    if earlier:
        return
    progress("forward", 0, blocks)
    walk.forward(report=lambda done: progress("forward", done, blocks))
    upstream = walk.get(f"state.{blocks}").clone()

    def differentiate(s: int) -> float:
        seed = s if sampled_labels else None
        part = slice(s, s + 1)
        loss, gradient = labels_gradient(walk.model, walk.tokens[part], upstream[part], seed)
        upstream[s] = gradient[0]
        return loss

    losses = walk.at_the_end(differentiate, len(walk.tokens))
    if not np.isfinite(losses).all():
        raise GwqError(
            "the model's loss on the calibration text is not finite: the model is damaged or not a"
            " language model"
        )
    walk.keep.put("losses", np.array(losses))
    walk.put(f"upstream.{blocks}", upstream)
    if not keep_last:
        walk.drop(f"state.{blocks}")


def _block_gradients(
    walk: BlockPass, i: int, statistics: Sequence[str], reached: dict[str, int]
) -> Iterator[Item]:
    """The linears of block i; keeps what it hands to the block before as `upstream.i`.

    reached: takes the number of tokens of every expert's matrix, which is kept as `reached.i`.
    """
    source = walk.model.source
    block = walk.model.load(i)
    totals = Totals(statistics, walk.tokens)
    linears = {row.hf: name for row, name in source.block(i).items() if row.linear}
    weights = {name: block.get_parameter(hf) for hf, name in linears.items()}
    by_weight = list(weights) if totals.per_weight else []
    for name in by_weight:
        weights[name].requires_grad_()
    modules = {n: block.get_submodule(hf.removesuffix(".weight")) for hf, n in linears.items()}
    tap = Tap().attach(modules)

    def targets(noted: Any) -> list[torch.Tensor]:
        """Weights, then the outputs of the modules that ran."""
        _, outputs = noted
        by_output = outputs.values() if totals.by_output else ()
        return [*(weights[name] for name in by_weight), *by_output]

    for _, found, (inputs, outputs) in walk.backward(i, targets, tap.take):
        for name, gradient in zip(by_weight, found, strict=False):
            if gradient is not None:  # None: of an expert without a token
                totals.weight(name, gradient)
        by_output = found[len(by_weight) :]
        totals.factor(inputs, dict(zip(outputs, by_output, strict=True)) if by_output else {})
    tap.remove()
    seen = {name: totals.reached[name] for name in _expert_matrices(source, i)}
    reached |= seen
    walk.keep.put(f"reached.{i}", np.array([*seen.values()], np.int64))
    totals.finish()
    for name, weight in weights.items():
        yield name, *totals.take(name, weight.detach())


def _end_gradients(
    walk: BlockPass,
    statistics: Sequence[str],
    ends: Sequence[str],
    progress: Callable[[str, int, int], None],
    sampled_labels: bool,
) -> Iterator[Item]:
    """The same for embedding and head.

    A tied matrix gets the sum of its two gradients, and factors that stand for both.
    """
    model, source, tokens = walk.model, walk.model.source, walk.tokens
    last = walk.get(f"state.{len(model.blocks)}")
    upstream = walk.get("upstream.0")
    model.load_ends()
    # rows of embedding and head stand for tokens, far too many to know of each other
    totals = Totals([s for s in statistics if s != OUTPUTS], tokens)
    weights = {name: model.end(name).requires_grad_() for name in ends}
    tap = Tap().attach({"head": model.head} if totals.factors else {})
    for s, ids in enumerate(tokens):
        hidden = last[s : s + 1].clone().requires_grad_()
        seed = s if sampled_labels else None
        if totals.factors:
            for part in labels_parts(model, ids[None], hidden, seed):
                (gradient,) = torch.autograd.grad(part, tap.z["head"])
                totals.factor({"head": tap.x["head"]}, {"head": gradient})
        if totals.per_weight:
            _, loss = labels_loss(model, ids[None], hidden, seed)
            outputs = [loss]
            given = [torch.ones_like(loss)]
            if source.arch.embed in weights:
                outputs.append(model.embed(ids[None]))
                given.append(upstream[s : s + 1])
            found = torch.autograd.grad(outputs, list(weights.values()), given)
            for name, gradient in zip(weights, found, strict=True):
                totals.weight(name, gradient)
        progress("embedding and head", s + 1, len(tokens))
    totals.finish()
    tap.remove()
    factors: dict[str, dict[str, torch.Tensor]] = {}
    if totals.factors:
        factors = _end_factors(totals, tokens, upstream * source.embedding_scale)
    for name, weight in weights.items():
        role = "tied" if source.tied else "head" if name == source.arch.head else "embed"
        arrays = {s: totals.sums.pop((name, s)) for s in totals.per_weight}
        arrays |= {f: factors[role][f] for f in totals.factors}
        yield name, weight.detach().cpu().numpy(), {s: a.cpu().numpy() for s, a in arrays.items()}


def _end_factors(
    totals: Totals, tokens: torch.Tensor, upstream: torch.Tensor
) -> dict[str, dict[str, torch.Tensor]]:
    """{"head", "embed", "tied": {factor: tensor}} of a (vocab, dim) matrix.

    head: factors like those of any linear layer, s (vocab,) over its outputs and H (dim, dim) of
    its inputs. embed: a row counts as often as its token comes, f (vocab,), and an error of it
    costs what the gradient g of its hidden state says: G = mean of g g^T. The Fisher matrix of a
    tied matrix is their sum, row i: s_i H + f_i G. One product has to stand for it:

        (s_i / S + f_i / F) / 2 * (S H + F G)        with S = sum s, F = sum f,

    which is exact where s and f are proportional to each other.

    upstream (samples, tokens, dim): gradients of the loss by the rows of the embedding.
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
    if "rows" in head:
        counts = torch.bincount(tokens.reshape(-1), minlength=len(head["rows"])).float()
        # Good and Turing: tokens that did not come have the probability (tokens that came once) /
        # (tokens) together; it is spread over the whole vocabulary.
        unseen = ((counts == 1).sum() / tokens.numel()).clamp(max=0.5)
        embed["rows"] = counts / tokens.numel() * (1 - unseen) + unseen / len(counts)
    tied = dict(embed)
    if len(head) == len(FACTORS):
        s, f = head["rows"].sum(), embed["rows"].sum()
        tied = {
            "hessian": head["hessian"] * s + embed["hessian"] * f,
            "rows": (head["rows"] / s + embed["rows"] / f) / 2,
        }
    return {"head": head, "embed": embed, "tied": tied}
