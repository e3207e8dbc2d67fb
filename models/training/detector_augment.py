"""Augmentation of whole training images with their boxes, as the papers list them.

Every function takes a sample and gives a new one. Boxes are cut at the image's edge; a cell of
which less than :data:`VISIBLE_SHARE` is left, after all that was done to it, is no longer asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance

from models.boxes import VISIBLE_SHARE, covered
from models.records import Bool, Float32, Float64, Int64, UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training image.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
    box_px : (M, 4) float32
        x0, y0, x1, y1.
    kind : (M,) int64
    shown : (M,) float64
        Share of the whole cell that is left: boxes may have been cut before.
    """

    rgb: UInt8
    box_px: Float32
    kind: Int64
    shown: Float64

    @classmethod
    def whole(cls, rgb: UInt8, box_px: Float32, kind: Int64) -> Sample:
        """Return a sample to which nothing was done yet."""
        return cls(rgb, box_px, kind, np.ones(len(kind)))


Draw = Callable[[], Sample]


def wang2022(rng: np.random.Generator, draw: Draw, size_px: int) -> Sample:
    """Rotation, contrast, saturation, brightness (Wang et al. 2022, §3.2).

    One of the eight ways always, any angle up to 30° in half of the samples, colour always.
    """
    sample = quarter_turned(rng, cropped(rng, draw(), size_px))
    if rng.random() < 0.5:
        sample = rotated(rng, sample, 30.0)
    return recoloured(rng, sample, 0.3)


def wang2022_regions(rng: np.random.Generator, draw: Draw, size_px: int) -> Sample:
    """The same of regions, but for angles between the eight ways.

    A trail is a bent band: what box holds it when it is turned, its box does not tell.
    """
    return recoloured(rng, quarter_turned(rng, cropped(rng, draw(), size_px)), 0.3)


def liu2022(rng: np.random.Generator, draw: Draw, size_px: int) -> Sample:
    """Flips, rotation, translation, Gaussian noise (Liu et al. 2022, "Data preprocessing").

    One of the eight ways always, any angle up to 30° in 0.3 of the samples, translation and noise
    in half of them each.
    """
    sample = quarter_turned(rng, cropped(rng, draw(), size_px))
    if rng.random() < 0.3:
        sample = rotated(rng, sample, 30.0)
    if rng.random() < 0.5:
        sample = translated(rng, sample, 0.2)
    return noisy(rng, sample, 8.0) if rng.random() < 0.5 else sample


def tayebi2021(rng: np.random.Generator, draw: Draw, size_px: int) -> Sample:
    """Mosaic or CutMix, flips, colours, contrast, noise (Tayebi et al. 2021, §4.2 and 4.4).

    Mosaic in 0.5 of the samples, CutMix in 0.15; the eight ways and colour always, contrast and
    noise in half of the samples each. Left out of what §4.2 lists: scaling, because a cell's size
    is part of what it is and the scale of a slide is known; and angles between the eight ways,
    which leave corners that no tile of a slide has.
    """
    chance = rng.random()
    if chance < 0.5:
        sample = mosaic(rng, [quarter_turned(rng, draw()) for _ in range(4)], size_px)
    elif chance < 0.65:
        first, second = (quarter_turned(rng, cropped(rng, draw(), size_px)) for _ in range(2))
        sample = cutmix(rng, first, second)
    else:
        sample = quarter_turned(rng, cropped(rng, draw(), size_px))
    sample = recoloured_hsv(rng, sample)
    if rng.random() < 0.5:
        sample = contrasted(rng, sample, 0.3)
    return noisy(rng, sample, 8.0) if rng.random() < 0.5 else sample


def quarter_turned(rng: np.random.Generator, sample: Sample) -> Sample:
    """One of the eight ways to lay a square: four turns, two flips (Choi et al. 2017, fig. 2)."""
    rgb, box = sample.rgb, sample.box_px
    if rng.random() < 0.5:
        width = rgb.shape[1]
        rgb, box = (
            rgb[:, ::-1],
            np.stack((width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]), 1),
        )
    for _ in range(int(rng.integers(4))):  # anticlockwise: x → H', as np.rot90
        width = rgb.shape[1]
        rgb, box = (
            np.rot90(rgb),
            np.stack((box[:, 1], width - box[:, 2], box[:, 3], width - box[:, 0]), 1),
        )
    return replace(sample, rgb=np.ascontiguousarray(rgb), box_px=box.astype(np.float32))


