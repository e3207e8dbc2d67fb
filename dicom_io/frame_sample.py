"""A bounded sample of frames, where a slide has no level low enough to see all of it."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from dicom_io.slide import Slide
from dicom_io.tile_plan import (
    cells_touching,
    choose_level,
    frames_touching,
    grid_size,
    level_scale,
)
from models.records import Float64, Regions

log = logging.getLogger(__name__)

# A network that sees less than this around a place, in its own pixels, sees no context.
CONTEXT_PX = 256
KIND = "sampled frames"


def sampled(
    slide: Slide, box_px: Float64, um_per_px: float, most: int
) -> tuple[Float64, Regions | None]:
    """Boxes that look at the slide, and the frames to read for them.

    Returns
    -------
    box_px : (N, 4) float64
        Those of the boxes that touch a frame to read.
    within
        The frames to read (:func:`sampled_frames`); None for all.
    """
    within = sampled_frames(slide, um_per_px, most)
    if within is None:
        return box_px, None
    level = choose_level(slide, um_per_px)
    touched = frames_touching(slide, level, within)
    # Frames to read above and left of each corner: sums over boxes are differences of these.
    before = np.pad(touched.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    left, top, right, bottom = cells_touching(slide, level, box_px).T
    inside = before[bottom, right] - before[top, right] - before[bottom, left] + before[top, left]
    return box_px[(inside > 0) & (right > left) & (bottom > top)], within


def sampled_frames(slide: Slide, um_per_px: float, most: int) -> Regions | None:
    """Blocks of frames on a grid over the level that serves `um_per_px`.

    Parameters
    ----------
    slide
    um_per_px
        Resolution at which the slide is to be seen.
    most
        Frames that may be read.

    Returns
    -------
    regions
        Boxes in base-level pixels, each wide enough for context; None where the whole level has
        no more frames than `most`.
    """
    level = choose_level(slide, um_per_px)
    columns, rows = grid_size(level)
    if columns * rows <= most:
        return None
    context = CONTEXT_PX * um_per_px / level.um_per_px / np.array(level.tile_size_px)
    context *= min(1.0, math.sqrt(most / float(np.prod(np.ceil(context)))))
    wide, high = (max(1, math.floor(frames)) for frames in context)
    x, y = _grid(-(-columns // wide), -(-rows // high), max(1, most // (wide * high)))
    frame_px = level_scale(slide, level) * level.tile_size_px
    corner = np.stack([x * wide, y * high], axis=1) * frame_px
    end = np.minimum(corner + (wide, high) * frame_px, slide.base.size_px)
    log.warning(
        "Series %s has no low level: it is looked at in %d of %d blocks of %d × %d frames",
        slide.series_uid,
        len(corner),
        -(-columns // wide) * -(-rows // high),
        wide,
        high,
    )
    box_px = np.concatenate([corner, end], axis=1)
    return Regions(box_px=box_px, score=np.ones(len(box_px), np.float32), kind=KIND)


def _grid(columns: int, rows: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of at most `most` places, evenly spread."""
    step = 1
    while len(_along(columns, step)) * len(_along(rows, step)) > most:
        step += 1
    x, y = np.meshgrid(_along(columns, step), _along(rows, step))
    return x.ravel(), y.ravel()


def _along(count: int, step: int) -> NDArray[np.int64]:
    return np.arange(min(step // 2, (count - 1) // 2), count, step)
