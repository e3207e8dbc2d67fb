"""``liu2022``: Faster R-CNN whose classifier learns by ranking (Liu et al. 2022).

Image → ResNet-101 with a feature pyramid → proposals → RoIAlign of 7 × 7 → two fully connected
layers → K scores and a box for each type. Proposals are not sampled: the generalised score-ranking
loss ranks all of them (eq. 10 to 14).

Shape legend: B images, P proposals of each, R = B · P, K types, C channels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.boxes import clipped, decode, encode, pairwise_iou
from models.training.detector import Truth, in_full_precision, ranked
from models.training.proposing_pyramid import (
    ProposingPyramid,
    PyramidSettings,
    proposing_pyramid,
)
from models.training.ranking_loss import ranking_loss
from models.training.resnet_fpn import CHANNELS
from models.training.roi_features import connected_layers, roi_features

CONNECTED = 1024
POSITIVE_IOU = 0.5
LEAST_QUALITY = 1e-3
SORTING_WEIGHT = 0.5  # λ of eq. 13 and 14
# Ours, in logits: with the paper's plain step the scores of cells and of ground end up a hair apart
# (all between 0.0178 and 0.0184 after 900 steps), and what was learnt does not carry over. Scores
# were rounded to bfloat16 on GPUs then; without that the plain step was not tried again.
MARGIN = 1.0
BOX_WEIGHT = 1.0  # λ of eq. 9
SUPPRESSION_IOU = 0.5
# Offsets are some tenths of a box: scaled to spread 1, as is usual since Girshick 2015.
_WEIGHT = (10.0, 10.0, 5.0, 5.0)
# Colour of ordinary smears, 0 to 1.
_MEAN, _SPREAD = 0.70, 0.25


class Head(nn.Module):
    """Two fully connected layers, K logits, and a box for each type."""

    def __init__(self, channels: int, connected: int, types: int) -> None:
        super().__init__()
        self.connected = connected_layers(channels, connected)
        self.score = nn.Linear(connected, types)
        self.offset = nn.Linear(connected, 4 * types)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.constant_(self.score.bias, -4.0)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C · 49) → logits (R, K), offsets (R, K, 4)."""
        hidden = self.connected(features)
        score = in_full_precision(self.score, hidden)
        return score, in_full_precision(self.offset, hidden).unflatten(1, (-1, 4))


class FasterRcnn(nn.Module):
    """The detector of Liu et al. (2022)."""

    def __init__(self, pyramid: ProposingPyramid, head: Head) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.head = head

    def losses(self, image: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
        """Terms of the loss, see :class:`.detector.Detector`."""
        terms, proposed = self.pyramid.learn(image, truth)
        ranking, regression = image.new_zeros(()), image.new_zeros(())
        for own, candidate, cells in proposed.with_truth(truth):
            score, offset = self.head(roi_features(own, candidate[None]))
            ranking_term, box_term = _head_losses(score, offset, candidate, cells)
            ranking, regression = ranking + ranking_term, regression + box_term
        return {**terms, "ranking": ranking / len(truth), "box": regression / len(truth)}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and type probabilities, see :class:`.detector.Detector`.

        The score is the sigmoid of the best type's; probabilities are a softmax over the types.
        """
        height, width = image.shape[-2:]
        proposed = self.pyramid(image)
        box = proposed.box
        logit, offset = self.head(roi_features(proposed.maps, box))  # (R, K), (R, K, 4)
        best, kind = logit.max(1)
        own = torch.gather(offset, 1, kind[:, None, None].expand(-1, -1, 4))[:, 0]
        found = clipped(decode(own, box.flatten(0, 1), _WEIGHT), width, height)
        score = torch.sigmoid(best).unflatten(0, box.shape[:2]) * (proposed.score > 0)
        return ranked(
            found.unflatten(0, box.shape[:2]),
            score,
            torch.softmax(logit, 1).unflatten(0, box.shape[:2]),
            SUPPRESSION_IOU,
        )


def faster_rcnn(
    types: int,
    channels: int = CHANNELS,
    connected: int = CONNECTED,
    **pyramid: Unpack[PyramidSettings],
) -> FasterRcnn:
    """Put the network together; the paper's is what the defaults give.

    Parameters
    ----------
    types
        K.
    channels
        C of the pyramid.
    connected
        Width of the two fully connected layers.
    **pyramid
        See :func:`.proposing_pyramid.proposing_pyramid`.
    """
    return FasterRcnn(
        proposing_pyramid(_normalised, channels=channels, **pyramid),
        Head(channels, connected, types),
    )


def _normalised(image: Tensor) -> Tensor:
    return (image - _MEAN) / _SPREAD


def answered_iou(offset: Tensor, candidate: Tensor, target: Tensor) -> Tensor:
    """y of eq. 11 to 14: "the IOU value of the prediction box and GTbox", (P,).

    Of the box that is answered, not of the proposal; above 0, as y = 0 is a negative.

    Parameters
    ----------
    offset, candidate, target : (P, 4)
        Answers, the proposals that they are relative to, and the true boxes.
    """
    predicted = decode(offset.detach(), candidate, _WEIGHT)
    return pairwise_iou(predicted, target).diagonal().clamp(min=LEAST_QUALITY)


def _head_losses(
    logit: Tensor, offset: Tensor, candidate: Tensor, cells: Truth
) -> tuple[Tensor, Tensor]:
    """Ranking and box loss of one image's candidates (R, 4): eq. 9 to 14."""
    quality = torch.zeros_like(logit)
    if not len(cells.box):
        return ranking_loss(
            logit.flatten(), quality.flatten(), SORTING_WEIGHT, MARGIN
        ), offset.sum() * 0
    overlap, nearest = pairwise_iou(candidate, cells.box).max(1)
    positive = (overlap >= POSITIVE_IOU).nonzero()[:, 0]
    kind, target = cells.kind[nearest[positive]], cells.box[nearest[positive]]
    quality[positive, kind] = answered_iou(offset[positive, kind], candidate[positive], target)
    ranking = ranking_loss(logit.flatten(), quality.flatten(), SORTING_WEIGHT, MARGIN)
    wanted = encode(target, candidate[positive], _WEIGHT)
    each = functional.smooth_l1_loss(offset[positive, kind], wanted, reduction="none").sum(1)
    return ranking, BOX_WEIGHT * each.mean()