def rotated(rng: np.random.Generator, sample: Sample, most_deg: float) -> Sample:
    """Turned about the middle by up to `most_deg` (Liu et al. 2022; Wang et al. 2022, §3.2).

    The corners are filled with the image's median colour.

    A cell is round: its new box is that of the turned ellipse that its box holds, not of the turned
    corners, which would grow it.
    """
    angle = float(rng.uniform(-most_deg, most_deg))
    height, width = sample.rgb.shape[:2]
    fill = tuple(int(v) for v in _median_colour(sample))
    turned = Image.fromarray(sample.rgb).rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill)
    radians = np.deg2rad(-angle)  # Pillow turns anticlockwise, y points down
    cos, sin = np.cos(radians), np.sin(radians)
    middle = np.array([width, height]) / 2
    centre = (sample.box_px[:, :2] + sample.box_px[:, 2:]) / 2 - middle
    half = (sample.box_px[:, 2:] - sample.box_px[:, :2]) / 2
    centre = np.stack((centre @ (cos, -sin), centre @ (sin, cos)), 1) + middle
    half = np.sqrt(np.stack((half**2 @ (cos**2, sin**2), half**2 @ (sin**2, cos**2)), 1))
    box = np.concatenate((centre - half, centre + half), 1)
    return cut_at_edges(replace(sample, rgb=np.asarray(turned), box_px=box.astype(np.float32)))


def translated(rng: np.random.Generator, sample: Sample, most_share: float) -> Sample:
    """Shifted by up to a share of the image's sides; median colour comes in (Liu et al. 2022)."""
    height, width = sample.rgb.shape[:2]
    x, y = (
        int(rng.integers(-round(most_share * length), round(most_share * length) + 1))
        for length in (width, height)
    )
    return _window(sample, -x, -y, width, height)


def noisy(rng: np.random.Generator, sample: Sample, most_spread: float) -> Sample:
    """Gaussian noise with a spread of up to `most_spread` of 255 (Liu et al. 2022)."""
    noise = rng.normal(0, rng.uniform(0, most_spread), sample.rgb.shape)
    rgb: UInt8 = np.clip(np.rint(sample.rgb + noise), 0, 255).astype(np.uint8)
    return replace(sample, rgb=rgb)


def recoloured(rng: np.random.Generator, sample: Sample, most: float) -> Sample:
    """Contrast, saturation, brightness times 1 − `most` to 1 + `most` (Wang et al. 2022, §3.2)."""
    picture = Image.fromarray(sample.rgb)
    enhancers = (ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Brightness)
    for enhance, by in zip(enhancers, rng.uniform(1 - most, 1 + most, 3), strict=True):
        picture = enhance(picture).enhance(float(by))
    return replace(sample, rgb=np.asarray(picture))


def contrasted(rng: np.random.Generator, sample: Sample, most: float) -> Sample:
    """Contrast alone, times 1 − `most` to 1 + `most`."""
    by = float(rng.uniform(1 - most, 1 + most))
    rgb = np.asarray(ImageEnhance.Contrast(Image.fromarray(sample.rgb)).enhance(by))
    return replace(sample, rgb=rgb)


def recoloured_hsv(rng: np.random.Generator, sample: Sample) -> Sample:
    """Hue by up to 0.1 of the circle, saturation and exposure by up to 1.5 times.

    Photometric distortion of Bochkovskiy et al. 2020, §2.2, with the numbers of YOLOv4's
    published configuration.
    """
    hue, saturation, value = Image.fromarray(sample.rgb).convert("HSV").split()
    turn = float(rng.uniform(-0.1, 0.1)) * 255
    gains = np.exp(rng.uniform(-np.log(1.5), np.log(1.5), 2))
    planes = (
        Image.fromarray(((np.asarray(hue, np.float32) + turn) % 256).astype(np.uint8)),
        Image.fromarray(np.clip(np.asarray(saturation) * gains[0], 0, 255).astype(np.uint8)),
        Image.fromarray(np.clip(np.asarray(value) * gains[1], 0, 255).astype(np.uint8)),
    )
    rgb = np.asarray(Image.merge("HSV", planes).convert("RGB"))
    return replace(sample, rgb=rgb)


