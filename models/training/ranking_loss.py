"""The generalised score-ranking loss of Liu et al. (2022), eq. 10–14.

Positives shall be scored above negatives, and among themselves in the order of their IoU. The loss
is a sum of steps; its gradient is the identity update of rank-and-sort (Oksuz et al. 2021, arXiv
2107.11669, eq. 5 and 9), which is what the paper's reference 22 trains with.

Shape legend: n scores, p positives among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024


def ranking_loss(
    score: Tensor, iou: Tensor, sorting_weight: float = 0.5, margin: float = 0.0
) -> Tensor:
    """Mean over the positives of L_RS.

    Parameters
    ----------
    score : (n,) float
        Logits or probabilities: only their order counts. Equal scores count as wrongly ranked
        (eq. 11: H(0) = 1).
    iou : (n,) float
        Of each box with its truth; 0 marks a negative.
    sorting_weight
        λ of eq. 13 and 14; 1 gives rank-and-sort.
    margin
        A negative counts as wrongly ranked until it lies this far below. 0 is the paper's eq. 11,
        which is content with the smallest difference; rank-and-sort's authors train with a ramp
        of 0.5 to either side instead of the step.

    Returns
    -------
    () float
        0, with gradient 0, where nothing is positive.
    """
    # Ranks go into the thousands: more than 16 bits can count.
    wide = torch.promote_types(score.dtype, torch.float32)
    loss: Tensor = _RankingLoss.apply(score.to(wide), iou.to(wide), sorting_weight, margin)  # type: ignore[no-untyped-call]
    return loss


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, score: Tensor, iou: Tensor, sorting_weight: float, margin: float
    ) -> Tensor:
        positive = iou > 0
        gradient = torch.zeros_like(score)
        if not positive.any():
            ctx.save_for_backward(gradient)
            return score.new_zeros(())
        positive_score, negative_score = score[positive], score[~positive] + margin
        ranking, on_positive, on_negative = _ranking(positive_score, negative_score)
        sorting, by_sorting = _sorting(positive_score, iou[positive], sorting_weight)
        count = len(positive_score)
        gradient[positive] = (on_positive + by_sorting) / count
        gradient[~positive] = on_negative / count
        ctx.save_for_backward(gradient)
        return (ranking + sorting).mean()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None, None


def _ranking(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First term of eq. 13 of each positive (its target is 0), and the update it asks for.

    Each positive shares its error out among the negatives that are scored as high or higher.
    O(n log n): both counts come from sorted scores.
    """
    above = _at_least(negative, positive)  # (p,) negatives scored as high or higher
    rank = above + _at_least(positive, positive)
    error = above / rank
    share = torch.where(above > 0, error / above.clamp(min=1), 0)
    order = positive.argsort()
    total = torch.cat((share.new_zeros(1), share[order].cumsum(0)))
    # A negative answers for every positive scored as high as it or lower.
    place = torch.searchsorted(positive[order], negative, right=True)
    return error, -error, total[place]


def _at_least(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many `scores` are at least each threshold, as float."""
    below = torch.searchsorted(scores.sort().values, thresholds, right=False)
    return (len(scores) - below).to(thresholds)


def _sorting(score: Tensor, iou: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Second term of eq. 13 less eq. 14 of each positive, and the update it asks for.

    Each positive shares its excess out among the positives scored as high or higher that overlap
    their truth less. Memory is bounded by chunks of 1024 rows.
    """
    excess = torch.empty_like(score)
    gradient = torch.zeros_like(score)
    for start in range(0, len(score), _CHUNK):
        rows = slice(start, start + _CHUNK)
        above = score[None, :] >= score[rows, None]  # H(x_ij)
        better = above & (iou[None, :] >= iou[rows, None])
        cost = (1 - iou)[None, :]
        now = (above * cost).sum(1) / above.sum(1)
        then = (better * cost).sum(1) / better.sum(1)  # never empty: i itself is in it
        excess[rows] = weight * (now - then)
        culprit = above & ~better
        share = excess[rows] / culprit.sum(1).clamp(min=1)
        gradient += (culprit * share[:, None]).sum(0)
        gradient[rows] -= torch.where(culprit.any(1), excess[rows], 0)
    return excess, gradient
