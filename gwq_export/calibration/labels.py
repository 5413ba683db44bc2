"""The loss that calibration differentiates: of the text, or of labels sampled from the model."""

import torch

from gwq_export.calibration.block_model import BlockModel


def labels_loss(
    model: BlockModel, ids: torch.Tensor, hidden: torch.Tensor, seed: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean cross-entropy in nats of the tokens after the first, what is to be differentiated).

    ids (1, ctx); hidden (1, ctx, dim): the output of the last block. Without a seed both are the
    loss on the text. With one, the second stands for labels sampled from the model. Over labels y
    drawn from the predictions p, the gradient of the cross-entropy by the logits, p - onehot(y),
    has the second moment diag(p) - p p^T, and so does

        sqrt(p) * n - p * sum(sqrt(p) * n)        with n ~ N(0, I),

    because sqrt(p) * n has diag(p), and subtracting its sum times p takes p p^T away. Its entries
    are Gaussian where those of drawn labels are almost all zero, so sums over few tokens are less
    noisy. The surrogate is linear in the logits: its gradient by them is that vector.
    """
    logits = model.logits(ids, hidden)[:-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    if seed is None:
        return loss, loss
    p = logits.detach().softmax(-1)
    generator = torch.Generator(p.device).manual_seed(seed)
    drawn = p.sqrt() * torch.randn(p.shape, generator=generator, device=p.device)
    surrogate = (logits * (drawn - p * drawn.sum(-1, keepdim=True))).sum() / len(p)
    return loss, surrogate
