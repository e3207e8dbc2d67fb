"""Crops of single cells as Choi et al. (2017) train on: even in number, shifted, eight ways round.

"Data oversampling and augmentation" there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.records import Int64, UInt8
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
    rgb = np.stack([_middle(image) for image in images])
    return Crops(torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.tensor(kinds))


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


def _middle(image: UInt8) -> UInt8:
    wanted = CROP_PX + 2 * SHIFT_PX
    height, width = image.shape[:2]
    # Reflected where the image is smaller; never from outside a published one.
    around = [max(0, wanted - length) for length in (height, width)]
    padded = np.pad(
        image,
        [(extra // 2, extra - extra // 2) for extra in around] + [(0, 0)],
        mode="reflect",
    )
    top, left = ((length - wanted) // 2 for length in padded.shape[:2])
    cut: UInt8 = padded[top : top + wanted, left : left + wanted]
    return cut


def _way(rng: np.random.Generator) -> tuple[int, int, int]:
    """Shift down and to the right, and one of eight ways to lay a square."""
    top, left = rng.integers(0, 2 * SHIFT_PX + 1, 2)
    return int(top), int(left), int(rng.integers(WAYS))


def _shifted(rgb: Tensor, top: int, left: int, way: int) -> Tensor:
    cut = rgb[:, top : top + CROP_PX, left : left + CROP_PX]
    turned = torch.rot90(cut, way % 4, (1, 2))
    return turned.flip(2) if way >= 4 else turned
