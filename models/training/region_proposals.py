"""The region proposal network of Faster R-CNN (Ren et al. 2015) over a feature pyramid.

Shape legend: B images, P proposals per image, N anchors of an image over all levels, M true boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.boxes import anchors, clipped, decode, encode, pairwise_iou
from models.training.detector import Truth, best_of, in_full_precision, surviving
from models.training.resnet_fpn import STRIDES

# Two sides per level, half an octave apart, in three shapes. Lin et al. 2017, §4.1 have one side; a
# cell whose size lies between two of those finds no anchor that overlaps it by 0.7. Cells have 20
# to 212 px at 0.25 µm per px.
SIDES_PX = (24.0, 48.0, 96.0, 192.0, 384.0)
_HALF_OCTAVE = 2**0.5
RATIOS = (0.5, 1.0, 2.0)
_ANCHORS = 2 * len(RATIOS)
# Ren et al. 2015, §3.1.2 and 3.1.3.
FOREGROUND_IOU, BACKGROUND_IOU = 0.7, 0.3
SAMPLES, POSITIVE_SHARE = 256, 0.5
PROPOSAL_IOU = 0.7
CANDIDATES = 1000  # per level and, at least, over all levels before suppression
_UNIT = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Anchored:
    """What the network says of each anchor, level by level.

    Attributes
    ----------
    logits : (B, N_l) each
    offsets : (B, N_l, 4) each
    anchors : (N_l, 4) each
    """

    logits: Sequence[Tensor]
    offsets: Sequence[Tensor]
    anchors: Sequence[Tensor]


class RegionProposals(nn.Module):
    """Which anchors hold something, and where exactly.

    Parameters
    ----------
    channels
        Of the pyramid's maps.
    proposals
        P.
    """

    def __init__(self, channels: int, proposals: int = 1000) -> None:
        super().__init__()
        self.proposals = proposals
        self.shared = nn.Conv2d(channels, channels, 3, 1, 1)
        self.objectness = nn.Conv2d(channels, _ANCHORS, 1)
        self.offset = nn.Conv2d(channels, 4 * _ANCHORS, 1)
        for layer in (self.shared, self.objectness, self.offset):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Anchored:
        """Maps of the pyramid, (B, C, h, w) each → their anchors."""
        logits, offsets, references = [], [], []
        for each, stride, side in zip(maps, STRIDES, SIDES_PX, strict=True):
            shared = functional.relu(self.shared(each))
            logit = in_full_precision(self.objectness, shared)
            logits.append(logit.permute(0, 2, 3, 1).flatten(1))
            offset = in_full_precision(self.offset, shared).permute(0, 2, 3, 1)
            offsets.append(offset.flatten(1).unflatten(1, (-1, 4)))
            height, width = each.shape[-2:]
            sides = (side, side * _HALF_OCTAVE)
            references.append(anchors(height, width, stride, sides, RATIOS, each.device))
        return Anchored(logits, offsets, references)

    @torch.no_grad()
    def propose(self, anchored: Anchored, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) and their scores (B, P), the best first; score 0 fills up.

        Parameters
        ----------
        anchored
        size : (height, width)
            Of the images, in px.
        """
        boxes, scores = [], []
        for logit, offset, reference in zip(
            anchored.logits, anchored.offsets, anchored.anchors, strict=True
        ):
            best, place = best_of(logit, CANDIDATES)
            chosen = torch.gather(offset, 1, place[..., None].expand(-1, -1, 4))
            boxes.append(decode(chosen, reference[place], _UNIT))
            scores.append(torch.sigmoid(best))
        box = clipped(torch.cat(boxes, 1), size[1], size[0])
        score = torch.cat(scores, 1)
        side = box[..., 2:] - box[..., :2]
        score = score * (side > 1).all(-1)
        score, place = best_of(score, max(CANDIDATES, 2 * self.proposals))
        box = torch.gather(box, 1, place[..., None].expand(-1, -1, 4))
        score = score * surviving(box, score, PROPOSAL_IOU)
        score, place = best_of(score, self.proposals)
        return torch.gather(box, 1, place[..., None].expand(-1, -1, 4)), score

    def losses(self, anchored: Anchored, truth: Sequence[Truth]) -> dict[str, Tensor]:
        """Loss of anchors (Ren et al. 2015, eq. 1; Liu et al. 2022, eq. 8): two terms ()."""
        logit = torch.cat(list(anchored.logits), 1)
        offset = torch.cat(list(anchored.offsets), 1)
        reference = torch.cat(list(anchored.anchors))
        objectness, regression = logit.sum() * 0, offset.sum() * 0
        for each, shift, cells in zip(logit, offset, truth, strict=True):
            positive, negative, nearest = _matched(reference, cells.box)
            positive, negative = sampled(positive, negative, SAMPLES, POSITIVE_SHARE)
            rows = torch.cat((positive, negative))
            target = torch.zeros(len(rows), device=each.device)
            target[: len(positive)] = 1
            objectness = objectness + functional.binary_cross_entropy_with_logits(
                each[rows], target, reduction="sum"
            ) / max(len(rows), 1)
            if len(positive):
                wanted = encode(cells.box[nearest[positive]], reference[positive], _UNIT)
                regression = regression + functional.smooth_l1_loss(
                    shift[positive], wanted, beta=1 / 9, reduction="sum"
                ) / max(len(rows), 1)
        return {
            "proposal_objectness": objectness / len(truth),
            "proposal_box": regression / len(truth),
        }


def _matched(reference: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of positive and negative anchors, and each anchor's nearest true box."""
    if not len(box):
        everything = torch.arange(len(reference), device=reference.device)
        return everything[:0], everything, torch.zeros_like(everything)
    overlap = pairwise_iou(reference, box)  # (N, M)
    best, nearest = overlap.max(1)
    positive = best >= FOREGROUND_IOU
    # The best anchors of a true box are positive however little they overlap it.
    most = overlap.max(0).values.clamp(min=1e-3)
    owner = (overlap >= most - 1e-6).nonzero()
    positive[owner[:, 0]] = True
    nearest[owner[:, 0]] = owner[:, 1]
    negative = (best < BACKGROUND_IOU) & ~positive
    return positive.nonzero()[:, 0], negative.nonzero()[:, 0], nearest


def sampled(
    positive: Tensor, negative: Tensor, samples: int, positive_share: float
) -> tuple[Tensor, Tensor]:
    """Random rows of both, `samples` in all, at most `positive_share` of them positive."""
    kept = positive[torch.randperm(len(positive), device=positive.device)]
    kept = kept[: int(samples * positive_share)]
    rest = negative[torch.randperm(len(negative), device=negative.device)]
    return kept, rest[: samples - len(kept)]
