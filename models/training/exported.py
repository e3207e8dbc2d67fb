"""The trained networks as a package holds them: uint8 images in, what a stage answers out.

Shape legend: N images of H × W px, A answers per image, K types, S the stride of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.training.dual_stage_cnn import CROP_PX


class ExportedCells(nn.Module):
    """A detector stage: cells of every image, with their types."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, H, W, 3) uint8 → box_px (N, A, 4), score (N, A), type_probability (N, A, K)."""
        found: tuple[Tensor, Tensor, Tensor] = self.detector(_scaled(image))
        return found


class ExportedRegions(nn.Module):
    """A localiser stage from a detector of regions: its boxes, drawn onto a map.

    Parameters
    ----------
    detector
        Of one type.
    stride
        S.
    """

    def __init__(self, detector: nn.Module, stride: int) -> None:
        super().__init__()
        self.detector = detector
        self.stride = stride

    def forward(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 → probability (N, H / S, W / S): of the best box over each place."""
        box, score, _ = self.detector(_scaled(image))
        # As many places as the image has squares: counted on a map of that size.
        places = nn.functional.avg_pool2d(image[..., 0].float()[:, None], self.stride)[:, 0]
        rows = (torch.arange(places.shape[1], device=image.device) + 0.5) * self.stride
        columns = (torch.arange(places.shape[2], device=image.device) + 0.5) * self.stride
        across = (columns > box[..., 0, None]) & (columns < box[..., 2, None])  # (N, A, w)
        down = (rows > box[..., 1, None]) & (rows < box[..., 3, None])  # (N, A, h)
        over = down[..., None] & across[..., None, :]  # (N, A, h, w)
        probability: Tensor = (over * score[..., None, None]).amax(1)
        return probability


class ExportedTiles(nn.Module):
    """A localiser stage from a classifier of tiles: one value for each image."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 → probability (N, 1, 1) that the tile is appropriate."""
        return torch.softmax(self.classifier(_scaled(image)), 1)[:, 1, None, None]


class ExportedTypes(nn.Module):
    """A classifier stage: the type of the cell in the middle of each crop."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """(N, 96, 96, 3) uint8 → type_probability (N, K)."""
        crop = image.narrow(1, 0, CROP_PX).narrow(
            2, 0, CROP_PX
        )  # says the size, which never varies
        probability: Tensor = self.classifier(_scaled(crop))
        return probability


def _scaled(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2).float() / 255
