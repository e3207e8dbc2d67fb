"""Which frames make a tile: levels, their grids of frames, and boxes of the slide on them.

No pixels and no archive here: what is planned in this file, :mod:`dicom_io.frames` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dicom_io.frame_table import Place
from dicom_io.slide import Level, Slide
from dicom_io.tile_layout import Box
from models.records import Bool, Float64, Regions

# A level up to 1 % coarser than asked for serves, and one this close is not resampled.
SCALE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Plan:
    """One tile: where its pixels lie in the level.

    Attributes
    ----------
    origin_px
        Base-level position of its top-left corner.
    corner, extent : (x, y)
        The same, and its size, in level pixels.
    box : (x0, y0, x1, y1)
        The level pixels that it shows a part of.
    as_stored
        It shows all of these, pixel by pixel, so that they can be given as they are.
    places
        Frames to read.
    """

    origin_px: Float64
    corner: Float64
    extent: Float64
    box: Box
    as_stored: bool
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Plans:
    """All tiles of one reading.

    Attributes
    ----------
    level
        The one that is read.
    scale : (2,) float64
        Base-level pixels per pixel of the level.
    size : (width, height)
        Of every tile, in tile pixels.
    px_per_tile_px : (2,) float64
        Base-level pixels per tile pixel, along x and y.
    box_px : (M, 4) float64
        Tiles wanted, in base-level pixels.
    wanted : (rows, columns) bool, optional
        Only frames that touch these cells of the level may be fetched; None for all.
    """

    level: Level
    scale: Float64
    size: tuple[int, int]
    px_per_tile_px: Float64
    box_px: Float64
    wanted: Bool | None

    def __iter__(self) -> Iterator[Plan]:
        """Each tile's plan, made when it is asked for: a slide has many tiles."""
        step = self.px_per_tile_px / self.scale
        origin_px, corner = self.box_px[:, :2], self.box_px[:, :2] / self.scale
        if _as_stored(step):
            corner = np.rint(corner)
            origin_px = corner * self.scale
        extent = np.array(self.size) * step
        top_left, bottom_right = np.floor(corner), np.ceil(corner + extent)
        as_stored = ((corner == top_left) & (bottom_right - top_left == self.size)).all(axis=1)
        rows = zip(
            origin_px,
            corner,
            np.hstack([top_left, bottom_right]).astype(int).tolist(),
            as_stored.tolist(),
            strict=True,
        )
        for origin, start, (left, top, right, bottom), whole in rows:
            box = left, top, right, bottom
            yield Plan(origin, start, extent, box, whole, tuple(self._places(box)))

    def _places(self, box: Box) -> Iterable[Place]:
        width, height = self.level.size_px
        # The last frames are padded: a box that begins there sees nothing of the slide.
        if box[0] >= width or box[1] >= height:
            return ()
        return self.level.frames.places(box, self.wanted)


def plan_tiles(slide: Slide, box_px: Float64, um_per_px: float, within: Regions | None) -> Plans:
    """Choose the level for a scale, and lay boxes of the slide on it.

    Parameters
    ----------
    slide
    box_px : (M, 4) float64
        x0, y0, x1, y1 in base-level pixels; of one size.
    um_per_px
        Wanted.
    within
        Only frames that touch these are fetched; None fetches all.
    """
    level = choose_level(slide, um_per_px)
    boxes = np.asarray(box_px, np.float64)
    return Plans(
        level=level,
        scale=level_scale(slide, level),
        size=_tile_size(slide, boxes, um_per_px),
        px_per_tile_px=_px_per_tile_px(slide, level, um_per_px),
        box_px=boxes,
        wanted=None if within is None else frames_touching(slide, level, within),
    )


def choose_level(slide: Slide, um_per_px: float) -> Level:
    """Coarsest level that is at least as fine as asked for (1 % tolerance), else the finest."""
    fine = [level for level in slide.levels if level.um_per_px <= um_per_px * (1 + SCALE_TOLERANCE)]
    return fine[-1] if fine else slide.base


def level_scale(slide: Slide, level: Level) -> Float64:
    """Base-level pixels per pixel of `level`, along x and y; outer corners coincide."""
    scale: Float64 = np.array(level.spacing_mm) / np.array(slide.base.spacing_mm)
    return scale


def frame_boxes(slide: Slide, level: Level | None = None) -> Float64:
    """Cells of a level (the base level by default), each of a frame's size, row by row.

    Returns
    -------
    (rows × columns, 4) float64
        x0, y0, x1, y1 in base-level pixels, clipped to the slide.
    """
    level = level or slide.base
    scale, (tile_width, tile_height) = level_scale(slide, level), level.tile_size_px
    columns, rows = grid_size(level)
    row, column = np.divmod(np.arange(rows * columns), columns)
    x0, y0 = column * tile_width * scale[0], row * tile_height * scale[1]
    x1, y1 = x0 + tile_width * scale[0], y0 + tile_height * scale[1]
    width, height = slide.base.size_px
    boxes: Float64 = np.stack([x0, y0, np.minimum(x1, width), np.minimum(y1, height)], axis=1)
    return boxes


def grid_size(level: Level) -> tuple[int, int]:
    """Cells of a frame's size over the level's matrix, which are its frames on a grid."""
    (width, height), (tile_width, tile_height) = level.size_px, level.tile_size_px
    return -(-width // tile_width), -(-height // tile_height)


def frames_touching(slide: Slide, level: Level, regions: Regions) -> Bool:
    """(rows, columns): which cells of a level, each of a frame's size, share area with a region.

    On a grid the frames are these cells.
    """
    columns, rows = grid_size(level)
    touched = np.zeros((rows, columns), np.bool_)
    frame_px = level_scale(slide, level) * level.tile_size_px
    first = np.floor(regions.box_px[:, :2] / frame_px + 1e-9).astype(int)
    last = np.ceil(regions.box_px[:, 2:] / frame_px - 1e-9).astype(int)
    for (c0, r0), (c1, r1) in zip(np.maximum(first, 0), np.maximum(last, 0), strict=True):
        touched[r0:r1, c0:c1] = True
    return touched


def _px_per_tile_px(slide: Slide, level: Level, um_per_px: float) -> Float64:
    wanted = um_per_px / 1000 / np.array(slide.base.spacing_mm)
    stored = level_scale(slide, level)
    return stored if _as_stored(wanted / stored) else wanted


def _as_stored(level_px_per_tile_px: Float64) -> bool:
    return bool((np.abs(level_px_per_tile_px - 1) <= SCALE_TOLERANCE).all())


def _tile_size(slide: Slide, box_px: Float64, um_per_px: float) -> tuple[int, int]:
    """(width, height) in tile pixels that all boxes share."""
    um = 1000 * np.array(slide.base.spacing_mm)
    sizes = np.unique(np.rint((box_px[:, 2:] - box_px[:, :2]) * um / um_per_px), axis=0)
    if len(box_px) == 0:
        return 1, 1
    if len(sizes) != 1 or (sizes < 1).any():
        raise ValueError(f"boxes must have one size of at least one tile pixel, not {sizes}")
    return int(sizes[0, 0]), int(sizes[0, 1])
