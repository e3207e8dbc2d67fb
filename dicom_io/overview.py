"""All of a slide in one small picture, in pieces that memory holds, whatever its levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dicom_io.frame_sample import sampled_frames
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs
from dicom_io.slide import Slide
from dicom_io.slide_settings import ReadSettings
from dicom_io.tile_plan import choose_level, level_scale
from models.records import Float64, Regions, UInt8

# Pixels of a level that one piece shows, along each side. Levels that are up to 4 times coarser
# each offer one of at most 6400 px for a picture of 1600 px: that is read in one piece.
PIECE_PX = 6400


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Where pieces of one size lie in the picture, in its pixels.

    Attributes
    ----------
    corner : (N, 2) int64
        x, y; a piece of a sample may reach beyond the picture.
    size : (width, height)
    within
        Only frames that touch these are read; None for all.
    """

    corner: NDArray[np.int64]
    size: tuple[int, int]
    within: Regions | None


def read_overview(
    pacs: Pacs, slide: Slide, longest_px: int, most_frames: int, settings: ReadSettings
) -> UInt8:
    """Read the whole slide, small.

    Parameters
    ----------
    pacs, slide
    longest_px
        The picture's longer side at most; a smaller slide is not enlarged.
    most_frames
        Where the level that serves has more, only a grid of so many is read, and the rest is left
        white: a slide without a low level is too much to read for a picture.
    settings

    Returns
    -------
    (H, W, 3) uint8
        White where there are no pixels.

    Raises
    ------
    dicom_io.errors.FrameInvalid, dicom_io.errors.PacsError, dicom_io.errors.BudgetExceeded
    """
    base = slide.base
    um_per_px = base.um_per_px * max(1.0, max(base.size_px) / longest_px)
    um = 1000 * np.array(base.spacing_mm)
    px_per_px = um_per_px / um
    size = np.maximum(np.rint(np.array(base.size_px) * um / um_per_px), 1).astype(int)
    width, height = size.tolist()
    picture = np.full((height, width, 3), 255, np.uint8)
    pieces = _pieces(slide, um_per_px, px_per_px, (width, height), most_frames)
    box_px = np.hstack([pieces.corner, pieces.corner + pieces.size]) * np.tile(px_per_px, 2)
    tiles = read_tiles(
        pacs,
        slide,
        box_px,
        um_per_px,
        within=pieces.within,
        batch_size=1,
        # One piece of a level is in memory at a time; pieces share few frames.
        settings=replace(settings, threads=1, frames_bytes=0),
    )
    for (x, y), tile in zip(pieces.corner.tolist(), tiles, strict=True):
        target = picture[y : y + pieces.size[1], x : x + pieces.size[0]]
        inside = np.s_[: target.shape[0], : target.shape[1]]
        valid = tile.valid[0][inside]
        target[valid] = tile.rgb[0][inside][valid]
    return picture


def _pieces(
    slide: Slide, um_per_px: float, px_per_px: Float64, size: tuple[int, int], most_frames: int
) -> _Pieces:
    """Around the frames of a sample, or side by side where all frames are read."""
    level = choose_level(slide, um_per_px)
    # At the level's own resolution, so that single frames are spread over the slide.
    sample = sampled_frames(slide, level.um_per_px, most_frames)
    if sample is not None:
        start = np.floor(sample.box_px[:, :2] / px_per_px).astype(np.int64)
        end = np.ceil(sample.box_px[:, 2:] / px_per_px).astype(np.int64)
        width, height = (end - start).max(axis=0).tolist()
        return _Pieces(start, (width, height), sample)
    most = np.maximum(np.rint(PIECE_PX * level_scale(slide, level) / px_per_px), 1)
    width, height = (
        -(-whole // -(-whole // int(piece))) for whole, piece in zip(size, most, strict=True)
    )
    return _Pieces(np.array(list(_corners(size, (width, height)))), (width, height), None)


def _corners(size: tuple[int, int], piece: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The last piece ends with the picture: beyond it there is white, which would mix in."""
    for y in range(0, size[1], piece[1]):
        for x in range(0, size[0], piece[0]):
            yield min(x, size[0] - piece[0]), min(y, size[1] - piece[1])
