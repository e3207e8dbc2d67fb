"""Losses of boxes: soft sampling, distance IoU, complete IoU.

Shape legend: n pairs of boxes (x0, y0, x1, y1), row i with row i, in any frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def soft_sampling_weight(
    iou: Tensor, least: float = 0.25, s: float = 50.0, v: float = 20.0
) -> Tensor:
    """Weight of a proposal by its IoU with the nearest truth (Wang et al. 2022, eq. 15).

    A proposal far from any truth may lie on a cell that nobody marked: it weighs `least` (ς).

    Parameters
    ----------
    iou : (n,) float
    least, s, v
        ς, s and v of the equation, as in the paper.
    """
    return least + (1 - least) * torch.exp(-s * torch.exp(-v * iou))


def soft_sampling_loss(offset: Tensor, target: Tensor, iou: Tensor) -> Tensor:
    """Smooth L1 of box offsets, each weighted as above (Wang et al. 2022, eq. 14).

    Parameters
    ----------
    offset, target : (n, 4) float
        Of :mod:`models.training.boxes`' coding.
    iou : (n,) float
        Of each proposal with its truth; no gradient flows into it.

    Returns
    -------
    () float
        Sum over the proposals.
    """
    each = functional.smooth_l1_loss(offset, target, reduction="none").sum(1)
    return (soft_sampling_weight(iou.detach()) * each).sum()


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU less the share of the hull that neither box covers (Rezatofighi et al. 2019), (n,)."""
    iou, union = _iou_and_union(first, second)
    side = _hull(first, second)
    hull = side[:, 0] * side[:, 1]
    return iou - (hull - union) / hull


def distance_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU less the centres' squared distance over the hull's squared diagonal, (n,).

    Zheng et al. 2020 (arXiv 1911.08287), eq. 6 and 7; YOLOv4's suppression compares with it.
    """
    iou, _ = _iou_and_union(first, second)
    apart = ((first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2).square().sum(1)
    return iou - apart / _hull(first, second).square().sum(1)


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Distance IoU less a term for different shapes, (n,).

    Zheng et al. 2020, eq. 8 to 11; the loss is 1 − this. The shape term's own weight α passes no
    gradient, as its authors train it.
    """
    iou, _ = _iou_and_union(first, second)
    width, height = (first[:, 2:] - first[:, :2]).unbind(1)
    other_width, other_height = (second[:, 2:] - second[:, :2]).unbind(1)
    angle = torch.atan(width / height) - torch.atan(other_width / other_height)
    shape = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        alpha = torch.where(shape > 0, shape / (1 - iou + shape), 0)
    return distance_iou(first, second) - alpha * shape


def _iou_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (first, second)]
    union = areas[0] + areas[1] - common
    return common / union, union


def _hull(first: Tensor, second: Tensor) -> Tensor:
    """Width and height of the smallest box around both, (n, 2)."""
    low = torch.minimum(first[:, :2], second[:, :2])
    return torch.maximum(first[:, 2:], second[:, 2:]) - low
