"""Training of ``choi2017``: crops made even in number by shifting, then eight ways round.

Choi et al. (2017), "Data oversampling and augmentation" and "Training of CNN". What the paper does
not say is ours: stochastic gradient descent with momentum 0.9, weight decay 5e-4 and a learning
rate that falls from 0.02 along a cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.records import Int64, UInt8
from models.training.dual_stage_cnn import CROP_PX, UM_PER_PX, MaturationCnn

BATCH = 40
PER_TYPE = 600  # crops of each type after oversampling
SHIFT_PX = 6
WAYS = 8
LEARNING_RATE = 0.02
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


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


def crops_of(images: Sequence[UInt8], kinds: Sequence[int], um_per_px: Sequence[float]) -> Crops:
    """Cut the middle out of images of single cells, at the network's scale.

    Parameters
    ----------
    images
        (H, W, 3) uint8 each.
    kinds
        Index of the type of each.
    um_per_px
        Scale of each.
    """
    rgb = np.stack([_middle(*each) for each in zip(images, um_per_px, strict=True)])
    return Crops(torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.tensor(kinds))


def as_from_a_slide(images: Sequence[UInt8], um_per_px: Sequence[float]) -> list[UInt8]:
    """The images as a slide of 0.25 µm per px shows them, at 0.25 µm per px."""
    return [_resized(image, scale / 0.25) for image, scale in zip(images, um_per_px, strict=True)]


def oversampled(kind: Tensor, per_type: int) -> Tensor:
    """Rows of crops such that each type comes `per_type` times: (types · per_type,) int64."""
    rows = []
    for each in kind.unique():
        own = (kind == each).nonzero()[:, 0]
        rows.append(own.repeat(-(-per_type // len(own)))[:per_type])
    return torch.cat(rows)


def batches(crops: Crops, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: (40, 3, 96, 96) float, 0 to 1, and their kinds (40,).

    Each pass shows every crop of the oversampled set once, shifted by up to 6 px and turned one of
    eight ways.
    """
    random = torch.Generator().manual_seed(seed)
    rows = oversampled(crops.kind, PER_TYPE)
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=random)]
        for chosen in shuffled.split(BATCH):
            if len(chosen) < BATCH:
                break
            shift = torch.randint(0, 2 * SHIFT_PX + 1, (BATCH, 2), generator=random)
            way = torch.randint(0, WAYS, (BATCH,), generator=random)
            images = [
                _shifted(crops.rgb[row], shift[place], int(way[place]))
                for place, row in enumerate(chosen)
            ]
            yield torch.stack(images).float() / 255, crops.kind[chosen]


def train_maturation_cnn(
    crops: Crops, types: int, width: float, steps: int, seed: int
) -> MaturationCnn:
    """Train one network from scratch.

    Parameters
    ----------
    crops
        Of kinds 0 to `types` − 1.
    types
    width
        See :class:`.dual_stage_cnn.MaturationCnn`.
    steps
        Batches of 40; the paper's 150 epochs of 48 000 images are 180 000.
    seed
    """
    torch.manual_seed(seed)
    model = MaturationCnn(types, width)
    model.normalise_as(crops.centred())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for _, (image, kind) in zip(range(steps), batches(crops, seed), strict=False):
        loss = functional.cross_entropy(model(image), kind)  # eq. 1 to 3
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    return model


def _middle(image: UInt8, um_per_px: float) -> UInt8:
    scaled = image if um_per_px == UM_PER_PX else _resized(image, um_per_px / UM_PER_PX)
    wanted = CROP_PX + 2 * SHIFT_PX
    height, width = scaled.shape[:2]
    # Reflected where the image is smaller; never from outside a published one.
    around = [max(0, wanted - length) for length in (height, width)]
    padded = np.pad(
        scaled,
        [(extra // 2, extra - extra // 2) for extra in around] + [(0, 0)],
        mode="reflect",
    )
    top, left = ((length - wanted) // 2 for length in padded.shape[:2])
    cut: UInt8 = padded[top : top + wanted, left : left + wanted]
    return cut


def _resized(image: UInt8, factor: float) -> UInt8:
    size = tuple(max(1, round(length * factor)) for length in image.shape[1::-1])
    resample = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, resample))


def _shifted(rgb: Tensor, shift: Tensor, way: int) -> Tensor:
    top, left = int(shift[0]), int(shift[1])
    cut = rgb[:, top : top + CROP_PX, left : left + CROP_PX]
    turned = torch.rot90(cut, way % 4, (1, 2))
    return turned.flip(2) if way >= 4 else turned
