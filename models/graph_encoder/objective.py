"""Softmax over items: every hidden rating against all items its user has not visibly rated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_STRUCK = -1e30


def full_softmax_loss(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    visible: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    user_weights: Tensor,
) -> Tensor:
    """Weighted mean negative log-likelihood of `targets`, visible pairs left out of the denominator.

    Args:
        users: float [B, D].
        items: float [n, D].
        bias: float [n].
        visible: (user positions, item positions), int64 [v] each: messages, neither positive nor negative.
        targets: likewise [t], t > 0; a pair is never visible and target at once.
        user_weights: float [B], positive: what each target of a user counts.

    Returns:
        A scalar. Memory: one buffer [B, n]; its gradient is written in place, so call backward at most once.
    """
    loss: Tensor = _FullSoftmax.apply(users, items, bias, visible, targets, user_weights)  # type: ignore[no-untyped-call]
    return loss


def sampled_softmax_loss(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    known: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    user_weights: Tensor,
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
        user_weights: float [B], positive.
        negatives: int64 [s], distinct, s > 0.
        log_expected: float [s], the log of how often each is expected among the negatives.
    """
    logits = users @ items[negatives].T + (bias[negatives] - log_expected)  # [B, s]
    # Finite, because the gradient of a sum of nothing but exp(-inf) is not a number.
    logits = logits.index_put(known, torch.full_like(logits[0, 0], _STRUCK))
    denominators = torch.logsumexp(logits, 1)  # [B]
    rows, columns = targets
    positives = (users[rows] * items[columns]).sum(1) + bias[columns]
    weights = user_weights[rows]
    losses = torch.logaddexp(denominators[rows], positives) - positives
    return (losses * weights).sum() / weights.sum()


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
        user_weights: Tensor,
    ) -> Tensor:
        weights = user_weights[targets[0]]  # [t]
        weights = weights / weights.sum()
        logits = torch.addmm(bias, users, items.T)  # [B, n]
        logits[visible] = -torch.inf
        positives = logits[targets] @ weights
        largest = logits.amax(1, keepdim=True)
        # A user who has seen everything has no finite logit, and no target either.
        largest = torch.where(largest.isfinite(), largest, 0)
        logits.sub_(largest).exp_()
        totals = logits.sum(1)
        share = torch.zeros_like(totals).index_add_(0, targets[0], weights)  # [B]
        used = share > 0
        log_totals = torch.where(used, totals.log() + largest.squeeze(1), 0)
        ctx.save_for_backward(users, items)
        ctx.exponentials, ctx.targets, ctx.weights = logits, targets, weights
        ctx.scale = torch.where(used, share / totals, 0)
        return log_totals @ share - positives

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        users, items = ctx.saved_tensors
        gradient = ctx.exponentials.mul_(ctx.scale.unsqueeze(1))  # softmax times the weight of targets
        gradient[ctx.targets] -= ctx.weights
        gradient.mul_(gradients[0])
        return gradient @ items, gradient.T @ users, gradient.sum(0), None, None, None
