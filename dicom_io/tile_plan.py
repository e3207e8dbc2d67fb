"""Which frames make a tile: levels, their grids of frames, and boxes of the slide on them.

No pixels and no archive here: what is planned in this file, :mod:`dicom_io.frames` reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dicom_io.frame_table import Place
from dicom_io.resampling import filter_reach
from dicom_io.slide import Level, Slide
from dicom_io.tile_layout import Box
from models.records import Bool, Float64, Int64, Regions

# A level up to 1 % coarser than asked for serves, and one this close is not resampled.
SCALE_TOLERANCE = 0.01
# A ratio of spacings this close to a whole number is one: less than a pixel in a level of 100 000.
WHOLE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Plan:
    """One tile: where its pixels lie in the level.

    Attributes
    ----------
    origin_px
        Base-level position of its top-left corner.
    corner : (x, y)
        The same in level pixels.
    box : (x0, y0, x1, y1)
        The level pixels that it depends on.
    as_stored
        It shows all of these, pixel by pixel, so that they can be given as they are.
    places
        Frames to read.
    """

    origin_px: Float64
    corner: Float64
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
    around_px : (M, 4) float64, optional
        Base-level pixels that each tile may depend on, where it is a part of a larger one; None
        where nothing beyond a tile is looked at.
    """

    level: Level
    scale: Float64
    size: tuple[int, int]
    px_per_tile_px: Float64
    box_px: Float64
    wanted: Bool | None
    around_px: Float64 | None = None

    @property
    def step(self) -> Float64:
        """(2,): level pixels per tile pixel, along x and y."""
        return self.px_per_tile_px / self.scale

    @property
    def as_stored(self) -> bool:
        """Whether tiles show the level pixel by pixel."""
        return _as_stored(self.step)

    @property
    def shown_px(self) -> Float64:
        """(2,): level pixels that a tile shows, along x and y."""
        return self.step * self.size

    def __iter__(self) -> Iterator[Plan]:
        """Each tile's plan, made when it is asked for: a slide has many tiles."""
        origin_px, corner = self.box_px[:, :2], self.box_px[:, :2] / self.scale
        if self.as_stored:
            corner = np.rint(corner)
            origin_px = corner * self.scale
        seen_from, seen_to = self._seen(corner)
        top_left, bottom_right = np.floor(seen_from), np.ceil(seen_to)
        as_stored = ((corner == top_left) & (bottom_right - top_left == self.size)).all(axis=1)
        # The last frames are padded: a box that begins there sees nothing of the slide.
        inside = np.logical_and(*(top_left < self.level.size_px).T)
        rows = zip(
            origin_px,
            corner,
            np.hstack([top_left, bottom_right]).astype(int).tolist(),
            as_stored.tolist(),
            inside.tolist(),
            strict=True,
        )
        places = self.level.frames.places
        for origin, start, (left, top, right, bottom), whole, sees in rows:
            box = left, top, right, bottom
            yield Plan(origin, start, box, whole, tuple(places(box, self.wanted)) if sees else ())

    def _seen(self, corner: Float64) -> tuple[Float64, Float64]:
        """(M, 2) each: from where to where tiles look at the level."""
        end = corner + self.shown_px
        if self.around_px is None:
            return corner, end
        reach = [filter_reach(float(step)) for step in self.step]
        around = self.around_px / np.tile(self.scale, 2)
        return np.maximum(around[:, :2], corner - reach), np.minimum(around[:, 2:], end + reach)


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


def in_parts(plans: Plans, most_px: float) -> tuple[Plans, Int64]:
    """Divide tiles that show more level pixels than `most_px`.

    Returns
    -------
    plans
        The parts of each tile, one after the other; they are of one size, so that the last ones
        may overlap those before.
    corner : (P, 2) int64
        Where each of the P parts of a tile lies in it: x, y in tile pixels.
    """
    share = float(np.prod(plans.shown_px)) / most_px
    if plans.as_stored or share <= 1:
        return plans, np.zeros((1, 2), np.int64)
    count = math.ceil(math.sqrt(share))
    (whole_width, whole_height), px = plans.size, plans.px_per_tile_px
    size = width, height = -(-whole_width // count), -(-whole_height // count)
    corner = np.array(
        [
            (min(x, whole_width - width), min(y, whole_height - height))
            for y in range(0, whole_height, height)
            for x in range(0, whole_width, width)
        ]
    )
    tile_px = plans.box_px[:, :2]
    part_px = (tile_px[:, None] + corner * px).reshape(-1, 2)
    parts = replace(
        plans,
        size=size,
        box_px=np.hstack([part_px, part_px + px * size]),
        around_px=np.hstack([tile_px, tile_px + px * plans.size]).repeat(len(corner), axis=0),
    )
    return parts, corner


def choose_level(slide: Slide, um_per_px: float) -> Level:
    """Coarsest level that is at least as fine as asked for (1 % tolerance), else the finest."""
    fine = [level for level in slide.levels if level.um_per_px <= um_per_px * (1 + SCALE_TOLERANCE)]
    return fine[-1] if fine else slide.base


def level_scale(slide: Slide, level: Level) -> Float64:
    """Base-level pixels per pixel of `level`, along x and y; outer corners coincide.

    Matrix and spacing say it both (PS3.3 C.8.12.14.1.1). Where they agree to a pixel of the level,
    the spacing is the exact one. Where they do not, a whole number is what the writer meant, and
    the matrix is padded; any other was rounded, and the level covers what the base level covers.
    """
    said = np.array(level.spacing_mm) / np.array(slide.base.spacing_mm)
    covered = np.array(slide.base.size_px) / np.array(level.size_px)
    agree = np.abs(slide.base.size_px / said - level.size_px) <= 1 + WHOLE_TOLERANCE
    whole = np.abs(said - np.rint(said)) <= WHOLE_TOLERANCE * said
    scale: Float64 = np.where(agree | whole, said, covered)
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
    for c0, r0, c1, r1 in cells_touching(slide, level, regions.box_px).tolist():
        touched[r0:r1, c0:c1] = True
    return touched


def cells_touching(slide: Slide, level: Level, box_px: Float64) -> Int64:
    """Cells of a level, each of a frame's size, that share area with each box.

    Parameters
    ----------
    slide, level
    box_px : (N, 4) float64
        x0, y0, x1, y1 in base-level pixels; may lie partly outside the slide.

    Returns
    -------
    (N, 4) int64
        First column and row, and the ones behind the last, cut at the grid.
    """
    frame_px = level_scale(slide, level) * level.tile_size_px
    first = np.floor(box_px[:, :2] / frame_px + 1e-9)
    last = np.ceil(box_px[:, 2:] / frame_px - 1e-9)
    limit = grid_size(level)
    cells = np.hstack([np.clip(first, 0, limit), np.clip(last, 0, limit)])
    return np.asarray(cells, np.int64)


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
