"""Boxes for detectors, in PyTorch: anchors, offsets, overlaps, suppression, RoIAlign.

What torchvision would give, for machines where it does not load. All but the suppression exports
to ONNX.

Shape legend: boxes are (…, 4) x0, y0, x1, y1 in image pixels, with outer corners: a box of one
pixel is 1 wide. N, M counts of boxes; B images, C channels, H × W the size of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# exp() of a larger offset would overflow; 1000/16 is detectron2's and the papers' customary bound.
_LARGEST_LOG_SCALE = math.log(1000.0 / 16)


def areas(box: Tensor) -> Tensor:
    """(…, 4) → (…,); a box turned inside out has none."""
    side = (box[..., 2:] - box[..., :2]).clamp(min=0)
    return side[..., 0] * side[..., 1]


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box with every other: (N, 4), (M, 4) → (N, M)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    side = (high - low).clamp(min=0)
    common = side[..., 0] * side[..., 1]
    union = areas(first)[:, None] + areas(second)[None, :] - common
    return torch.where(union > 0, common / union.clamp(min=1e-12), 0)


def encode(box: Tensor, reference: Tensor, weight: tuple[float, float, float, float]) -> Tensor:
    """Offsets that lead from `reference` to `box` (Girshick et al. 2014, eq. 6 to 9).

    Parameters
    ----------
    box, reference : (N, 4)
    weight
        Of x, y, width and height: a cascade's later heads regress smaller offsets.

    Returns
    -------
    (N, 4)
        dx, dy in sides of the reference, log dw, log dh; all times `weight`.
    """
    size, reference_size = _size(box), _size(reference)
    shift = (_centre(box) - _centre(reference)) / reference_size
    return torch.cat((shift, (size / reference_size).log()), -1) * box.new_tensor(weight)


def decode(offset: Tensor, reference: Tensor, weight: tuple[float, float, float, float]) -> Tensor:
    """Undo :func:`encode`: offsets (…, 4) and references (…, 4) → boxes (…, 4)."""
    offset = offset / offset.new_tensor(weight)
    size = _size(reference)
    centre = _centre(reference) + offset[..., :2] * size
    half = size * offset[..., 2:].clamp(max=_LARGEST_LOG_SCALE).exp() / 2
    return torch.cat((centre - half, centre + half), -1)


def clipped(box: Tensor, width: int, height: int) -> Tensor:
    """Boxes (…, 4) cut at the edges of their image."""
    x, y = box[..., 0::2].clamp(0, width), box[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)


def anchors(
    height: int,
    width: int,
    stride: int,
    sides_px: Sequence[float],
    ratios: Sequence[float],
    device: torch.device | None = None,
) -> Tensor:
    """Anchors of one feature map.

    Parameters
    ----------
    height, width
        Of the map.
    stride
        Image pixels per place of the map.
    sides_px
        Sides of square anchors.
    ratios
        Height over width; the area stays that of the square.

    Returns
    -------
    (height · width · sides · ratios, 4)
        Row by row, at each place all sides of the first ratio, then of the next; centred on the
        place's centre.
    """
    side = torch.tensor(sides_px, dtype=torch.float32, device=device)
    root = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()[:, None]
    half = torch.stack((side / root, side * root), -1).flatten(0, 1) / 2  # (A, 2)
    shape = torch.cat((-half, half), 1)
    x = (torch.arange(width, device=device) + 0.5) * stride
    y = (torch.arange(height, device=device) + 0.5) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centre = torch.stack((columns, rows, columns, rows), -1).reshape(-1, 1, 4)
    return (centre + shape).reshape(-1, 4)


def suppress(box: Tensor, score: Tensor, threshold: float, by_distance: bool = False) -> Tensor:
    """Greedy non-maximum suppression.

    Parameters
    ----------
    box : (N, 4)
    score : (N,)
    threshold
        A box yields to a better one that overlaps it more than this.
    by_distance
        Compare distance IoU instead of IoU, so that neighbours that overlap but have different
        centres both stay (Zheng et al. 2020, eq. 12).

    Returns
    -------
    (K,) int64
        Rows that stay, the best first.

    Notes
    -----
    Compares all pairs: some thousand boxes of one image, not those of a slide.
    """
    order = score.argsort(descending=True, stable=True)
    ranked = box[order]
    overlap = pairwise_iou(ranked, ranked)
    if by_distance:
        overlap = overlap - _centre_distance(ranked)
    rivals = (overlap > threshold).triu(1).cpu()
    stays = torch.ones(len(order), dtype=torch.bool)
    for rank in range(len(order)):
        if stays[rank]:
            stays &= ~rivals[rank]
    return order[stays.to(order.device)]


def suppress_by_type(
    box: Tensor, score: Tensor, kind: Tensor, threshold: float, by_distance: bool = False
) -> Tensor:
    """Like :func:`suppress`, but only boxes of the same `kind` (N,) are rivals."""
    if not len(box):
        return torch.zeros(0, dtype=torch.int64, device=box.device)
    apart = (box.max() - box.min()).clamp(min=0) * 4 + 1  # hulls of two kinds share nothing
    moved = box + (kind.to(box) * apart)[:, None]
    return suppress(moved, score, threshold, by_distance)


def roi_align(
    features: Tensor, box: Tensor, image: Tensor, size: int, stride: float, samples: int = 2
) -> Tensor:
    """Read a fixed grid of values out of each box of a feature map (He et al. 2017, §3).

    Parameters
    ----------
    features : (B, C, H, W)
    box : (N, 4)
        In image pixels.
    image : (N,) int64
        Which of the B images each box lies in.
    size
        Bins along each side.
    stride
        Image pixels per place of the map.
    samples
        Points along each side of a bin, whose bilinear values are averaged.

    Returns
    -------
    (N, C, size, size)
        Places outside the map repeat its border.
    """
    return pyramid_roi_align(
        (features,), box, image, torch.zeros_like(image), size, (stride,), samples
    )


def pyramid_roi_align(
    features: Sequence[Tensor],
    box: Tensor,
    image: Tensor,
    level: Tensor,
    size: int,
    strides: Sequence[float],
    samples: int = 2,
) -> Tensor:
    """Like :func:`roi_align`, each box out of one map of a pyramid (Lin et al. 2017, §4.2).

    Parameters
    ----------
    features
        Maps (B, C, H, W), L of them.
    box, image
    level : (N,) int64
        Map of each box, 0 to L − 1.
    size
    strides
        Image pixels per place of each map.
    samples
    """
    # Sizes are added to a tensor, not made into one: so they stay free in an exported graph.
    nought = torch.zeros((), dtype=torch.int64, device=box.device)
    heights = torch.stack([nought + each.shape[2] for each in features])
    widths = torch.stack([nought + each.shape[3] for each in features])
    lengths = heights * widths * features[0].shape[0]
    stride, height, width = box.new_tensor(strides)[level], heights[level], widths[level]  # (N,)
    start = (lengths.cumsum(0) - lengths)[level]
    count = size * samples
    step = (torch.arange(count, device=box.device, dtype=box.dtype) + 0.5) / count
    side = box[:, 2:] - box[:, :2]
    x = (box[:, 0, None] + side[:, 0, None] * step) / stride[:, None] - 0.5  # (N, count)
    y = (box[:, 1, None] + side[:, 1, None] * step) / stride[:, None] - 0.5
    right, x_low, x_high = _neighbours(x, width[:, None])
    down, y_low, y_high = _neighbours(y, height[:, None])
    # (places of all maps, C)
    places = torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in features])
    rows = [
        (start[:, None] + (image[:, None] * height[:, None] + at) * width[:, None])[:, :, None]
        for at in (y_low, y_high)
    ]
    columns = [at[:, None, :] for at in (x_low, x_high)]
    down, right = down[:, :, None, None], right[:, None, :, None]
    value = (
        places[rows[0] + columns[0]] * (1 - down) * (1 - right)
        + places[rows[0] + columns[1]] * (1 - down) * right
        + places[rows[1] + columns[0]] * down * (1 - right)
        + places[rows[1] + columns[1]] * down * right
    )  # (N, count, count, C)
    binned: Tensor = value.unflatten(1, (size, samples)).unflatten(3, (size, samples)).mean((2, 4))
    return binned.permute(0, 3, 1, 2)


def _neighbours(position: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share of the higher neighbour, and both neighbours' indices, of positions on lines."""
    last = length - 1
    position = torch.minimum(position.clamp(min=0), last.to(position))
    low = torch.minimum(position.detach().floor().long(), (last - 1).clamp(min=0))
    return position - low, low, torch.minimum(low + 1, last)


def _size(box: Tensor) -> Tensor:
    return box[..., 2:] - box[..., :2]


def _centre(box: Tensor) -> Tensor:
    return (box[..., :2] + box[..., 2:]) / 2


def _centre_distance(box: Tensor) -> Tensor:
    """Squared distance of centres over the squared diagonal of the common hull, (N, N)."""
    low = torch.minimum(box[:, None, :2], box[None, :, :2])
    high = torch.maximum(box[:, None, 2:], box[None, :, 2:])
    centre = _centre(box)
    apart = (centre[:, None] - centre[None]).square().sum(-1)
    return apart / (high - low).square().sum(-1).clamp(min=1e-12)
