"""Losses of boxes against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.training.box_losses import (
    complete_iou,
    distance_iou,
    generalised_iou,
    soft_sampling_loss,
    soft_sampling_weight,
)


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("iou", "weight"),
    [
        # 0.25 + 0.75 exp(-50 exp(-20 iou)), worked out in decimals with 30 digits.
        (0.0, 0.2500000000000),
        (0.05, 0.2500000077030),
        (0.1, 0.2508635608151),
        (0.15, 0.3122226939770),
        (0.2, 0.5501526750675),
        (0.3, 0.9125762182758),
        (0.4, 0.9875250657804),
        (0.5, 0.9982994335041),
        (0.7, 0.9999688183212),
        (1.0, 0.9999999227067),
    ],
)
def test_soft_sampling_weights(iou: float, weight: float) -> None:
    found = soft_sampling_weight(torch.tensor(iou, dtype=torch.float64))
    assert float(found) == pytest.approx(weight, abs=1e-6)
    expected = 0.25 + 0.75 * math.exp(-50 * math.exp(-20 * iou))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_soft_sampling_loss_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    offset, target, iou = torch.randn(9, 4), torch.randn(9, 4), torch.rand(9)
    expected = sum(
        float(soft_sampling_weight(iou[i]))
        * float(functional.smooth_l1_loss(offset[i], target[i], reduction="sum"))
        for i in range(9)
    )
    assert float(soft_sampling_loss(offset, target, iou)) == pytest.approx(expected, rel=1e-5)


def test_boxes_by_hand() -> None:
    # Two 4 x 2 boxes, the second moved by (2, 1): they share 2 x 1 = 2 of 8 + 8 - 2 = 14.
    # Hull 6 x 3: area 18, squared diagonal 45. Centres apart by (2, 1): squared 5.
    one, two = boxes((0, 0, 4, 2)), boxes((2, 1, 6, 3))
    assert float(generalised_iou(one, two)) == pytest.approx(2 / 14 - 4 / 18)
    assert float(distance_iou(one, two)) == pytest.approx(2 / 14 - 5 / 45)
    assert float(complete_iou(one, two)) == pytest.approx(2 / 14 - 5 / 45)  # the same shape


def test_complete_iou_of_different_shapes_by_hand() -> None:
    # 4 x 2 within 4 x 4, same left top corner: IoU 8/16, hull 4 x 4, centres apart by (0, 1).
    one, two = boxes((0, 0, 4, 2)), boxes((0, 0, 4, 4))
    shape = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    alpha = shape / (1 - 0.5 + shape)
    assert float(complete_iou(one, two)) == pytest.approx(0.5 - 1 / 32 - alpha * shape)


def test_boxes_apart_and_boxes_alike() -> None:
    one, far = boxes((0, 0, 2, 2)), boxes((8, 0, 10, 2))
    for measure, expected in (
        (generalised_iou, -(20 - 8) / 20),
        (distance_iou, -64 / 104),
        (complete_iou, -64 / 104),
    ):
        assert float(measure(one, far)) == pytest.approx(expected)
        assert float(measure(one, one)) == pytest.approx(1)


@pytest.mark.parametrize("measure", [generalised_iou, distance_iou])
def test_gradients(measure: object) -> None:
    torch.manual_seed(0)
    corner = torch.rand(5, 2, dtype=torch.float64)
    first = torch.cat((corner, corner + 1 + torch.rand(5, 2)), 1).requires_grad_()
    second = torch.cat((corner + 0.3, corner + 2 + torch.rand(5, 2)), 1)
    assert torch.autograd.gradcheck(lambda box: measure(box, second), (first,))  # type: ignore[operator]


def test_following_complete_iou_finds_the_box() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    truth = torch.tensor([[40.0, 30, 60, 80]])
    optimiser = torch.optim.Adam([box], lr=1.0)
    for _ in range(400):
        optimiser.zero_grad()
        (1 - complete_iou(box, truth)).sum().backward()
        optimiser.step()
    assert float(complete_iou(box.detach(), truth)) > 0.95
