"""What both R-CNNs have before their heads: a feature pyramid, and proposals from its maps.

Images are padded with black to a multiple of the largest stride before they are normalised.

Shape legend: B images, P proposals of each, C channels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from models.training.detector import Truth
from models.training.region_proposals import Anchored, RegionProposals
from models.training.resnet_fpn import CHANNELS, ResNetFpn, padded


class PyramidSettings(TypedDict, total=False):
    """Arguments of :func:`proposing_pyramid` that only the pyramid knows."""

    depth: int
    width: float
    proposals: int


@dataclass(frozen=True, slots=True, eq=False)
class Proposed:
    """Where something may lie, and what there is to see of it.

    Attributes
    ----------
    maps : (B, C, h, w) each
        The pyramid's.
    box : (B, P, 4)
        In px of the padded images, the best first.
    score : (B, P)
        0 fills up.
    """

    maps: Sequence[Tensor]
    box: Tensor
    score: Tensor

    def with_truth(self, truth: Sequence[Truth]) -> Iterator[tuple[list[Tensor], Tensor, Truth]]:
        """Maps (1, C, h, w), candidates (P + M, 4) and cells of one image after the other.

        True boxes are candidates, too: heads learn from them.
        """
        for number, (box, cells) in enumerate(zip(self.box, truth, strict=True)):
            own = [each[number, None] for each in self.maps]
            yield own, torch.cat((box, cells.box)), cells


class ProposingPyramid(nn.Module):
    """Backbone and region proposals as one part.

    Parameters
    ----------
    backbone
    proposals
        Of as many channels as the backbone's maps.
    normalised
        RGB, 0 to 1 → what the backbone takes.
    """

    def __init__(
        self,
        backbone: ResNetFpn,
        proposals: RegionProposals,
        normalised: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposals = proposals
        self.normalised = normalised

    def forward(self, image: Tensor) -> Proposed:
        """Images (B, 3, H, W) RGB, 0 to 1, of any size → what lies in them."""
        return self._proposed(*self._seen(image))

    def learn(self, image: Tensor, truth: Sequence[Truth]) -> tuple[dict[str, Tensor], Proposed]:
        """Return the terms of the proposals' own loss as well."""
        maps, anchored, size = self._seen(image)
        terms = self.proposals.losses(anchored, truth)
        return terms, self._proposed(maps, anchored, size)

    def _seen(self, image: Tensor) -> tuple[Sequence[Tensor], Anchored, Sequence[int]]:
        image = padded(image)
        maps = self.backbone(self.normalised(image))
        return maps, self.proposals(maps), image.shape[-2:]

    def _proposed(
        self, maps: Sequence[Tensor], anchored: Anchored, size: Sequence[int]
    ) -> Proposed:
        return Proposed(maps, *self.proposals.propose(anchored, size))


def proposing_pyramid(
    normalised: Callable[[Tensor], Tensor],
    depth: int = 101,
    width: float = 1.0,
    channels: int = CHANNELS,
    proposals: int = 1000,
) -> ProposingPyramid:
    """Put the parts together.

    Parameters
    ----------
    normalised
    depth, width
        Of the ResNet; the papers' are 101 and 1.
    channels
        C.
    proposals
        P.
    """
    return ProposingPyramid(
        ResNetFpn(depth, width, channels), RegionProposals(channels, proposals), normalised
    )
