"""What all detectors that can be trained have in common.

Shape legend: B images of H × W px, A answers per image, K types. Boxes are x0, y0, x1, y1 in image
pixels, with outer corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.training.boxes import areas

# Rounds of suppression in an exported graph: how long a chain of boxes, each of which would have
# been suppressed by the one before, may be. In hundreds of boxes of cells they are 3 or 4 long.
_ROUNDS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The cells of one training image.

    Attributes
    ----------
    box : (M, 4) float32
    kind : (M,) int64
        0 to K − 1.
    """

    box: Tensor
    kind: Tensor


class Detector(Protocol):
    """A network that finds and classifies cells."""

    def losses(self, image: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
        """Terms () whose sum is minimised, for images (B, 3, H, W) RGB, 0 to 1."""
        ...

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, A, 4), scores (B, A) and type probabilities (B, A, K) of (B, 3, H, W).

        A row with score 0 is no answer.
        """
        ...


def in_full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer answers, in 32 bits also in mixed precision.

    bfloat16 knows six values between −4 and −3.9: scores to be ranked would be ties, and boxes
    placed by whole px.
    """
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())  # type: ignore[no-any-return]


def best_of(score: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest `most` of each row of (B, N), or all: values and places (B, ≤ most), sorted."""
    if torch.compiler.is_exporting():
        return torch.topk(score, torch.sym_min(score.shape[1], most), 1)
    return torch.topk(score, min(score.shape[1], most), 1)


def surviving(box: Tensor, score: Tensor, threshold: float, by_distance: bool = False) -> Tensor:
    """Greedy non-maximum suppression of several images at once, as a graph of fixed size.

    Parameters
    ----------
    box : (B, A, 4)
        Sorted by falling score.
    score : (B, A)
        0 marks what is no candidate.
    threshold
        A box yields to a better one that overlaps it more than this.
    by_distance
        Compare distance IoU (Zheng et al. 2020, eq. 12) instead of IoU.

    Returns
    -------
    (B, A) bool
        As :func:`models.training.boxes.suppress` decides, image by image.

    Notes
    -----
    Each round settles every box whose better rivals are settled, so sixteen rounds are exact for
    chains of up to sixteen boxes.
    """
    candidate = score > 0
    overlap = _pairwise_iou(box)
    if by_distance:
        overlap = overlap - _centre_distance(box)
    rival = (overlap > threshold).triu(1) & candidate[:, :, None] & candidate[:, None, :]
    stays = candidate
    beats = rival.to(box.dtype)
    for _ in range(_ROUNDS):
        beaten = torch.einsum("bi,bij->bj", stays.to(box.dtype), beats) > 0
        stays = candidate & ~beaten
    return stays


def ranked(
    box: Tensor,
    score: Tensor,
    probability: Tensor,
    threshold: float,
    by_distance: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort answers by score and suppress those that a better one overlaps, whatever their type.

    A box without area is no answer: what was found in the padding is cut to nothing.

    Parameters
    ----------
    box, score, probability : (B, A, 4), (B, A), (B, A, K)
    threshold, by_distance
        See :func:`surviving`.
    """
    score = score * (box[..., 2:] > box[..., :2]).all(-1)
    score, order = torch.sort(score, 1, descending=True)
    place = order[..., None]
    box = torch.gather(box, 1, place.expand(-1, -1, 4))
    probability = torch.gather(probability, 1, place.expand(-1, -1, probability.shape[2]))
    return box, score * surviving(box, score, threshold, by_distance), probability


def _pairwise_iou(box: Tensor) -> Tensor:
    """Overlap of the boxes of each image with each other, (B, A, 4) → (B, A, A)."""
    # One axis after the other: of a thousand boxes, each of these is megabytes.
    common = _shared(box[..., 0], box[..., 2]) * _shared(box[..., 1], box[..., 3])
    area = areas(box)
    union = area[:, :, None] + area[:, None, :] - common
    return common / union.clamp(min=1e-12)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """Length that spans from `low` to `high` (B, A) have in common, (B, A, A)."""
    end = torch.minimum(high[:, :, None], high[:, None])
    return (end - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0)


def _centre_distance(box: Tensor) -> Tensor:
    """Squared distance of centres over the squared diagonal of the common hull, (B, A, A)."""
    apart, diagonal = box.new_zeros(()), box.new_zeros(())
    for low, high in ((box[..., 0], box[..., 2]), (box[..., 1], box[..., 3])):
        centre = (low + high) / 2
        hull = torch.maximum(high[:, :, None], high[:, None]) - torch.minimum(
            low[:, :, None], low[:, None]
        )
        apart = apart + (centre[:, :, None] - centre[:, None]).square()
        diagonal = diagonal + hull.square()
    return apart / diagonal.clamp(min=1e-12)
