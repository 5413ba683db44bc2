"""The loss that calibration differentiates: of the text, or of labels sampled from the model.

Without a seed, both are the loss on the text. With one, what is differentiated stands for labels
sampled from the model. Over labels y drawn from the predictions p, the gradient of the
cross-entropy by the logits, p - onehot(y), has the second moment diag(p) - p p^T, and so does

    sqrt(p) * n - p * sum(sqrt(p) * n)        with n ~ N(0, I),

because sqrt(p) * n has diag(p), and subtracting its sum times p takes p p^T away. Its entries are
Gaussian where those of drawn labels are almost all zero, so sums over few tokens are less noisy.
The surrogate is linear in the logits: its gradient by them is that vector.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from gwq_export.calibration.block_model import BlockModel


def labels_loss(
    model: BlockModel, ids: torch.Tensor, hidden: torch.Tensor, seed: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean cross-entropy in nats of the tokens after the first, what is to be differentiated).

    ids (1, ctx); hidden (1, ctx, dim): the output of the last block.
    """
    logits = model.logits(ids, hidden)[:-1]
    loss = cross_entropy(logits, ids[0, 1:])
    if seed is None:
        return loss, loss
    return loss, _surrogate(logits, _generator(logits.device, seed)) / len(logits)


def labels_gradient(
    model: BlockModel, ids: torch.Tensor, hidden: torch.Tensor, seed: int | None
) -> tuple[float, torch.Tensor]:
    """(the same mean cross-entropy, the gradient by `hidden` of what is to be differentiated).

    The window is worked on in parts, so that its logits are never in memory together.
    """
    count = ids.shape[1] - 1
    generator = None if seed is None else _generator(ids.device, seed)
    gradient = torch.zeros_like(hidden)
    total = 0.0
    for part in model.parts(count):
        given = hidden[:, part].clone().requires_grad_()
        logits = model.logits(ids[:, part], given)
        loss = cross_entropy(logits, ids[0, 1:][part], reduction="sum")
        wanted = loss if generator is None else _surrogate(logits, generator)
        gradient[:, part] = torch.autograd.grad(wanted, given)[0] / count
        total += loss.item()
    return total / count, gradient


def labels_parts(
    model: BlockModel, ids: torch.Tensor, hidden: torch.Tensor, seed: int | None
) -> Iterator[torch.Tensor]:
    """What is to be differentiated, part by part: they add up to what `labels_loss` returns.

    The head sees every token once, the last of them in the last part.
    """
    count = ids.shape[1] - 1
    generator = None if seed is None else _generator(ids.device, seed)
    for part in model.parts(count):
        stop = part.stop + (part.stop == count)
        shown = slice(part.start, stop)
        logits = model.logits(ids[:, shown], hidden[:, shown])[: part.stop - part.start]
        if generator is None:
            yield cross_entropy(logits, ids[0, 1:][part], reduction="sum") / count
        else:
            yield _surrogate(logits, generator) / count


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _surrogate(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What stands for the loss of sampled labels, summed over the predictions (n, vocab)."""
    p = logits.detach().softmax(-1)
    drawn = p.sqrt() * torch.randn(p.shape, generator=generator, device=p.device)
    return (logits * (drawn - p * drawn.sum(-1, keepdim=True))).sum()
