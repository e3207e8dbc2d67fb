"""``wang2022``: the modified Cascade R-CNN of Wang et al. (2022).

Image → ResNet-101 with a feature pyramid → proposals → three heads, each refining the boxes of the
one before and trained on those that overlap a truth by 0.5, 0.6 and 0.7 (§3.2). The same network,
trained twice, finds particles and trails at low magnification and cells at 0.25 µm per px.

Shape legend: B images, P proposals of each, R = B · P, K types, C channels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.box_losses import soft_sampling_loss, soft_sampling_weight
from models.training.boxes import clipped, decode, encode, pairwise_iou
from models.training.detector import Truth, in_full_precision, ranked
from models.training.proposing_pyramid import (
    ProposingPyramid,
    PyramidSettings,
    proposing_pyramid,
)
from models.training.region_proposals import sampled
from models.training.resnet_fpn import CHANNELS
from models.training.roi_features import connected_layers, roi_features

CONNECTED = 1024
STAGE_IOUS = (0.5, 0.6, 0.7)
SAMPLES, POSITIVE_SHARE = 512, 0.25
BOX_WEIGHT = 1.0  # λ
SUPPRESSION_IOU = 0.5
# Later heads regress smaller offsets (Cai and Vasconcelos 2019, §5.1).
_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
# Of the ImageNet data the paper starts from (eq. 16): blue, green, red, 0 to 255.
MEAN_BGR = (104.0, 117.0, 124.0)


class Head(nn.Module):
    """Two fully connected layers, K + 1 logits (the last is background) and one box."""

    def __init__(self, channels: int, connected: int, types: int) -> None:
        super().__init__()
        self.connected = connected_layers(channels, connected)
        self.score = nn.Linear(connected, types + 1)
        self.offset = nn.Linear(connected, 4)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C · 49) → logits (R, K + 1), offsets (R, 4)."""
        hidden = self.connected(features)
        return in_full_precision(self.score, hidden), in_full_precision(self.offset, hidden)


class CascadeRcnn(nn.Module):
    """The detector of Wang et al. (2022), for cells or for regions.

    Parameters
    ----------
    pyramid
    heads
        One for each of :data:`STAGE_IOUS`.
    """

    blue_first = True  # of :mod:`.public_names`

    def __init__(self, pyramid: ProposingPyramid, heads: Sequence[Head]) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.heads = nn.ModuleList(heads)

    def losses(self, image: Tensor, truth: Sequence[Truth]) -> dict[str, Tensor]:
        """Terms of the loss, see :class:`.detector.Detector`."""
        terms, proposed = self.pyramid.learn(image, truth)
        for own, candidate, cells in proposed.with_truth(truth):
            for stage, (head, iou) in enumerate(zip(self.heads, STAGE_IOUS, strict=True)):
                kind_loss, box_loss, candidate = _stage_losses(  # noqa: PLW2901 - refined
                    head, own, candidate, cells, iou, stage
                )
                for name, value in ((f"kind_{stage}", kind_loss), (f"box_{stage}", box_loss)):
                    terms[name] = terms.get(name, 0) + value / len(truth)
        return terms

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and type probabilities, see :class:`.detector.Detector`.

        Probabilities are the mean of the three heads' (Cai and Vasconcelos 2019, §4.3); the score
        is one minus that of the background, and the types' are shares of it.
        """
        height, width = image.shape[-2:]
        proposed = self.pyramid(image)
        box = proposed.box
        total: list[Tensor] = []
        for stage, head in enumerate(self.heads):
            logit, offset = head(roi_features(proposed.maps, box))
            box = decode(offset.unflatten(0, box.shape[:2]), box, _WEIGHTS[stage])
            box = clipped(box, width, height)
            total.append(torch.softmax(logit, 1))
        probability = torch.stack(total).mean(0).unflatten(0, box.shape[:2])
        score = (1 - probability[..., -1]) * (proposed.score > 0)
        kinds = probability[..., :-1]
        kinds = kinds / kinds.sum(-1, keepdim=True).clamp(min=1e-9)
        return ranked(box, score, kinds, SUPPRESSION_IOU)


def cascade_rcnn(
    types: int,
    channels: int = CHANNELS,
    connected: int = CONNECTED,
    **pyramid: Unpack[PyramidSettings],
) -> CascadeRcnn:
    """Put the network together; the paper's is what the defaults give.

    Parameters
    ----------
    types
        K: sixteen cell types, or one kind of region.
    channels
        C of the pyramid.
    connected
        Width of the heads' fully connected layers.
    **pyramid
        See :func:`.proposing_pyramid.proposing_pyramid`.
    """
    return CascadeRcnn(
        proposing_pyramid(_normalised, channels=channels, **pyramid),
        [Head(channels, connected, types) for _ in STAGE_IOUS],
    )


def _stage_losses(
    head: nn.Module,
    maps: Sequence[Tensor],
    candidate: Tensor,
    cells: Truth,
    iou: float,
    stage: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one head on one image, and its refined candidates for the next one.

    The paper weighs the boxes' loss by eq. 15. As its text wants background that may hold an
    unmarked cell to weigh less, the classification of background is weighted by it, too, as where
    the paper takes it from (Wu et al. 2019).
    """
    overlap, nearest = _nearest(candidate, cells.box)
    positive, negative = sampled(
        (overlap >= iou).nonzero()[:, 0],
        (overlap < iou).nonzero()[:, 0],
        SAMPLES,
        POSITIVE_SHARE,
    )
    rows = torch.cat((positive, negative))
    logit, offset = head(roi_features(maps, candidate[rows][None]))
    kind = torch.full((len(rows),), logit.shape[1] - 1, device=rows.device)
    if len(positive):
        kind[: len(positive)] = cells.kind[nearest[positive]]
    weight = soft_sampling_weight(overlap[rows])
    weight[: len(positive)] = 1
    each = functional.cross_entropy(logit, kind, reduction="none")
    kind_loss = (weight * each).sum() / max(len(rows), 1)
    box_loss = offset.sum() * 0
    if len(positive):
        wanted = encode(cells.box[nearest[positive]], candidate[positive], _WEIGHTS[stage])
        box_loss = box_loss + BOX_WEIGHT * soft_sampling_loss(
            offset[: len(positive)], wanted, overlap[positive]
        ) / max(len(rows), 1)
    with torch.no_grad():
        refined = decode(offset, candidate[rows], _WEIGHTS[stage])
        refined = refined[((refined[:, 2:] - refined[:, :2]) > 1).all(1)]
    return kind_loss, box_loss, torch.cat((refined, cells.box))


def _nearest(candidate: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap with the nearest truth, and which that is; 0 and 0 without any."""
    if not len(box):
        nothing = torch.zeros(len(candidate), device=candidate.device)
        return nothing, nothing.long()
    overlap, nearest = pairwise_iou(candidate, box).max(1)
    return overlap, nearest


def _normalised(image: Tensor) -> Tensor:
    """RGB, 0 to 1 → blue, green, red, 0 to 255, less ImageNet's mean (eq. 16)."""
    return image.flip(1) * 255 - image.new_tensor(MEAN_BGR)[:, None, None]
