"""The one-stage detector and classifier of ``demo-smear``.

Shape legend: N images, H × W their size, h × w = H/8 × W/8, A = h·w places, K types.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
# Optical density of ordinary smears: what the uint8 input is scaled by, inside the graph.
MEAN = 0.70
SPREAD = 0.25


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 × 3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class SmearDetector(nn.Module):
    """A peak per cell, a box around it and its type.

    Parameters
    ----------
    types
        K, number of cell types.
    width
        Channels of the first layer; all others are multiples of it.
    """

    def __init__(self, types: int, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 2), conv(w, 2 * w, 2), Residual(2 * w))  # H/4
        self.middle = nn.Sequential(conv(2 * w, 4 * w, 2), Residual(4 * w), Residual(4 * w))  # H/8
        self.deep = nn.Sequential(conv(4 * w, 6 * w, 2), Residual(6 * w), Residual(6 * w))  # H/16
        self.lateral = nn.Conv2d(6 * w, 4 * w, 1)
        self.merge = conv(4 * w, 4 * w)
        self.score = nn.Sequential(conv(4 * w, 2 * w), nn.Conv2d(2 * w, 1, 1))
        self.box = nn.Sequential(conv(4 * w, 2 * w), nn.Conv2d(2 * w, 4, 1))
        self.texture = conv(4 * w, 6 * w)
        self.hide = nn.Dropout2d(0.2)
        self.kind = nn.Conv2d(18 * w, types, 1)
        nn.init.constant_(self.score[-1].bias, -3.0)  # type: ignore[arg-type]
        nn.init.constant_(self.box[-1].bias, 3.0)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw outputs.

        Parameters
        ----------
        image : (N, 3, H, W) float
            0 to 1.

        Returns
        -------
        tuple
            Score logits (N, 1, h, w); log distances in px from a place's centre to left, top,
            right and bottom of its box (N, 4, h, w); type logits (N, K, h, w).
        """
        x = (image - MEAN) / SPREAD
        middle = self.middle(self.stem(x))  # (N, 4w, h, w)
        deep = self.deep(middle)  # (N, 6w, h/2, w/2)
        up = functional.interpolate(self.lateral(deep), scale_factor=2.0, mode="nearest")
        merged = self.merge(middle + up)  # (N, 4w, h, w)
        texture = self.texture(merged)  # (N, 6w, h, w)
        # What a cell is lies all over it: averages over 24 and 40 px around the place, and of the
        # deep features over 48 px.
        near = functional.avg_pool2d(texture, 3, 1, 1)
        wide = functional.avg_pool2d(texture, 5, 1, 2)
        around = functional.interpolate(
            functional.avg_pool2d(deep, 3, 1, 1), scale_factor=2.0, mode="bilinear"
        )
        kinds = self.kind(self.hide(torch.cat((near, wide, around), 1)))
        return self.score(merged), self.box(merged), kinds


class ExportedDetector(nn.Module):
    """The detector as it is exported: uint8 images in, decoded boxes out."""

    def __init__(self, detector: SmearDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode.

        Parameters
        ----------
        image : (N, H, W, 3) uint8

        Returns
        -------
        tuple
            ``box_px`` (N, A, 4) x0, y0, x1, y1 in tile pixels; ``score`` (N, A), 0 but at local
            peaks; ``type_probability`` (N, A, K).
        """
        score, box, kinds = self.detector(image.permute(0, 3, 1, 2).float() / 255.0)
        score = torch.sigmoid(score)
        peak = score >= functional.max_pool2d(score, 3, 1, 1)
        boxes = decode_boxes(box)  # (N, 4, h, w)
        return (
            boxes.flatten(2).transpose(1, 2),
            (score * peak).flatten(1),
            torch.softmax(kinds, 1).flatten(2).transpose(1, 2),
        )


def decode_boxes(log_distance: Tensor) -> Tensor:
    """Log distances (N, 4, h, w) → boxes x0, y0, x1, y1 (N, 4, h, w) in image pixels."""
    height, width = log_distance.shape[-2:]
    x = (torch.arange(width, device=log_distance.device) + 0.5) * STRIDE
    y = (torch.arange(height, device=log_distance.device) + 0.5) * STRIDE
    distance = torch.exp(log_distance.float().clamp(max=6.0))
    left, top, right, bottom = distance.unbind(1)
    return torch.stack(
        (x[None, None] - left, y[None, :, None] - top, x[None, None] + right, y[None, :, None] + bottom),
        1,
    )
