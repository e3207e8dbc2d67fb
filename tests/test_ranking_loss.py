"""The ranking loss against a transcription of eq. 10–14, one pair at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.training.ranking_loss import ranking_loss


def transcribed(score: Tensor, iou: Tensor, weight: float) -> tuple[float, list[float]]:
    """The loss, and the identity update, by loops."""
    s, y = score.tolist(), iou.tolist()
    positives = [i for i in range(len(s)) if y[i] > 0]
    negatives = [i for i in range(len(s)) if y[i] <= 0]
    gradient = [0.0] * len(s)
    total = 0.0
    for i in positives:

        def h(j: int, i: int = i) -> bool:
            return -(s[i] - s[j]) >= 0

        above_n = [j for j in negatives if h(j)]
        above_p = [j for j in positives if h(j)]
        ranking = len(above_n) / (len(above_n) + len(above_p))
        current = weight * sum(1 - y[j] for j in above_p) / len(above_p)
        sorted_above = [j for j in above_p if y[j] >= y[i]]
        target = weight * sum(1 - y[j] for j in sorted_above) / len(sorted_above)
        total += ranking + current - target
        for j in above_n:
            gradient[j] += ranking / len(above_n)
            gradient[i] -= ranking / len(above_n)
        culprits = [j for j in above_p if y[j] < y[i]]
        for j in culprits:
            gradient[j] += (current - target) / len(culprits)
            gradient[i] -= (current - target) / len(culprits)
    n = max(len(positives), 1)
    return total / n, [value / n for value in gradient]


def test_sixteen_bits_are_ranked_in_thirty_two() -> None:
    """In bfloat16, which mixed precision gives, 1 000 negatives could not be counted."""
    score = torch.cat((torch.zeros(3), torch.ones(1000))).bfloat16().requires_grad_()
    iou = torch.cat((torch.tensor([0.9, 0.8, 0.7]), torch.zeros(1000)))
    loss = ranking_loss(score, iou)
    expected, update = transcribed(score.detach().float(), iou, 0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert score.grad is not None
    torch.testing.assert_close(score.grad.float(), torch.tensor(update), rtol=5e-3, atol=1e-7)


pairs = st.lists(
    st.tuples(
        st.integers(-8, 8).map(lambda v: v / 4),  # coarse, so that ties occur
        st.one_of(st.just(0.0), st.integers(1, 8).map(lambda v: v / 8)),
    ),
    min_size=1,
    max_size=24,
)


@settings(deadline=None)
@given(pairs, st.sampled_from([0.0, 0.5, 1.0]))
def test_loss_and_update_are_those_of_the_paper(
    drawn: list[tuple[float, float]], weight: float
) -> None:
    score, iou = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    score = score.clone().requires_grad_()
    loss = ranking_loss(score, iou, weight)
    loss.backward()
    expected, update = transcribed(score.detach(), iou, weight)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.tensor(update, dtype=torch.float64))


def test_nothing_positive_gives_nothing() -> None:
    score = torch.randn(7, requires_grad=True)
    loss = ranking_loss(score, torch.zeros(7))
    loss.backward()
    assert float(loss.detach()) == 0
    assert score.grad is not None
    assert not score.grad.any()


def test_a_perfect_order_costs_nothing_and_stays() -> None:
    score = torch.tensor([5.0, 4, 3, -1, -2], requires_grad=True)
    loss = ranking_loss(score, torch.tensor([0.9, 0.8, 0.6, 0, 0]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert score.grad is not None
    assert not score.grad.any()


def test_following_the_update_ranks_positives_first() -> None:
    torch.manual_seed(0)
    iou = torch.cat((torch.rand(20) * 0.5 + 0.5, torch.zeros(200)))
    score = torch.randn(220, requires_grad=True)
    optimiser = torch.optim.SGD([score], lr=2.0)
    first = float(ranking_loss(score.detach(), iou))
    for _ in range(400):
        optimiser.zero_grad()
        ranking_loss(score, iou, 1.0).backward()
        optimiser.step()
    assert float(ranking_loss(score.detach(), iou)) < 0.05 < first
    assert score[:20].min() > score[20:].max()


def test_ten_thousand_proposals_fit() -> None:
    torch.manual_seed(0)
    score = torch.randn(10_000, requires_grad=True)
    iou = torch.where(torch.rand(10_000) < 0.5, torch.rand(10_000), torch.zeros(()))
    ranking_loss(score, iou).backward()
    assert score.grad is not None
    # What goes to one side is taken from the other.
    assert float(score.grad.sum()) == pytest.approx(0, abs=1e-4)


def test_a_margin_moves_the_negatives_up() -> None:
    score = torch.tensor([0.6, 0.0, -2.0], requires_grad=True)
    iou = torch.tensor([0.8, 0.0, 0.0])
    assert ranking_loss(score, iou).item() == 0
    loss = ranking_loss(score, iou, margin=1.0)
    assert loss.item() == pytest.approx(0.5)  # one negative within the margin: rank 2
    loss.backward()
    assert score.grad is not None
    assert score.grad.tolist() == pytest.approx([-0.5, 0.5, 0.0])
