"""Crops of single cells as Choi et al. (2017) train on: even in number, shifted, eight ways round.

"Data oversampling and augmentation" there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.records import Float32, Int64, UInt8
from models.training.dual_stage_cnn import CROP_PX

SHIFT_PX = 6
WAYS = 8


@dataclass(frozen=True, slots=True)
class Crops:
    """Single cells, ready to be shifted.

    Attributes
    ----------
    rgb : (n, 3, 108, 108) uint8
        96 px and what shifting needs around; borders are reflected where an image ends.
    kind : (n,) int64
    """

    rgb: Tensor
    kind: Tensor

    def of(self, rows: Int64) -> Crops:
        """Return some of them."""
        return Crops(self.rgb[rows], self.kind[rows])

    def centred(self) -> Tensor:
        """The crops themselves, (n, 3, 96, 96) float, 0 to 1."""
        middle = slice(SHIFT_PX, SHIFT_PX + CROP_PX)
        return self.rgb[:, :, middle, middle].float() / 255


def crops_of(images: Sequence[UInt8], kinds: Sequence[int]) -> Crops:
    """Cut the middle out of images of single cells, at the network's scale.

    Parameters
    ----------
    images
        (H, W, 3) uint8 each, at the network's scale.
    kinds
        Index of the type of each.
    """
    rgb = np.stack([around(image, _whole(image)) for image in images])
    return Crops(torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.tensor(kinds))


def around(rgb: UInt8, box_px: Float32) -> UInt8:
    """What an image shows around the middle of a cell's box, and what shifting needs.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
        At the network's scale.
    box_px : (4,) float32
        x0, y0, x1, y1.

    Returns
    -------
    (108, 108, 3) uint8
        Reflected where the image ends; never from outside a published one.
    """
    wanted = CROP_PX + 2 * SHIFT_PX
    left, top = (int(sides) for sides in (box_px[:2] + box_px[2:] - wanted) / 2)
    height, width = rgb.shape[:2]
    cut = rgb[max(top, 0) : max(top + wanted, 0), max(left, 0) : max(left + wanted, 0)]
    lacking = [
        (max(-top, 0), max(top + wanted - height, 0)),
        (max(-left, 0), max(left + wanted - width, 0)),
    ]
    return np.pad(cut, [*lacking, (0, 0)], mode="reflect")


def batch(crops: Crops, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Crops (size, 3, 96, 96) float, 0 to 1, and their kinds (size,).

    Every type comes as often as any other, as after the paper's oversampling to 600 of each; every
    crop is shifted by up to 6 px and turned one of eight ways.
    """
    present = crops.kind.unique().numpy()
    kinds = crops.kind.numpy()
    rows = [int(rng.choice(np.flatnonzero(kinds == rng.choice(present)))) for _ in range(size)]
    images = [_shifted(crops.rgb[row], *_way(rng)) for row in rows]
    return torch.stack(images).float() / 255, crops.kind[rows]


def _whole(image: UInt8) -> Float32:
    return np.array([0, 0, image.shape[1], image.shape[0]], np.float32)


def _way(rng: np.random.Generator) -> tuple[int, int, int]:
    """Shift down and to the right, and one of eight ways to lay a square."""
    top, left = rng.integers(0, 2 * SHIFT_PX + 1, 2)
    return int(top), int(left), int(rng.integers(WAYS))


def _shifted(rgb: Tensor, top: int, left: int, way: int) -> Tensor:
    cut = rgb[:, top : top + CROP_PX, left : left + CROP_PX]
    turned = torch.rot90(cut, way % 4, (1, 2))
    return turned.flip(2) if way >= 4 else turned
