"""What the heads of an R-CNN see of a box: 7 × 7 values of the pyramid's level for its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.training.boxes import pyramid_roi_align
from models.training.resnet_fpn import STRIDES

ROI_SIZE = 7
# A box of this side and less than twice it is read from the second level. Lin et al. 2017, eq. 1
# has 112 there, from ImageNet's 224; cells of 0.25 µm per px are small, and their grain says what
# they are.
_SIDE_PX = 64.0


def connected_layers(channels: int, width: int) -> nn.Sequential:
    """Two fully connected layers on such features, (R, C · 49) → (R, `width`)."""
    return nn.Sequential(
        nn.Linear(channels * ROI_SIZE**2, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
    )


def roi_features(maps: Sequence[Tensor], box: Tensor) -> Tensor:
    """Features of boxes.

    Parameters
    ----------
    maps
        The pyramid's, (B, C, h, w) each, from stride 4 on.
    box : (B, P, 4)
        In image pixels.

    Returns
    -------
    (B · P, C · 49)
    """
    images, proposals = box.shape[:2]
    image = torch.arange(images, device=box.device)[:, None].expand(-1, proposals).flatten()
    flat = box.flatten(0, 1)
    strides = [float(stride) for stride in STRIDES[:4]]
    return pyramid_roi_align(maps[:4], flat, image, _level(flat), ROI_SIZE, strides).flatten(1)


def _level(box: Tensor) -> Tensor:
    """Level 0 to 3, strides 4 to 32, of boxes (R, 4)."""
    side = (box[:, 2:] - box[:, :2]).clamp(min=1)
    root = (side[:, 0] * side[:, 1]).sqrt()
    return ((root / _SIDE_PX).log2().floor() + 1).clamp(0, 3).long()
