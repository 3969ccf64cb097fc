"""Softmax over items: every hidden rating against all items its user has not visibly rated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_STRUCK = -1e30


def full_softmax_loss(
    users: Tensor, items: Tensor, bias: Tensor, visible: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]
) -> Tensor:
    """Mean negative log-likelihood of `targets`; visible pairs take no part in the denominator.

    Args:
        users: float [B, D].
        items: float [n, D].
        bias: float [n].
        visible: (user positions, item positions), int64 [v] each: messages, neither positive nor negative.
        targets: likewise [t], t > 0; a pair is never visible and target at once.

    Returns:
        A scalar. Memory: one buffer [B, n]; its gradient is written in place, so call backward at most once.
    """
    loss: Tensor = _FullSoftmax.apply(users, items, bias, visible, targets)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    known: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    negatives: Tensor,
    log_expected: Tensor,
) -> Tensor:
    """The same against a sample of items, corrected for how often each is drawn (logQ).

    Bengio and Senecal 2008; Yi et al. 2019. Pairs in `known` (messages and targets alike) are struck from the
    negatives; each target competes with its user's negatives and itself.

    Args:
        users: float [B, D].
        items: float [n, D].
        bias: float [n].
        known: (user positions, places in `negatives`), int64 [v] each.
        targets: (user positions, item positions), int64 [t] each, t > 0.
        negatives: int64 [s], distinct, s > 0.
        log_expected: float [s], the log of how often each is expected among the negatives.
    """
    logits = users @ items[negatives].T + (bias[negatives] - log_expected)  # [B, s]
    # Finite, because the gradient of a sum of nothing but exp(-inf) is not a number.
    logits = logits.index_put(known, torch.full_like(logits[0, 0], _STRUCK))
    denominators = torch.logsumexp(logits, 1)  # [B]
    rows, columns = targets
    positives = (users[rows] * items[columns]).sum(1) + bias[columns]
    return (torch.logaddexp(denominators[rows], positives) - positives).mean()


class _FullSoftmax(torch.autograd.Function):
    """Written out because autograd would keep four [B, n] buffers where one is enough."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        bias: Tensor,
        visible: tuple[Tensor, Tensor],
        targets: tuple[Tensor, Tensor],
    ) -> Tensor:
        logits = torch.addmm(bias, users, items.T)  # [B, n]
        logits[visible] = -torch.inf
        positives = logits[targets].sum()
        largest = logits.amax(1, keepdim=True)
        # A user who has seen everything has no finite logit, and no target either.
        largest = torch.where(largest.isfinite(), largest, 0)
        logits.sub_(largest).exp_()
        totals = logits.sum(1)
        counts = torch.bincount(targets[0], minlength=len(users)).to(totals.dtype)
        used = counts > 0
        log_totals = torch.where(used, totals.log() + largest.squeeze(1), 0)
        ctx.save_for_backward(users, items)
        ctx.exponentials, ctx.targets = logits, targets
        ctx.scale = torch.where(used, counts / totals, 0)
        return ((log_totals * counts).sum() - positives) / len(targets[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        users, items = ctx.saved_tensors
        gradient = ctx.exponentials.mul_(ctx.scale.unsqueeze(1))  # softmax times the number of targets
        gradient[ctx.targets] -= 1
        gradient.mul_(gradients[0] / len(ctx.targets[0]))
        return gradient @ items, gradient.T @ users, gradient.sum(0), None, None
