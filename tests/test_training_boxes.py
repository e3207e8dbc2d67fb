"""Anchors, offsets, suppression and RoIAlign against loops and hand-made numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.boxes import iou
from models.training.box_losses import distance_iou
from models.training.boxes import (
    anchors,
    clipped,
    decode,
    encode,
    pairwise_iou,
    roi_align,
    suppress,
    suppress_by_type,
)

WEIGHT = (10.0, 10.0, 5.0, 5.0)


def some_boxes(count: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 200
    return torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=rng) * 60), 1)


def test_overlaps_are_those_of_the_node() -> None:
    first, second = some_boxes(20), some_boxes(30, seed=1)
    expected = np.stack([iou(np.repeat(first[i : i + 1].numpy(), 30, 0), second.numpy())
                         for i in range(20)])  # fmt: skip
    np.testing.assert_allclose(pairwise_iou(first, second), expected, atol=1e-6)
    assert float(pairwise_iou(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_offsets_there_and_back(seed: int) -> None:
    box, reference = some_boxes(16, seed), some_boxes(16, seed + 1)
    offset = encode(box, reference, WEIGHT)
    torch.testing.assert_close(decode(offset, reference, WEIGHT), box, atol=1e-3, rtol=1e-5)


def test_offsets_by_hand() -> None:
    reference, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 20]])
    # Centres (5, 10) and (15, 15): dx 10/10, dy 5/20; widths 10 → 20, heights 20 → 10.
    expected = torch.tensor([[1.0, 0.25, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode(box, reference, (1, 1, 1, 1)), expected)
    huge = decode(torch.tensor([[0.0, 0, 100, 100]]), reference, (1, 1, 1, 1))
    assert torch.isfinite(huge).all()


def test_clipped() -> None:
    box = torch.tensor([[-5.0, -1, 30, 12], [2, 3, 4, 5]])
    expected = torch.tensor([[0.0, 0, 20, 10], [2, 3, 4, 5]])
    torch.testing.assert_close(clipped(box, 20, 10), expected)


def test_anchors() -> None:
    found = anchors(2, 3, stride=16, sides_px=(32, 64), ratios=(0.5, 1, 2))
    assert found.shape == (2 * 3 * 2 * 3, 4)
    centre = (found[:, :2] + found[:, 2:]) / 2
    assert centre[0].tolist() == [8, 8]
    assert centre[6].tolist() == [24, 8]
    assert centre[18].tolist() == [8, 24]
    size = found[:, 2:] - found[:, :2]
    torch.testing.assert_close(size.prod(1)[:2], torch.tensor([32.0**2, 64.0**2]))
    torch.testing.assert_close(size[0, 1] / size[0, 0], torch.tensor(0.5))
    assert size[2].tolist() == [32, 32]


def brute_suppress(box: Tensor, score: Tensor, threshold: float, by_distance: bool) -> list[int]:
    left = sorted(range(len(box)), key=lambda i: -float(score[i]))
    stays = []
    while left:
        best = left.pop(0)
        stays.append(best)
        rest = []
        for other in left:
            pair = box[best : best + 1], box[other : other + 1]
            overlap = float(distance_iou(*pair) if by_distance else pairwise_iou(*pair))
            if overlap <= threshold:
                rest.append(other)
        left = rest
    return stays


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.booleans())
def test_suppression_is_greedy(seed: int, by_distance: bool) -> None:
    box = some_boxes(40, seed)
    score = torch.rand(40, generator=torch.Generator().manual_seed(seed))
    expected = brute_suppress(box, score, 0.3, by_distance)
    assert suppress(box, score, 0.3, by_distance).tolist() == expected


def test_types_do_not_suppress_each_other() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11]])
    score = torch.tensor([0.9, 0.8, 0.7])
    assert suppress(box, score, 0.5).tolist() == [0]
    kinds = torch.tensor([0, 1, 0])
    assert suppress_by_type(box, score, kinds, 0.5).tolist() == [0, 1]
    assert suppress_by_type(box, score, kinds, 0.5, by_distance=True).tolist() == [0, 1]
    assert suppress_by_type(box[:0], score[:0], kinds[:0], 0.5).tolist() == []


def test_distance_keeps_neighbours_that_overlap() -> None:
    # IoU 1/3; centres 5 px apart in a hull of 15 x 10: distance IoU 1/3 − 25/325.
    box = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]])
    score = torch.tensor([0.9, 0.8])
    assert suppress(box, score, 0.3).tolist() == [0]
    assert suppress(box, score, 0.3, by_distance=True).tolist() == [0, 1]


def brute_roi_align(
    features: Tensor, box: list[float], size: int, stride: float, samples: int
) -> Tensor:
    channels, height, width = features.shape
    out = torch.zeros(channels, size, size)
    x0, y0, x1, y1 = (v / stride for v in box)
    for row in range(size):
        for column in range(size):
            for i in range(samples):
                for j in range(samples):
                    x = x0 + (x1 - x0) * (column + (j + 0.5) / samples) / size - 0.5
                    y = y0 + (y1 - y0) * (row + (i + 0.5) / samples) / size - 0.5
                    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                    left, top = min(int(x), width - 2), min(int(y), height - 2)
                    u, v = x - left, y - top
                    out[:, row, column] += (
                        features[:, top, left] * (1 - u) * (1 - v)
                        + features[:, top, left + 1] * u * (1 - v)
                        + features[:, top + 1, left] * (1 - u) * v
                        + features[:, top + 1, left + 1] * u * v
                    ) / samples**2
    return out


def test_roi_align_is_its_definition() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 9, 12)
    box = torch.tensor([[3.3, 2.1, 20.7, 17.9], [-4, -2, 9, 30], [20, 10, 24, 18]])
    image = torch.tensor([0, 1, 1])
    found = roi_align(features, box, image, size=3, stride=2, samples=2)
    for row in range(3):
        expected = brute_roi_align(features[image[row]], box[row].tolist(), 3, 2, 2)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_roi_align_reads_a_slope_exactly() -> None:
    # A map whose value is the image's x at the place's centre: a bin's value is its middle.
    stride = 4
    x = (torch.arange(40) + 0.5) * stride
    features = x.expand(1, 1, 40, 40)
    found = roi_align(features, torch.tensor([[20.0, 30, 76, 90]]), torch.tensor([0]), 7, stride)
    torch.testing.assert_close(found[0, 0, 0], 20 + (torch.arange(7) + 0.5) * 8)


def test_roi_align_passes_gradients() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[1.3, 2.2, 17.1, 15.7]], dtype=torch.float64, requires_grad=True)
    image = torch.tensor([0])
    assert torch.autograd.gradcheck(
        lambda f, b: roi_align(f, b, image, 2, 4.0), (features, box), atol=1e-5
    )


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes(count: int) -> None:
    box, score = some_boxes(count), torch.ones(count)
    assert len(suppress(box, score, 0.5)) == count
    found = roi_align(torch.ones(1, 4, 8, 8), box, torch.zeros(count, dtype=torch.int64), 7, 16)
    assert found.shape == (count, 4, 7, 7)