def cropped(rng: np.random.Generator, sample: Sample, size_px: int) -> Sample:
    """A square of `size_px`: cut out at random, or laid on the median colour where too small."""
    return _window(sample, *_place(rng, sample, size_px, size_px), size_px, size_px)


def mosaic(rng: np.random.Generator, samples: Sequence[Sample], size_px: int) -> Sample:
    """Four images around a random point (Bochkovskiy et al. 2020, §3.3)."""
    x, y = (round(size_px * float(share)) for share in rng.uniform(0.3, 0.7, 2))
    spans = ((0, 0, x, y), (x, 0, size_px, y), (0, y, x, size_px), (x, y, size_px, size_px))
    rgb = np.empty((size_px, size_px, 3), np.uint8)
    parts = []
    for sample, (left, top, right, bottom) in zip(samples, spans, strict=True):
        wide, high = right - left, bottom - top
        part = _window(sample, *_place(rng, sample, wide, high), wide, high)
        rgb[top:bottom, left:right] = part.rgb
        parts.append(_moved(part, left, top))
    return _together(rgb, parts)


def cutmix(rng: np.random.Generator, first: Sample, second: Sample) -> Sample:
    """A rectangle of the second image over the same place of the first (Yun et al. 2019, eq. 2).

    As in Bochkovskiy et al. 2020, §3.4, with boxes: a cell of the first image stays asked for where
    no more than :data:`VISIBLE_SHARE` of it is hidden, one of the second where that much is seen.
    """
    height, width = first.rgb.shape[:2]
    share = np.sqrt(1 - rng.uniform(0.4, 0.9))
    wide, high = round(width * share), round(height * share)
    left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    part = _window(second, left, top, wide, high)
    rgb = first.rgb.copy()
    rgb[top : top + high, left : left + wide] = part.rgb
    hole = np.array([left, top, left + wide, top + high], np.float64)
    hidden = covered(first.box_px, hole)
    shown = first.shown * (1 - hidden)
    # What is half hidden misleads; what the edge had cut off before was none of it.
    stays = (hidden <= VISIBLE_SHARE) & (shown >= VISIBLE_SHARE)
    left_over = Sample(rgb, first.box_px[stays], first.kind[stays], shown[stays])
    return _together(rgb, (left_over, _moved(part, left, top)))


def _moved(sample: Sample, x: int, y: int) -> Sample:
    return replace(sample, box_px=sample.box_px + np.array([x, y, x, y], np.float32))


def _together(rgb: UInt8, parts: Sequence[Sample]) -> Sample:
    """One image with the cells of several parts."""
    return Sample(
        rgb,
        np.concatenate([part.box_px for part in parts]),
        np.concatenate([part.kind for part in parts]),
        np.concatenate([part.shown for part in parts]),
    )


def _place(rng: np.random.Generator, sample: Sample, width: int, height: int) -> tuple[int, int]:
    """Where a window of that size begins: anywhere inside, or around an image that is smaller."""
    x, y = (
        int(rng.integers(min(0, spare), max(0, spare) + 1))
        for spare in (sample.rgb.shape[1] - width, sample.rgb.shape[0] - height)
    )
    return x, y


def _window(sample: Sample, x: int, y: int, width: int, height: int) -> Sample:
    """What a window at (x, y) sees, in pixels of its own; median colour outside the image."""
    seen = sample.rgb[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    rgb = np.empty((height, width, 3), np.uint8)
    if seen.shape != rgb.shape:
        rgb[:] = _median_colour(sample)
    top, left = max(-y, 0), max(-x, 0)
    rgb[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    box = sample.box_px - np.array([x, y, x, y], np.float32)
    return cut_at_edges(replace(sample, rgb=rgb, box_px=box))


def _median_colour(sample: Sample) -> Float64:
    colour: Float64 = np.median(sample.rgb.reshape(-1, 3), 0)
    return colour


def cut_at_edges(sample: Sample) -> Sample:
    """Boxes cut at the edge; those that lie mostly outside are gone."""
    height, width = sample.rgb.shape[:2]
    whole = np.array([0, 0, width, height], np.float64)
    shown = sample.shown * covered(sample.box_px, whole)
    visible: Bool = shown >= VISIBLE_SHARE
    box = np.clip(sample.box_px, 0, whole[[2, 3, 2, 3]]).astype(np.float32)
    return Sample(sample.rgb, box[visible], sample.kind[visible], shown[visible])
