"""Real cells, cut out by their own outline, placed on real red cells.

Training and the demonstration slide compose images with the same functions, in NumPy, SciPy and
Pillow alone. All images are RGB uint8; the scale of a cut-out is chosen when it is turned.

The edge of a cut-out is faded *inward*: outside the outline not one pixel of the source shows, so
that nothing around a cell tells that, or from where, it was pasted.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from models.records import Float32, UInt8

ASSETS = Path(__file__).parent / "assets"
UM_PER_PX = 0.25  # of the red cells as stored, and of composed images unless said otherwise
FEATHER_PX = 1.5
GLASS = 242.0  # what the glass of a white-balanced crop becomes


@dataclass(frozen=True, slots=True)
class CellImage:
    """A published image of one bone marrow cell.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
        As published.
    outline : (H, W) bool
        The cell, cytoplasm included; empty where it cannot be told from its neighbours.
    glass : (3,) float64
        Colour of the empty glass of this image.
    type
        Cell type key.
    group
        Number of its near-duplicate group: images of one group never part in a split.
    fold
        0 to 4. The shipped model never saw fold 4.
    um_per_px
        The source states one scale; images of 96 px are smaller by the size of their cells, so
        theirs is our estimate.
    """

    rgb: UInt8
    outline: NDArray[np.bool_]
    glass: NDArray[np.float64]
    type: str
    group: int
    fold: int
    um_per_px: float

    @property
    def is_whole(self) -> bool:
        """Whether the cell could be told from its neighbours: it has an outline."""
        return bool(self.outline.any())

    def white_balanced(self) -> UInt8:
        """The image with its glass made neutral."""
        return np.clip(self.rgb / self.glass * GLASS, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class CutOut:
    """A cell turned and scaled, ready to be placed.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
    alpha : (H, W) float32
        0 outside the outline, rising to 1 inside it. The array is cut to the outline's box.
    """

    rgb: UInt8
    alpha: Float32


def load_cells(folder: Path = ASSETS / "cells") -> list[CellImage]:
    """Every cell image of the repository, in the order of ``cells.csv``."""
    with (folder / "cells.csv").open(newline="", encoding="utf-8") as table:
        return [_load_cell(folder, row) for row in csv.DictReader(table)]


def _load_cell(folder: Path, row: dict[str, str]) -> CellImage:
    rgb = np.asarray(Image.open(folder / row["file"]).convert("RGB"))
    outline = np.asarray(Image.open((folder / row["file"]).with_suffix(".png")).convert("L")) > 127
    return CellImage(
        rgb=rgb,
        outline=outline,
        glass=np.percentile(rgb.reshape(-1, 3), 95, axis=0),
        type=row["type"],
        group=int(row["group"]),
        fold=int(row["fold"]),
        um_per_px=float(row["um_per_px"]),
    )


def turned(
    rgb: UInt8,
    outline: NDArray[np.bool_],
    px_per_source_px: float,
    angle_deg: float,
    flip: bool = False,
) -> CutOut:
    """Cut a cell out, turned by an angle and scaled.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    outline : (H, W) bool
    px_per_source_px
        Scale: um per source px ÷ um per px wanted.
    angle_deg
        Clockwise as the image is seen.
    flip
        Mirror left to right first.
    """
    rgb, outline = (rgb[:, ::-1], outline[:, ::-1]) if flip else (rgb, outline)
    height, width = outline.shape
    side = int(np.ceil(1.5 * max(height, width) * px_per_source_px))
    cos, sin = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    back = np.array([[cos, sin], [-sin, cos]]) / px_per_source_px
    shift = np.array([width, height]) / 2 - back @ (np.array([side, side]) / 2)
    affine = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    # Blurred first by what the scaling loses, so that nothing is aliased.
    sigma = 0.35 * max(0.0, 1 / px_per_source_px - 1)
    soft = ndimage.gaussian_filter(rgb, (sigma, sigma, 0)) if sigma else rgb
    size = (side, side)
    image = Image.fromarray(np.ascontiguousarray(soft)).transform(
        size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    mask = Image.fromarray(np.ascontiguousarray(outline).astype(np.uint8) * 255).transform(
        size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    inside = np.asarray(mask) > 127
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return CutOut(np.zeros((0, 0, 3), np.uint8), np.zeros((0, 0), np.float32))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth = ndimage.distance_transform_edt(np.pad(inside[cut], 1))[1:-1, 1:-1]
    alpha = np.clip(depth / (FEATHER_PX + 0.5), 0, 1).astype(np.float32)
    return CutOut(np.asarray(image)[cut], alpha)


def place(canvas: UInt8, cut_out: CutOut, left: int, top: int) -> tuple[int, int, int, int]:
    """Lay a cut-out on a canvas, in place, cropped where it crosses the edge.

    Returns
    -------
    tuple
        Box of its outline, x0, y0, x1, y1, not cropped.
    """
    height, width = cut_out.alpha.shape
    box = (left, top, left + width, top + height)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(box[2], canvas.shape[1]), min(box[3], canvas.shape[0])
    if x0 < x1 and y0 < y1:
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        alpha = cut_out.alpha[part][..., None]
        under = canvas[y0:y1, x0:x1]
        canvas[y0:y1, x0:x1] = (
            under * (1 - alpha) + cut_out.rgb[part].astype(np.float32) * alpha + 0.5
        ).astype(np.uint8)
    return box


@cache
def load_red_cells() -> Float32:
    """Transmittance (0 to 1) of real red cells on glass, (N, 48, 48, 3), at 0.25 um per px.

    Multiplying a canvas with one lays the cell over what is there, as light does.
    """
    packed = np.load(ASSETS / "red_cells" / "red_cells.npz", allow_pickle=False)["transmittance"]
    transmittance: Float32 = (packed.astype(np.float32) + 0.5) / 255.5
    return transmittance


def red_cell_field(
    rng: np.random.Generator,
    size_px: tuple[int, int],
    cover: float,
    glass: tuple[int, ...],
    shrink: int = 1,
) -> UInt8:
    """Real red cells scattered on glass.

    Parameters
    ----------
    rng
    size_px : (width, height)
    cover
        Red cells per 12 × 12 um: 0 is empty glass, 1 a dense smear with overlaps.
    glass
        RGB of the glass.
    shrink
        1, 2 or 4: pixels of 0.25, 0.5 or 1 um.
    """
    width, height = size_px
    side = margin = 48 // shrink
    light = np.ones((height + 2 * margin, width + 2 * margin, 3), np.float32)
    red = load_red_cells()
    red = red.reshape(-1, side, shrink, side, shrink, 3).mean((2, 4))
    count = rng.poisson(cover * light.shape[0] * light.shape[1] / side**2)
    chosen = rng.integers(len(red), size=count)
    ways = rng.integers(8, size=count)
    lefts = rng.integers(0, light.shape[1] - side, size=count)
    tops = rng.integers(0, light.shape[0] - side, size=count)
    for index, way, left, top in zip(chosen, ways, lefts, tops, strict=True):
        cell = np.rot90(red[index], way % 4)
        cell = cell[::-1] if way >= 4 else cell
        light[top : top + side, left : left + side] *= cell
    light = np.maximum(light, 0.25)[margin:-margin, margin:-margin]
    return (light * np.array(glass, np.float32)).clip(0, 255).astype(np.uint8)
