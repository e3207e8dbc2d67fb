"""The detector and classifier of ``demo-smear``: one network, one pass, two branches.

One branch finds cells and boxes; the other (:mod:`.type_branch`) says of each peak what type it is.
They share no weights, because the first learns from thousands of cells without a type and the
second from 479 with one.

Shape legend: N images, H × W their size, h × w = H/8 × W/8, A = h·w places, K types.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.training.crops import CROP_PX
from models.training.layers import MEAN, SPREAD, Residual, conv
from models.training.type_branch import TypeBranch

STRIDE = 8
PEAKS = 128  # of a tile: more cells than fit into 640 × 640 px without covering each other
WORTH_A_TYPE = 0.2  # score from which a peak is looked at; a manifest's threshold lies above
CROPS_AN_IMAGE = (64, PEAKS)  # of several images together: the first that suffices


class CellFinder(nn.Module):
    """A peak per cell and a box around it.

    Parameters
    ----------
    width
        Channels of the first layer; all others are multiples of it.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w, 2), conv(w, 2 * w, 2), Residual(2 * w))  # H/4
        self.middle = nn.Sequential(conv(2 * w, 4 * w, 2), Residual(4 * w), Residual(4 * w))  # H/8
        self.deep = nn.Sequential(conv(4 * w, 6 * w, 2), Residual(6 * w), Residual(6 * w))  # H/16
        self.lateral = nn.Conv2d(6 * w, 4 * w, 1)
        self.merge = conv(4 * w, 4 * w)
        self.score = nn.Sequential(conv(4 * w, 2 * w), nn.Conv2d(2 * w, 1, 1))
        self.box = nn.Sequential(conv(4 * w, 2 * w), nn.Conv2d(2 * w, 4, 1))
        nn.init.constant_(self.score[-1].bias, -3.0)  # type: ignore[arg-type]
        nn.init.constant_(self.box[-1].bias, 3.0)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs.

        Parameters
        ----------
        image : (N, 3, H, W) float
            0 to 1.

        Returns
        -------
        tuple
            Score logits (N, 1, h, w); log distances in px from a place's centre to left, top,
            right and bottom of its box (N, 4, h, w).
        """
        middle = self.middle(self.stem((image - MEAN) / SPREAD))  # (N, 4w, h, w)
        deep = self.lateral(self.deep(middle))  # (N, 4w, h/2, w/2)
        up = functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        merged = self.merge(middle + up)  # (N, 4w, h, w)
        return self.score(merged), self.box(merged)


class ExportedDetector(nn.Module):
    """The detector as it is exported: uint8 images in, boxes, scores and types out, in one pass.

    Peaks that may be cells get a type each, from the 64 × 64 px around the middle of their box:
    exactly what the type branch was trained on.
    """

    def __init__(self, finder: CellFinder, types: TypeBranch) -> None:
        super().__init__()
        self.finder = finder
        self.types = types

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find and type.

        Parameters
        ----------
        image : (N, H, W, 3) uint8
            At least 96 × 96 px.

        Returns
        -------
        tuple
            ``box_px`` (N, A, 4) x0, y0, x1, y1 in tile pixels; ``score`` (N, A), 0 but at local
            peaks; ``type_probability`` (N, A, K), 0 where the score is below 0.2; A = 128 peaks,
            strongest first.
        """
        score, log_distance = self.finder(image.permute(0, 3, 1, 2).float() / 255.0)
        score = torch.sigmoid(score)
        peak = score >= functional.max_pool2d(score, 3, 1, 1)
        strongest, place = torch.topk((score * peak).flatten(1), PEAKS)  # (N, A)
        boxes = decode_boxes(log_distance).flatten(2).transpose(1, 2)  # (N, h·w, 4)
        boxes = torch.gather(boxes, 1, place[..., None].expand(-1, -1, 4))
        # The strongest of all is always among them: no runtime likes an empty batch.
        least = torch.minimum(strongest.max(), torch.full((), WORTH_A_TYPE))
        worth = (strongest >= least).flatten().nonzero()[:, 0]  # (M,)
        torch._check(worth.shape[0] > 0)
        looked_at = filled_up(worth, image.shape[0])  # (L,)
        centre = ((boxes[..., :2] + boxes[..., 2:]) / 2).flatten(0, 1)[looked_at]
        kinds = torch.softmax(self.types(crops_around(image, looked_at // PEAKS, centre)), 1)
        kinds = kinds.narrow(0, 0, worth.shape[0])  # (M, K)
        everywhere = kinds.new_zeros(strongest.numel(), kinds.shape[1])
        everywhere = everywhere.index_put((worth,), kinds).unflatten(0, (-1, PEAKS))
        found = (strongest > 0)[..., None]  # what fills the list up is nothing at all
        return boxes * found, strongest, everywhere * found


def filled_up(worth: Tensor, images: int) -> Tensor:
    """Repeat the last peak of several images until the number of peaks is one of two.

    ONNX Runtime plans a convolution anew on a GPU whenever its input has another shape than before:
    0.4 s for each change of the number, where 16 images take 0.02 s. Smears have 10 to 40 cells an
    image. One image alone, which is what a CPU is given, keeps its number.

    Parameters
    ----------
    worth : (M,) int64
        At least one.
    images
        N.

    Returns
    -------
    (L,) int64
        L is the first of N × `CROPS_AN_IMAGE` that M does not exceed; M where N is 1.
    """
    count = worth.shape[0]
    sizes = torch.tensor(CROPS_AN_IMAGE, device=worth.device) * images
    suffices = torch.where(sizes >= count, sizes, sizes[-1]).amin(0)
    alone = torch.full_like(suffices, images) == 1
    size = int(torch.where(alone, torch.full_like(suffices, count), suffices).item())
    torch._check(size >= count)
    return worth[torch.arange(size, device=worth.device).clamp(max=count - 1)]


def crops_around(image: Tensor, number: Tensor, centre: Tensor) -> Tensor:
    """Cut crops out of images, at whole pixels; the border is repeated.

    Parameters
    ----------
    image : (N, H, W, 3) uint8
    number : (M,) int64
        Image of each crop.
    centre : (M, 2) float
        x, y in px.

    Returns
    -------
    (M, 3, 64, 64) float
        0 to 1.
    """
    _, height, width, _ = image.shape
    corner = torch.round(centre).long() - CROP_PX // 2
    step = torch.arange(CROP_PX, device=image.device)
    x = (corner[:, 0, None] + step).clamp(0, width - 1)  # (M, 64)
    y = (corner[:, 1, None] + step).clamp(0, height - 1)
    place = (number[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
    # As floats: on a GPU the runtime gathers no bytes, but takes them to the CPU and back.
    return image.flatten(0, 2).float()[place].permute(0, 3, 1, 2) / 255.0


def decode_boxes(log_distance: Tensor) -> Tensor:
    """Log distances (N, 4, h, w) → boxes x0, y0, x1, y1 (N, 4, h, w) in image pixels."""
    height, width = log_distance.shape[-2:]
    x = (torch.arange(width, device=log_distance.device) + 0.5) * STRIDE
    y = (torch.arange(height, device=log_distance.device) + 0.5) * STRIDE
    distance = torch.exp(log_distance.float().clamp(max=6.0))
    left, top, right, bottom = distance.unbind(1)
    return torch.stack(
        (
            x[None, None] - left,
            y[None, :, None] - top,
            x[None, None] + right,
            y[None, :, None] + bottom,
        ),
        1,
    )
